"""Results for people: tables on standard output, progress and remarks on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import Progress


class Update(Protocol):
    """Tells a progress bar what is going on, and the share that is done where it is known."""

    def __call__(self, text: str, share: float | None = None) -> None: ...


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, indent=2))


def remark(text: str) -> None:
    """A line for people, on standard error."""
    # Not by typer.echo: that writes beside a progress bar, which lets `print` through and moves below.
    # A terminal that is gone raises: nobody reads this then, and what is going on should end as it would.
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """A table on standard output.

    Args:
        title: Above it.
        columns: Headers.
        rows: Cells.
        text_columns: How many columns from the left hold text; the others are aligned right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, soft_wrap=True)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@contextmanager
def progress(as_json: bool = False) -> Iterator[Update]:
    """A progress bar on standard error while the block runs; none where that is not a terminal."""
    # A closed standard error (2>&-) is None.
    if as_json or sys.stderr is None or not sys.stderr.isatty():
        yield lambda text, share=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    try:
        yield _updater(bar)
    finally:
        with contextlib.suppress(OSError):  # as in `remark`
            bar.stop()


def _updater(bar: Progress) -> Update:
    task = bar.add_task("starting", total=None)

    def update(text: str, share: float | None = None) -> None:
        bar.update(task, description=text, total=None if share is None else 1.0, completed=share or 0.0)

    return update


def size(count: int) -> str:
    """Bytes in a unit that reads well."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def short_hash(sha256: str | None) -> str:
    """The first digits of a hash."""
    return sha256[:12] if sha256 else "-"


def figure(value: float | None, digits: int = 2) -> str:
    """A number, or a dash."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
