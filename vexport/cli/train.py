"""`vexport train`"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import DEFAULT_WORKSPACE, ForceOpt, JsonOpt, Workspace, WorkspaceOpt
from vexport.cli.render import print_json, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.train import TrainResult


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or the path of a .yaml file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the images are: a folder with train/ and val/, wds/DIR, hfds/NAME. Short for data.source.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override a field, as optimizer.lr=1e-3.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the workspace's last checkpoint; start anew where there is none."),
    ] = False,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Train by a recipe, deeply or for INT8; writes the best and the last checkpoint. Needs the extra `train`."""
    from vexport.pipeline.epochs import describe_epoch, epoch_share
    from vexport.pipeline.train import train_recipe

    chosen = [*(overrides or ()), *([f"data.source={_quoted(data)}"] if data is not None else [])]
    # Where there is no bar, as in a cluster's log, each epoch is a line.
    lines = sys.stderr is not None and not sys.stderr.isatty() and not as_json
    with progress(as_json) as update:
        update("loading")

        def on_progress(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
            text = describe_epoch(epoch, epochs, metrics)
            update(text, epoch_share(epoch, epochs, metrics))
            if lines and "top1" in metrics:
                remark(text)

        result = train_recipe(
            recipe,
            workspace=Workspace(workspace),
            overrides=chosen,
            resume=resume,
            force=force,
            on_progress=on_progress,
            tell=remark,
        )
    from vexport.train.ranks import is_first_process

    if result is None or not is_first_process():
        return
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def _quoted(path: str) -> str:
    """A path as a YAML string, whatever is in it."""
    return "'" + path.replace("'", "''") + "'"


def render(result: TrainResult) -> None:
    """Accuracy and files."""
    if result.resumed_from is not None:
        remark(f"went on after epoch {result.resumed_from}")
    if not result.up_to_date:
        remark(f"trained in {result.seconds:.0f} s")
    if result.damaged:
        remark(f"skipped {len(result.damaged)} damaged images: {', '.join(result.damaged[:8])}")
    state = "up to date: " if result.up_to_date else ""
    for checkpoint in (result.last, result.best):
        facts = checkpoint.facts
        typer.echo(
            f"{state}{checkpoint.path}  epoch {facts['epoch']}, slope {facts['slope']:g}, "
            f"held-out {facts['correct']}/{facts['total']} ({facts['top1']:.1f} %)  "
            f"{size(checkpoint.manifest.size_bytes)}  sha256 {short_hash(checkpoint.sha256)}"
        )
    if result.curves is not None:
        typer.echo(f"log: {result.log}, curves: {result.curves}")
