"""`vexport explain`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vexport.cli.options import DEFAULT_WORKSPACE, ForceOpt, FromOpt, JsonOpt, Workspace, WorkspaceOpt
from vexport.cli.render import figure, print_json, print_table, progress, remark

if TYPE_CHECKING:
    from vexport.pipeline.explain import Explanation
    from vexport.pipeline.explain_looks import Spread

AREAS = ("area_above_half", "effective_area")
HIDDEN = "hidden - other's map"
# The first network chose the samples.
_GROUPS = {"given": "given", "correct": "right by [1]", "misclassified": "wrong by [1]"}


def explain(
    network: Annotated[
        str,
        typer.Argument(
            metavar="CKPT_OR_MODEL",
            help="A checkpoint in training or deployed form; or a network's name, with --weights.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Image files; or none, with --data.", show_default=False),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CKPT_OR_MODEL", help="Another network on the same images; repeat it.", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images by class: takes some that the network answers rightly and some wrongly.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="With --data: so many of each are drawn.")] = 4,
    measure: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With --data: so many of each are measured; those drawn otherwise.", show_default=False
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Where the maps are made; the last map larger than 1x1 otherwise. Once for all networks, or once for "
            "each; `default` is a network's own.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Whose maps: predicted (each network's answer), true, or a class by name or number.",
        ),
    ] = "predicted",
    seed: Annotated[int, typer.Option(metavar="N", help="With --data: of the choice of images.")] = 0,
    weights: Annotated[
        Literal["pretrained", "random"] | None,
        typer.Option(help="Of networks given by name.", show_default=False),
    ] = None,
    weights_from: FromOpt = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder to write; <name>.explain in the workspace otherwise.", show_default=False
        ),
    ] = None,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Show where networks look: GradCAM++ maps side by side, and how large they are."""
    from vexport.pipeline.explain import explain as run

    with progress(as_json) as update:
        result = run(
            network,
            images or (),
            workspace=Workspace(workspace),
            beside=beside or (),
            data=data,
            samples=samples,
            measured=measure,
            layers=layer or (),
            label=label,
            seed=seed,
            weights=weights,
            weights_from=weights_from,
            out=out,
            force=force,
            on_step=update,
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result)


def render(result: Explanation) -> None:
    """How large the maps are, what hiding them costs, and what was written."""
    names = result.choice.class_names
    if result.choice.looked_at:
        remark(f"looked at {result.choice.looked_at} images for samples; {result.choice.labelling}")
    for note in result.notes:
        remark(f"note: {note}")
    # Names are long: the tables have numbers.
    numbers = {network.name: f"[{number}]" for number, network in enumerate(result.networks, 1)}
    for network in result.networks:
        layer = network.layer
        typer.echo(f"{numbers[network.name]} {network.name}: {layer.name}, {layer.height}x{layer.width}")
    if result.choice.looked_at == 0:
        rows = [
            [row.image.shown, number, names[look.attention.answer], figure(100 * look.attention.probability, 1)]
            for row in result.rows
            for number, look in zip(numbers.values(), row.looks, strict=True)
        ]
        print_table("Answers", ["image", "network", "answer", "probability %"], rows, text_columns=3)
    several = len(result.networks) > 1
    table = []
    for one in result.summaries:
        cells = [_percent(one.measures[name]) for name in AREAS]
        if several:
            cells += [_percent(one.differences[name], signed=True) if one.differences else "-" for name in AREAS]
        cells.append(_percent(one.measures["probability_lost_difference"], signed=True))
        table.append([numbers[one.network], _GROUPS[one.group], str(one.images), *cells])
    columns = ["network", "images", "count", "above half", "effective"]
    if several:
        columns += ["above half - [1]", "effective - [1]"]
    columns.append(HIDDEN)
    title = f"Maps of the {_explained(result)} class, in %: mean ± standard deviation"
    print_table(title, columns, table, text_columns=2)
    typer.echo(
        f"{HIDDEN}: points of probability lost by hiding the fifth of the image that its own map shows, less those"
    )
    typer.echo("lost by hiding as much where another image's map is largest. Near 0 they cannot be told apart.")
    typer.echo(f"written: {result.folder / result.files[0]} and {len(result.files) - 1} more file(s) beside it")


def _explained(result: Explanation) -> str:
    return result.explains if result.explains in ("predicted", "true") else f"'{result.explains}'"


def _percent(spread: Spread, *, signed: bool = False) -> str:
    if spread.mean is None:
        return "-"
    mean = round(100 * spread.mean, 1) + 0.0  # no -0.0
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"
