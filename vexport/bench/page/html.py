"""The report as one HTML page that fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

import yaml

from vexport.bench.page.answers import Answer, Kind, answers, group_verdicts, headline
from vexport.bench.page.clocks import clock_headings, clock_lines, clocks
from vexport.bench.page.document import Document, GroupPart, RowPart
from vexport.bench.page.figures import Figure
from vexport.bench.page.method import facts, method
from vexport.bench.page.style import SCRIPT, policy, style
from vexport.bench.page.svg import inline_svg
from vexport.bench.page.tables import (
    DETAILS,
    LAYERS,
    PUBLISHED,
    Column,
    columns,
    details,
    failure,
    layer_cells,
    layer_sums,
    worst_layers,
)
from vexport.bench.page.words import (
    INCOMPLETE,
    clean,
    last_words,
    notes,
    repeat_command,
    throughputs,
    title,
    weights_note,
)

_NAME = re.compile(r"\b[A-Za-z]\w{0,19}(?:-[\w.]{0,9}\w){1,2}")

_BADGES: dict[Kind, str] = {
    "faster": "▲ Yes, faster",
    "slower": "▼ No, slower",
    "undecided": "= Not to be told apart",
    "out of reach": "– None is accurate enough",
    "unknown": "? Not known",
    "failed": "✕ Not measured",
}


def render_html(document: Document, figures: Sequence[Figure]) -> str:
    """The whole page.

    Args:
        document: What was measured.
        figures: Its pictures, which become part of the page.
    """
    groups = "".join(_group(document, group, index, figures) for index, group in enumerate(document.groups))
    whole = "".join(_figure(figure) for figure in figures if figure.group is None and figure.name != "clocks")
    name = _text(title(document))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy())}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="vexport {_text(document.version or "")}">\n'
        f"<title>{name}</title>\n<style>{style()}</style>\n</head>\n<body>\n"
        f"{_header(document)}\n<main>\n{_clocks(document, figures)}{_answers(document)}{_navigation(document)}{groups}"
        + (f'<section aria-labelledby="depth"><h2 id="depth">All networks</h2>{whole}</section>\n' if whole else "")
        + f"{_method(document)}{_environment(document)}{_repeat(document)}</main>\n"
        f"<footer>Made by vexport {_text(document.version or '')} from its benchmark's JSON document, which holds "
        f"every call. This page loads nothing.</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _header(document: Document) -> str:
    said = headline(document)
    over = " · ".join(filter(None, ("vexport benchmark", (document.created or "")[:10], _size(document))))
    parts = [f'<p class="over">{_text(over)}</p><h1>{_unbroken(title(document))}</h1>']
    if said:
        look = {"Yes.": "faster", "No.": "slower"}.get(said.word, "open")
        lines = "".join(f"<span>{_unbroken(line)}</span> " for line in (*said.lines, *said.take))
        parts.append(f'<p class="answer {look}"><strong>{_text(said.word)}</strong> {lines}</p>')
    if not document.complete:
        parts.append(f'<p class="notice">{INCOMPLETE}</p>')
    note = weights_note(document)
    if note:
        parts.append(f"<p>{_unbroken(note)}</p>")
    return f"<header>{''.join(parts)}</header>"


def _size(document: Document) -> str:
    rows = [row for group in document.groups for row in group.rows]
    failed = sum(row.error is not None for row in rows)
    return f"{len(rows)} measurements" + (f", {failed} failed" if failed else "")


def _clocks(document: Document, figures: Sequence[Figure]) -> str:
    """The paper's own ratio by each of its clocks, beside ours."""
    found = clocks(document)
    if found is None:
        return ""
    table = _plain_table("Clock by clock", clock_headings(found), clock_lines(found), left=1)
    drawn = "".join(_figure(figure) for figure in figures if figure.name == "clocks")
    return (
        '<section aria-labelledby="clocks"><h2 id="clocks">Clock by clock</h2>'
        f"<p>{_unbroken(found.text)}</p>{table}{drawn}</section>\n"
    )


