"""`vexport check`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vexport.cli.options import FromOpt, JsonOpt
from vexport.cli.render import print_json, print_table, progress
from vexport.errors import EXIT_GATE


def check(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference: a checkpoint or a graph.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What must agree with it.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare on images of this folder.", show_default=False)
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="X", help="Bound of max|a - b| / max|a|; 1e-5 otherwise.", show_default=False),
    ] = None,
    weights_from: FromOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Compare the answers of two artifacts; exit code 3 where they disagree."""
    from vexport.pipeline.check import check_parity

    with progress(as_json) as update:
        update("comparing")
        result = check_parity(a, b, images=images, tolerance=tolerance, weights_from=weights_from)
    parity = result.parity
    if as_json:
        print_json(result.to_json())
        if not parity.passed:
            raise typer.Exit(EXIT_GATE)
    else:
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
