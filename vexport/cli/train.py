"""`vexport train`"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import DEFAULT_WORKSPACE, ForceOpt, JsonOpt, Workspace, WorkspaceOpt
from vexport.cli.render import describe_epoch, print_json, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.train import TrainResult


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or the path of a .yaml file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override a field, as optimizer.lr=1e-3.", show_default=False
        ),
    ] = None,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Train by a recipe, with deep training; writes the best and the last checkpoint. Needs the extra `train`."""
    from vexport.pipeline.train import train_recipe

    with progress(as_json) as update:
        update("loading")

        def on_progress(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
            update(describe_epoch(epoch, epochs, metrics), epoch / epochs)

        result = train_recipe(
            recipe, workspace=Workspace(workspace), overrides=overrides or (), force=force, on_progress=on_progress
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: TrainResult) -> None:
    """Accuracy and files."""
    if result.resumed_from:
        remark(f"went on after epoch {result.resumed_from}")
    if not result.up_to_date:
        remark(f"trained in {result.seconds:.0f} s")
    state = "up to date: " if result.up_to_date else ""
    for checkpoint in (result.last, result.best):
        facts = checkpoint.facts
        typer.echo(
            f"{state}{checkpoint.path}  epoch {facts['epoch']}, slope {facts['slope']:g}, "
            f"held-out {facts['correct']}/{facts['total']} ({facts['top1']:.1f} %)  "
            f"{size(checkpoint.manifest.size_bytes)}  sha256 {short_hash(checkpoint.sha256)}"
        )