def _answers(document: Document) -> str:
    parts = []
    for group in document.groups:
        cards = "".join(_card(answer) for answer in answers(document, group))
        if cards:
            parts.append(f'<h3>{_text(group.title)}</h3><ul class="cards">{cards}</ul>')
    advice = f"<h3>What to take instead</h3>{_list(document.advice)}" if document.advice else ""
    if said := throughputs(document.throughput):
        advice += f"<h3>Throughput</h3>{_list(said)}"
    if not parts and not advice:
        return ""
    head = '<section aria-labelledby="answer"><h2 id="answer">The answer, rival by rival</h2>'
    return f"{head}{''.join(parts)}{advice}</section>\n"


def _card(answer: Answer) -> str:
    look = answer.kind if answer.kind in ("faster", "slower") else "open"
    doubt = f'<span class="doubt">Unstable: {_text(", ".join(answer.doubtful))}</span>' if answer.doubtful else ""
    return (
        f'<li class="{look}"><b>Faster than {_unbroken(answer.rival.name)}?</b>'
        f'<span class="badge">{_BADGES[answer.kind]}</span>{_unbroken(answer.text)}{doubt}</li>'
    )


def _navigation(document: Document) -> str:
    links = [(f"group-{index + 1}", group.title) for index, group in enumerate(document.groups)]
    links += [("method", "How it was measured"), ("environment", "Environment")]
    entries = "".join(f'<li><a href="#{target}">{_text(name)}</a></li>' for target, name in links)
    return f'<nav aria-label="Contents"><ul>{entries}</ul></nav>\n'


def _group(document: Document, group: GroupPart, index: int, figures: Sequence[Figure]) -> str:
    name = f"group-{index + 1}"
    verdicts = _list(group_verdicts(document, group))
    head = f'<section aria-labelledby="{name}"><h2 id="{name}">{_text(group.title)}</h2>{verdicts}'
    if not group.rows:
        return f"{head}<p>Nothing was measured in this group.</p></section>\n"
    worst = [layer_cells(row, layer) for row, layer in worst_layers(group)]
    parts = [head, _main_table(document, group)]
    ran = _plain_table("What ran", DETAILS, [details(row) for row in group.rows], left=3)
    parts.append(_list([*notes(group), *last_words(group)]))
    parts.append(_folded("What ran: files, hashes, sizes, calls", ran))
    parts += [_figure(figure) for figure in figures if figure.group == index]
    sums = _list(layer_sums(group))
    if worst:
        layers = _plain_table("Layers that lose most time", LAYERS, worst, left=3)
        parts.append(_folded("Layers that lose most time against their bounds", layers + sums))
    elif sums:
        parts.append(_folded("Times of the layers", sums))
    if group.conditions:
        parts.append(_folded("The machine meanwhile", _facts_table("Conditions", facts(group.conditions))))
    return f"{''.join(parts)}</section>\n"


def _main_table(document: Document, group: GroupPart) -> str:
    shown = columns(document, group)
    published = sum(column.published for column in shown)
    top = ""
    if published:
        own = f'<th colspan="{len(shown) - published - 2}" scope="colgroup" class="t">Measured here</th>'
        other = f'<th colspan="{published}" scope="colgroup" class="pub">Published by the authors</th>'
        top = f'<tr><td colspan="2"></td>{own}{other}</tr>'
    heads = "".join(f'<th scope="col" class="{_look(column)}">{_unbroken(_heading(column))}</th>' for column in shown)
    lines = "".join(_row(document, row, shown) for row in group.rows)
    return _boxed(
        f"Figures, {group.title}",
        f"<table data-sort><thead>{top}<tr>{heads}</tr></thead><tbody>{lines}</tbody></table>",
    )


def _heading(column: Column) -> str:
    """The row above says what is published."""
    return column.heading.removeprefix(PUBLISHED)


def _look(column: Column) -> str:
    return "pub" if column.published else "n" if column.numeric else "t"


