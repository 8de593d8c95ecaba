"""`vexport onnx`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import (
    DEFAULT_WORKSPACE,
    AssumeSlopeOpt,
    CheckpointArg,
    ForceOpt,
    FromOpt,
    JsonOpt,
    ModelOpt,
    OutputOpt,
    WeightsOpt,
    Workspace,
    WorkspaceOpt,
)
from vexport.cli.render import print_json, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.export import ExportResult


def onnx(
    checkpoint: CheckpointArg = None,
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    weights_from: FromOpt = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Fix the batch size; open otherwise.", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PX",
            help="Height and width of the input; the checkpoint's otherwise.",
            show_default=False,
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="Opset; 18 otherwise.", show_default=False)] = None,
    output: OutputOpt = None,
    assume_slope_1: AssumeSlopeOpt = False,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Write the plain ONNX graph of a checkpoint or a baseline, proven against the network; fuses first when needed."""
    from vexport.pipeline.export import export_graph

    with progress(as_json) as update:
        update("loading")
        result = export_graph(
            checkpoint,
            workspace=Workspace(workspace),
            model=model,
            weights=weights,
            weights_from=weights_from,
            batch=batch,
            size=image_size,
            opset=opset,
            output=output,
            assume_slope_1=assume_slope_1,
            force=force,
            on_step=update,
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: ExportResult) -> None:
    """The operators, the proof and the file."""
    graph = result.artifact
    remark(f"weights: {result.took}")
    if result.fused is not None:
        state = "was up to date" if result.fused.up_to_date else "written first"
        remark(f"deployed checkpoint {state}: {result.fused.artifact.path}")
    for note in result.notes:
        remark(f"note: {note}")
    operators = ", ".join(f"{count} {name}" for name, count in graph.facts["operators"].items())
    typer.echo(f"{graph.model}: {graph.facts['nodes']} nodes: {operators}")
    batch = graph.facts["batch"] or "any"
    side = graph.facts["preprocessing"]["input_size"]
    typer.echo(f"input {batch}x{'x'.join(str(s) for s in side)}, opset {graph.facts['opset']}, float32")
    for entry in graph.manifest.parity:
        typer.echo(
            f"against PyTorch on {entry['images']} {entry['inputs']} images: error {entry['max_rel']:.1e} "
            f"(tolerance {entry['tolerance']:.0e}), top-1 agreement {entry['top1_agreement']:.0%}"
        )
    state = "up to date: " if result.up_to_date else ""
    typer.echo(f"{state}{graph.path}  {size(graph.manifest.size_bytes)}  sha256 {short_hash(graph.sha256)}")
