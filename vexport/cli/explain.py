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
    """How large the maps are, image by image difference to the first network, and what was written."""
    names = result.choice.class_names
    if result.choice.looked_at:
        remark(f"looked at {result.choice.looked_at} images for samples; {result.choice.labelling}")
    for note in result.notes:
        remark(f"note: {note}")
    if result.choice.looked_at == 0:
        rows = [
            [row.image.shown, network.name, names[look.attention.answer], figure(100 * look.attention.probability, 1)]
            for row in result.rows
            for network, look in zip(result.networks, row.looks, strict=True)
        ]
        print_table("Answers", ["image", "network", "answer", "probability %"], rows, text_columns=3)
    layers = {one.name: f"{one.layer.name} {one.layer.height}x{one.layer.width}" for one in result.networks}
    table = []
    for one in result.summaries:
        spreads = [one.measures[name] for name in AREAS]
        cells = [_percent(spread) for spread in spreads]
        if len(result.networks) > 1:
            cells += [_percent(one.differences[name], signed=True) if one.differences else "-" for name in AREAS]
        cells.append(_percent(one.measures["masking_gain"], signed=True))
        cells.append(_percent(one.measures["centre_gain"], signed=True))
        table.append([one.network, layers[one.network], one.group, str(one.images), *cells])
    columns = ["network", "layer and map", "images", "count", "above half %", "effective %"]
    if len(result.networks) > 1:
        columns += ["above half - first", "effective - first"]
    columns += ["hidden - shifted", "hidden - centre"]
    title = f"Areas of the maps of the {_explained(result)} class: mean ± standard deviation"
    print_table(title, columns, table, text_columns=3)
    drops = [look.drop for row in result.rows for look in row.looks if look.drop is not None]
    overlap = f" (they share {sum(drop.overlap for drop in drops) / len(drops):.0%} of their pixels)" if drops else ""
    typer.echo("hidden - shifted: points of probability lost by hiding the fifth of the image that the map shows, less")
    typer.echo(f"those lost by hiding that part shifted by half the image both ways{overlap};")
    typer.echo("hidden - centre: the same, less those lost by hiding as much in the middle of the image. Near 0 they")
    typer.echo("cannot be told apart, which does not prove that the map means nothing")
    typer.echo(f"written: {result.folder / result.files[0]} and {len(result.files) - 1} more file(s) beside it")


def _explained(result: Explanation) -> str:
    return result.explains if result.explains in ("predicted", "true") else f"'{result.explains}'"


def _percent(spread: Spread, *, signed: bool = False) -> str:
    if spread.mean is None:
        return "-"
    mean = round(100 * spread.mean, 1) + 0.0  # no -0.0
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if spread.deviation is None else f"{text} ± {100 * spread.deviation:.1f}"
