"""`vexport inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vexport.cli.options import JsonOpt, TrustOpt
from vexport.cli.render import print_json, print_table, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.inspect import Inspection


def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A checkpoint, a graph or an engine.")],
    trust: TrustOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Show what is in an artifact: its layers with types and cost, where it came from, what was proven of it."""
    from vexport.pipeline.inspect import inspect_artifact

    found = inspect_artifact(artifact, trust=trust)
    if as_json:
        print_json(found.to_json())
    else:
        render(found)


def render(found: Inspection) -> None:
    """The layers, then the facts."""
    text = sum(isinstance(value, str) for value in found.layers[0]) if found.layers else 1
    rows = [[_cell(value) for value in row] for row in found.layers]
    if rows:
        print_table(f"{found.path.name}", list(found.columns), rows, text_columns=text)
    width = max(len(name) for name in (*found.facts, "file"))
    for name, value in found.facts.items():
        typer.echo(f"{name:<{width}}  {_cell(value)}")
    proven = "as its manifest says" if found.known else "no manifest knows it"
    typer.echo(
        f"{'file':<{width}}  {found.path}  {size(found.size_bytes)}  sha256 {short_hash(found.sha256)}, {proven}"
    )
    for note in found.notes:
        remark(f"note: {note}")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
