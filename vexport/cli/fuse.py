"""`vexport fuse`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from vexport.cli.render import print_json, print_table, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.fuse import FuseResult


def fuse(
    checkpoint: CheckpointArg = None,
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    weights_from: FromOpt = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Prove it on real images of this folder too.", show_default=False),
    ] = None,
    file_format: Annotated[
        Literal["safetensors", "pth"], typer.Option("--format", help="pth is the reference's deployed format.")
    ] = "safetensors",
    output: OutputOpt = None,
    assume_slope_1: AssumeSlopeOpt = False,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Merge the training form of a checkpoint into the deployed network, and prove it."""
    from vexport.pipeline.fuse import fuse_checkpoint

    done: list[str] = []
    with progress(as_json) as update:
        update("loading")

        def on_block(name: str, count: int) -> None:
            done.append(name)
            update(f"merged {name}", len(done) / count)

        result = fuse_checkpoint(
            checkpoint,
            workspace=Workspace(workspace),
            model=model,
            weights=weights,
            weights_from=weights_from,
            images=images,
            file_format=file_format,
            output=output,
            assume_slope_1=assume_slope_1,
            force=force,
            on_block=on_block,
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: FuseResult) -> None:
    """The blocks, the proof and the file."""
    artifact = result.artifact
    remark(f"weights: {result.took}")
    for note in result.notes:
        remark(f"note: {note}")
    blocks = artifact.facts["blocks"]
    if blocks:
        cells = [_block_row(block) for block in blocks]
        columns = ["block", "merged weight", "error", "chained", "as float32", "weights before", "after"]
        print_table(
            f"{artifact.model}: relative error against the training form, float64", columns, cells, text_columns=2
        )
    for entry in artifact.manifest.parity:
        kind = "real" if entry["inputs"] == "images" else entry["inputs"]
        exact, stored = entry["float64"], entry["stored_float32"]
        typer.echo(
            f"logits on {entry['images']} {kind} image(s): error {exact['error']:.1e} merged "
            f"(tolerance {exact['tolerance']:.0e}), {stored['error']:.1e} stored as float32 ({stored['tolerance']:.0e})"
        )
    state = "up to date: " if result.up_to_date else ""
    typer.echo(f"{state}{artifact.path}  {size(artifact.manifest.size_bytes)}  sha256 {short_hash(artifact.sha256)}")


def _block_row(block: Mapping[str, Any]) -> list[str]:
    """A block's line; what has no weights of its own, as the logits, has errors only up to there."""
    if not block["shape"]:
        return [block["name"], "-", "-", f"{block['chained']:.1e}", f"{block['stored']:.1e}", "-", "-"]
    return [
        block["name"],
        "x".join(str(side) for side in block["shape"]),
        f"{block['error']:.1e}",
        f"{block['chained']:.1e}",
        f"{block['stored']:.1e}",
        *(f"{block[key][0]:+.3f} {block[key][1]:+.3f}" for key in ("range_before", "range_after")),
    ]
