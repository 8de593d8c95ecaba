"""`vexport quickstart`"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import DEFAULT_WORKSPACE, ForceOpt, JsonOpt, Workspace, WorkspaceOpt
from vexport.cli.render import (
    figure,
    print_json,
    print_table,
    progress,
    remark,
    short_hash,
    size,
)

if TYPE_CHECKING:
    from vexport.bench.report import Row
    from vexport.pipeline.quickstart import QuickstartResult


def quickstart(
    duration: Annotated[float, typer.Option(metavar="S", help="Measured seconds per candidate.")] = 3.0,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """The main job in one go: train, fuse, export, FP16 and INT8, engines, measure. Needs the extra `train`."""
    from vexport.pipeline.epochs import describe_epoch, epoch_share
    from vexport.pipeline.quickstart import quickstart as run

    remark("training, merging, exporting and measuring takes a few minutes")
    with progress(as_json) as update:

        def on_epoch(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
            update(describe_epoch(epoch, epochs, metrics), epoch_share(epoch, epochs, metrics))

        result = run(
            workspace=Workspace(workspace), duration_s=duration, force=force, on_step=update, on_epoch=on_epoch
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: QuickstartResult) -> None:
    """One table, the verdicts, the files, and what to try next."""
    from vexport.bench.report import verdicts

    rows = {(row.artifact_sha256, row.backend): row for row in result.bench.report.rows}
    small = {form: next(r for r in rows.values() if r.artifact_sha256 == s) for form, s in _hashes(result).items()}
    cells = [
        [f"small VanillaNet-5, {form}", row.backend, _accuracy(result, form), *_latency(row), "-", "-"]
        for form, row in small.items()
    ]
    half = _accuracy(result, "FP16 graph")
    cells.append(["small VanillaNet-5, FP16 graph", "FP32, rounded to FP16", half, *["-"] * 5])  # no FP16 on CPUs
    int8 = _accuracy(result, "INT8 graph")
    cells.append(["small VanillaNet-5, INT8 graph", "onnxruntime CPU", int8, *["-"] * 5])  # it computes in float there
    cells.append([""] * 8)
    full = [row for row in rows.values() if row.input_size[1] == 224]
    cells += [
        [
            row.network,
            row.backend,
            "-",
            *_latency(row),
            f"{row.ratio.value:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})" if row.ratio else "-",
            figure(row.published_top1),
        ]
        for row in full
    ]
    columns = ["network", "backend", "held-out digits", "median ms", "p90", "p99", "x ResNet-50", "publ. top-1 %"]
    title = "FP32, batch 1. Above: digits, 1x32x32, trained here. Below: 3x224x224, random weights, latency only."
    print_table(title, columns, cells, text_columns=2)
    for verdict in verdicts(full):
        typer.echo(verdict)
    environment = result.bench.report.environment
    typer.echo(f"measured on {environment['cpu']}, {environment['usable_cores']} cores, no GPU used\n")
    _engines(result)
    _files(result)


def _engines(result: QuickstartResult) -> None:
    """What was built, for what, and whether it was run."""
    if result.no_engines:
        typer.echo(f"no engines: {result.no_engines}\n")
        return
    cells = []
    for built in result.engines:
        facts, (parity, *_) = built.artifact.facts, built.artifact.manifest.parity
        said = parity["reason"] if parity["result"] == "not run" else f"error {parity['max_rel']:.1e} against the graph"
        layers = ", ".join(
            f"{count} {name.upper()}"
            for by in facts["build"]["precision_network"].values()
            for name, count in by.items()
        )
        name = f"{facts['model']}, {facts['precision'].upper()}"
        runtime = f"{facts['runtime']['name']} {facts['runtime']['version']}"
        cells.append(
            [
                name,
                runtime,
                layers,
                size(built.artifact.manifest.size_bytes),
                f"{parity['result']}: {said}",
            ]
        )
    columns = ["engine", "built with", "computing layers", "size", "parity"]
    print_table("Engines", columns, cells, text_columns=5)


def _hashes(result: QuickstartResult) -> dict[str, str]:
    return {
        "training form": result.train.best.sha256,
        "deployed form": result.fuse.artifact.sha256,
        "ONNX graph": result.export.artifact.sha256,
    }


def _accuracy(result: QuickstartResult, form: str) -> str:
    found = result.accuracy[form.split()[0]]
    return f"{found.correct}/{found.images} ({found.top1:.1%})"


def _latency(row: Row) -> list[str]:
    doubt = " unstable" if row.unstable else ""
    return [figure(row.median_ms, 3 if row.median_ms < 1 else 2) + doubt, figure(row.p90_ms), figure(row.p99_ms)]


def _files(result: QuickstartResult) -> None:
    made = (
        result.train.best,
        result.fuse.artifact,
        result.export.artifact,
        result.half.artifact,
        result.int8.artifact,
        result.full_size.artifact,
        *(built.artifact for built in result.engines),
        result.bench.artifact,
    )
    cells = [[str(a.path), size(a.manifest.size_bytes), short_hash(a.sha256)] for a in made]
    print_table("Files; each has its manifest beside it, <file>.json", ["file", "size", "sha256"], cells)
    training, graph = result.forms["training"], result.forms["ONNX"]
    typer.echo("Next:")
    typer.echo(f"  vexport fuse {training}           # the merge, block by block")
    typer.echo(f"  vexport check {training} {graph}")
    typer.echo("  vexport fuse your_checkpoint.pth && vexport onnx && vexport trt --fp16 && vexport bench")
