"""A picture of an ablation: every seed, mean and spread of each run; beside them the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from vexport.deps import needs
from vexport.pipeline.ablate_table import TableRow

PICTURES = ("svg", "png")
# They stay apart for colour-blind eyes (after Okabe and Ito).
COLOURS = ("#555b66", "#c24e00", "#0b63a8", "#007a5a", "#a0458a", "#7a6400")


def draw_rows(rows: Sequence[TableRow], title: str) -> dict[str, bytes]:
    """Draw the table.

    Args:
        rows: Of the table; at least one with a figure.
        title: Above the picture.

    Returns:
        The picture by file suffix.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with needs("train"):
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: F401  found missing here, not when saving
        from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row.row for row in rows))
    columns = list(dict.fromkeys(row.column for row in rows))
    has_paper = any(row.published is not None for row in rows)
    width = max(4.6, 1.0 + 0.55 * (len(rows) + len(groups)))
    figure = Figure(figsize=(width * (2 if has_paper else 1), 4.6), layout="constrained")
    panels = figure.subplots(1, 2 if has_paper else 1, squeeze=False)[0]
    rows = sorted(rows, key=lambda row: groups.index(row.row))
    places = [float(index + groups.index(row.row)) for index, row in enumerate(rows)]  # a gap after each group
    for row, place in zip(rows, places, strict=True):
        colour = COLOURS[columns.index(row.column) % len(COLOURS)]
        _draw_seeds(panels[0], row, place, colour)
        if has_paper and row.published is not None:
            panels[1].plot([place], [row.published], "D", color=colour, markersize=7)
            _label(panels[1], place, row.published, f"{row.published:.2f}")
    panels[0].set_ylabel("top-1 on the held-out images, %")
    panels[0].set_title("mean and standard deviation; dots: seeds", fontsize=9)
    if has_paper:
        panels[1].set_ylabel("top-1 on ImageNet, %")
        panels[1].set_title("as published: another data set and scale", fontsize=9)
    for axes in panels:
        _finish(axes, rows, places, groups)
    figure.suptitle(title, fontsize=11)
    pictures = {}
    for suffix in PICTURES:
        stream = BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None  # the same figures give the same file
        figure.savefig(stream, format=suffix, dpi=130, metadata=metadata)
        pictures[suffix] = stream.getvalue()
    return pictures


def _draw_seeds(axes: Any, row: TableRow, place: float, colour: str) -> None:
    if row.mean is None:
        axes.annotate("failed" if row.failures else "not run", (place, 0.02), xycoords=("data", "axes fraction"),
                      ha="center", va="bottom", rotation=90, fontsize=8, color=colour)  # fmt: skip
        return
    axes.plot([place + 0.22] * row.seeds, list(row.top1.values()), "o", color=colour, markersize=3.5, alpha=0.6)
    axes.errorbar([place], [row.mean], yerr=[row.std or 0.0], fmt="o", color=colour, capsize=3, markersize=6, lw=1.6)
    _label(axes, place, row.mean + (row.std or 0.0), f"{row.mean:.2f}")


def _label(axes: Any, place: float, value: float, text: str) -> None:
    axes.annotate(text, (place, value), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7.5)


def _finish(axes: Any, rows: Sequence[TableRow], places: Sequence[float], groups: Sequence[str]) -> None:
    axes.set_xticks(list(places), [row.column for row in rows], fontsize=8, rotation=30, ha="right")
    axes.set_xlim(min(places) - 0.7, max(places) + 0.7)
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for group in groups:
        own = [place for place, row in zip(places, rows, strict=True) if row.row == group]
        axes.annotate(group, (sum(own) / len(own), 1.0), xycoords=("data", "axes fraction"), xytext=(0, -2),
                      textcoords="offset points", ha="center", va="top", fontsize=9, color="#59626f")  # fmt: skip