def _row(document: Document, row: RowPart, shown: Sequence[Column]) -> str:
    why, cells, place = failure(row), [], 0
    while place < len(shown):
        column = shown[place]
        if place == 0:
            cells.append(f'<th scope="row" data-c="0" data-v="{_text(row.name)}">{_text(column.text(row))}</th>')
        elif why and column.needs_latency:
            count = sum(other.needs_latency for other in shown[place:])
            look = "fail" if row.error is not None else "t"
            cells.append(f'<td class="{look}" colspan="{count}">{_text(why)}</td>')
            place += count - 1
        else:
            cells.append(_cell(row, column, place))
        place += 1
    return f"<tr>{''.join(cells)}</tr>"


def _cell(row: RowPart, column: Column, place: int) -> str:
    text, small = column.text(row), column.small(row)
    look = f"{_look(column)} w" if small and not column.numeric else _look(column)
    value = column.sort(row) if column.sort else text
    inner = f'<span class="unstable">{text}</span>' if not column.numeric and text == "unstable" else _text(text)
    if small:
        word = next((word for word in ("faster", "slower") if column.numeric and small.endswith(f", {word}")), "")
        before = small.removesuffix(f", {word}") if word else small
        before = before.replace(" to ", "\u00a0to\u00a0")  # an interval stays on one line
        inner += f"<small>{_text(before)}</small>" + (f'<small class="{word}">{word}</small>' if word else "")
    return f'<td class="{look}" data-c="{place}" data-v="{"" if value is None else _text(str(value))}">{inner}</td>'


def _plain_table(name: str, headings: Sequence[str], lines: Iterable[Sequence[str]], *, left: int) -> str:
    """A table whose first `left` columns are words."""
    heads = "".join(
        f'<th scope="col" class="{"t" if place < left else "n"}">{_text(text)}</th>'
        for place, text in enumerate(headings)
    )
    rows = "".join(
        "<tr>" + "".join(
            f'<th scope="row">{_text(text)}</th>' if place == 0
            else f'<td class="{"t" if place < left else "n"}">{_text(text)}</td>'
            for place, text in enumerate(line)
        ) + "</tr>"
        for line in lines
    )  # fmt: skip
    return _boxed(name, f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>")


def _facts_table(name: str, values: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{_text(key)}</th><td>{_text(value)}</td></tr>' for key, value in values)
    return _boxed(name, f'<table class="facts"><tbody>{rows}</tbody></table>') if rows else ""


def _boxed(name: str, table: str) -> str:
    """A table that scrolls inside its box where the screen is narrow, by keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{_text(name)}" tabindex="0">{table}</div>'


def _folded(name: str, content: str) -> str:
    return f"<details><summary>{_text(name)}</summary>{content}</details>"


def _figure(figure: Figure) -> str:
    return (
        f'<figure><h3>{_text(figure.heading)}</h3><div class="plot" role="region" tabindex="0" '
        f'aria-label="{_text(figure.heading)}, picture">{inline_svg(figure.drawing)}</div>'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _method(document: Document) -> str:
    settings = _facts_table("Settings", facts(document.settings, skip=("runners",)))
    return (
        '<section aria-labelledby="method"><h2 id="method">How it was measured</h2>'
        f"{_list(method(document))}{_folded('All settings', settings) if settings else ''}</section>\n"
    )


def _environment(document: Document) -> str:
    table = _facts_table("Environment", facts(document.environment)) or "<p>Nothing was told.</p>"
    return f'<section aria-labelledby="environment"><h2 id="environment">Environment</h2>{table}</section>\n'


def _repeat(document: Document) -> str:
    parts = []
    if document.command:
        parts.append(f"<pre><code>{_text(repeat_command(document.command))}</code></pre>")
    if document.recipe:
        recipe = yaml.safe_dump(document.recipe, sort_keys=False, allow_unicode=True).rstrip()
        parts.append(_folded("The recipe", f"<pre><code>{_text(recipe)}</code></pre>"))
    if not parts:
        return ""
    return f'<section aria-labelledby="repeat"><h2 id="repeat">To repeat</h2>{"".join(parts)}</section>\n'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_unbroken(line)}</li>' for line in lines)}</ul>" if lines else ""


def _unbroken(text: str) -> str:
    """Escaped; short names like ResNet-50 stay on one line."""
    return _NAME.sub(r'<span class="nb">\g<0></span>', _text(text))


def _text(text: str) -> str:
    """Escaped, without control characters."""
    return escape(clean(text))
