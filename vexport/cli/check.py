"""`vexport check`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vexport.cli.options import FromOpt, JsonOpt, ModelOpt, TrustOpt
from vexport.cli.render import print_json, print_table, progress, remark
from vexport.errors import EXIT_GATE


def check(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference: a checkpoint, a graph or an engine.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What must agree with it.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare on images of this folder.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Bound of max|a - b| / max|a|; that of the coarser precision otherwise.",
            show_default=False,
        ),
    ] = None,
    weights_from: FromOpt = None,
    model: ModelOpt = None,
    layers: Annotated[bool, typer.Option("--layers", help="Layer by layer too, for graphs and engines.")] = False,
    trust: TrustOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Compare the answers of two artifacts; exit code 3 where they disagree."""
    from vexport.pipeline.check import check_parity

    with progress(as_json) as update:
        update("comparing")
        result = check_parity(
            a,
            b,
            images=images,
            tolerance=tolerance,
            weights_from=weights_from,
            model=model,
            layers=layers,
            trust=trust,
        )
    parity = result.parity
    if as_json:
        print_json(result.to_json())
        if not parity.passed:
            raise typer.Exit(EXIT_GATE)
    else:
        for name in result.proven:
            remark(f"{name} is proven against its graph now, for the first time; its manifest says so")
        for text in result.unproven:
            remark(f"note: {text}")
        if result.layers is not None:
            rows = [
                [
                    one.tensor[-60:],
                    one.operator,
                    "x".join(map(str, one.shape)),
                    f"{one.max_rel:.2e}",
                    f"{one.cosine:.9f}",
                ]
                for one in result.layers
            ]
            print_table("Layer by layer", ["tensor", "operator", "shape", "relative", "cosine"], rows, text_columns=3)
        cells = [
            [
                str(part.images),
                f"{part.max_abs:.2e}",
                f"{part.max_rel:.2e}",
                f"{part.cosine:.9f}",
                f"{part.top1_agreement:.0%}",
            ]
            for part in (*parity.batches, parity)
        ]
        title = (
            f"{b.name} ({result.backends[1]}) against {a.name} ({result.backends[0]}), tolerance {parity.tolerance:.0e}"
        )
        print_table(title, ["images", "max|a-b|", "relative", "cosine", "top-1 agrees"], cells, text_columns=0)
    result.require_passed()
    if not as_json:
        typer.echo("they agree")
