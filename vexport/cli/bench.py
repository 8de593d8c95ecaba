"""`vexport bench`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import (
    DEFAULT_WORKSPACE,
    ForceOpt,
    JsonOpt,
    ModelOpt,
    TrustOpt,
    WeightsOpt,
    Workspace,
    WorkspaceOpt,
)
from vexport.cli.render import figure, print_json, print_table, progress, remark, short_hash

if TYPE_CHECKING:
    from vexport.pipeline.bench import BenchOutcome


def bench(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ARTIFACT]...",
            help="Graphs, engines or checkpoints; otherwise the workspace's FP32 graphs and the engines that run here.",
            show_default=False,
        ),
    ] = None,
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images per call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads; each backend's choice otherwise.", show_default=False)
    ] = None,
    duration: Annotated[float, typer.Option(metavar="S", help="Measured seconds per candidate.")] = 5.0,
    baselines: Annotated[bool, typer.Option(help="Put ResNet-50 and Swin-T beside full-size networks.")] = True,
    eager: Annotated[bool, typer.Option(help="Put eager PyTorch beside ONNX Runtime.")] = True,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Let engines replay their launches as CUDA graphs.")
    ] = False,
    trust: TrustOpt = False,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Latency beside ResNet-50 and Swin-T, measured in turns; every run measures anew."""
    from vexport.pipeline.bench import measure_latency

    with progress(as_json) as update:
        update("preparing")
        outcome = measure_latency(
            artifacts or (),
            workspace=Workspace(workspace),
            model=model,
            weights=weights,
            batch=batch,
            threads=threads,
            duration_s=duration,
            baselines=baselines,
            eager=eager,
            force=force,
            trust=trust,
            cuda_graph=cuda_graph,
            on_step=update,
        )
    if as_json:
        print_json(outcome.to_json())
    else:
        render(outcome)


def render(outcome: BenchOutcome) -> None:
    """One table per input size, the verdicts, and what was measured on."""
    from vexport.bench.report import verdicts

    for size, rows in outcome.report.groups().items():
        cells = [
            [
                row.network,
                row.backend,
                figure(row.median_ms) + (" unstable" if row.unstable and row.error is None else ""),
                figure(row.p90_ms),
                figure(row.p99_ms),
                f"{row.ratio.value:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})" if row.ratio else "-",
                figure(row.images_per_s, 1),
                figure(row.published_top1),
                figure(row.published_a100_ms),
                short_hash(row.artifact_sha256),
            ]
            for row in rows
        ]
        columns = ["network", "backend", "median ms", "p90", "p99", "x ResNet-50", "images/s", "publ. top-1 %"]
        columns += ["publ. A100 ms", "sha256"]
        title = f"Latency, FP32, batch {rows[0].batch}, {'x'.join(str(side) for side in size)}"
        print_table(title, columns, cells, text_columns=2)
        for verdict in verdicts(rows):
            typer.echo(verdict)
    environment = outcome.report.environment
    cores = environment["usable_cores"]
    remark(f"measured on: {environment['cpu']}, {cores} cores, CPU only; {environment['os']}")
    typer.echo(f"raw samples: {outcome.artifact.path}")
