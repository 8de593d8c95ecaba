"""The report as Markdown, with the pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import yaml

from vexport.bench.page.answers import answers, group_verdicts, headline, with_doubt
from vexport.bench.page.clocks import clock_headings, clock_lines, clocks
from vexport.bench.page.document import Document, GroupPart
from vexport.bench.page.figures import Figure
from vexport.bench.page.method import facts, method
from vexport.bench.page.tables import DETAILS, LAYERS, columns, details, failure, layer_cells, layer_sums, worst_layers
from vexport.bench.page.words import (
    INCOMPLETE,
    UNKNOWN,
    clean,
    last_words,
    notes,
    repeat_command,
    throughputs,
    title,
    weights_note,
)

_SPECIAL = re.compile(r"([\\`*\[\]~|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def render_markdown(document: Document, figures: Sequence[Figure], folder: str = "figures") -> str:
    """The whole report.

    Args:
        document: What was measured.
        figures: Its pictures, which lie in `folder` as PNG and SVG.
        folder: Relative to the report.
    """
    said = headline(document)
    parts = [f"# {_text(title(document))}"]
    if said:
        parts += [f"**{said.word}**", _list((*said.lines, *said.take))]
    if not document.complete:
        parts.append(f"**{INCOMPLETE}**")
    note = weights_note(document)
    parts += [_text(note)] if note else []
    parts += _clocks(document, figures, folder)
    parts += _answers(document)
    if document.advice:
        parts += ["## What to take instead", _list(document.advice)]
    if rates := throughputs(document.throughput):
        parts += ["## Throughput", _list(rates)]
    for index, group in enumerate(document.groups):
        parts += _group(document, group)
        parts += [_figure(figure, folder) for figure in figures if figure.group == index]
    whole = [_figure(figure, folder) for figure in figures if figure.group is None and figure.name != "clocks"]
    parts += [*whole, "## How it was measured", _list(method(document))]
    parts += ["## Environment", _table(("Fact", "Value"), facts(document.environment))]
    parts += ["## Settings", _table(("Setting", "Value"), facts(document.settings, skip=("runners",)))]
    parts += _repeat(document)
    return "\n\n".join(part for part in parts if part) + "\n"


def _clocks(document: Document, figures: Sequence[Figure], folder: str) -> list[str]:
    found = clocks(document)
    if found is None:
        return []
    drawn = [_figure(figure, folder) for figure in figures if figure.name == "clocks"]
    return ["## Clock by clock", _text(found.text), _table(clock_headings(found), clock_lines(found)), *drawn]


def _answers(document: Document) -> list[str]:
    parts = []
    for group in document.groups:
        lines = [f"**{answer.kind}**: {_text(with_doubt(answer))}" for answer in answers(document, group)]
        if lines:
            parts += [f"### {_text(group.title)}", "\n".join(f"- {line}" for line in lines)]
    return ["## The answer", *parts] if parts else []


def _group(document: Document, group: GroupPart) -> list[str]:
    shown = columns(document, group)
    lines = []
    for row in group.rows:
        why, cells = failure(row), []
        for column in shown:
            if why and column.needs_latency:
                cells.append(why if column.heading.startswith("Median") else UNKNOWN)
            else:
                small = column.small(row)
                cells.append(f"{column.text(row)} ({small})" if small else column.text(row))
        lines.append(cells)
    worst = [layer_cells(row, layer) for row, layer in worst_layers(group)]
    return [
        f"## {_text(group.title)}",
        _list(group_verdicts(document, group)),
        _table([column.heading for column in shown], lines) if lines else "Nothing was measured in this group.",
        _list([*notes(group), *last_words(group)]),
        *(["What ran:", _table(DETAILS, [details(row) for row in group.rows])] if lines else []),
        *(["Layers that lose most time against their bounds:", _table(LAYERS, worst)] if worst else []),
        _list(layer_sums(group)),
    ]


def _figure(figure: Figure, folder: str) -> str:
    path, drawing = f"{folder}/{figure.name}", figure.drawing
    return (
        f"### {figure.heading}\n\n[![{_text(drawing.title)}. {_text(drawing.description)}]({path}.png)]({path}.svg)\n\n"
        f"{_text(figure.caption)}"
    ).rstrip()


def _repeat(document: Document) -> list[str]:
    parts = ["## To repeat"]
    if document.command:
        parts.append(_fenced(repeat_command(document.command), "sh"))
    if document.recipe:
        parts.append(_fenced(yaml.safe_dump(document.recipe, sort_keys=False, allow_unicode=True).rstrip(), "yaml"))
    return parts if len(parts) > 1 else []


def _fenced(text: str, language: str) -> str:
    """A block whose fence is longer than any inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{clean(text)}\n{fence}"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in row)} |" for row in rows)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _text(text: str) -> str:
    """One line in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(clean(text).split()).translate(_ENTITIES))
