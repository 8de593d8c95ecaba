"""A report as its readers see it: the page, its text, the Markdown and the CSV of a document."""

from __future__ import annotations

import csv
import io
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

from vexport.bench.page import validate
from vexport.bench.page.figures import make_figures
from vexport.bench.page.html import render_html
from vexport.bench.page.markdown import render_markdown
from vexport.bench.page.tables import write_csv

Doc = dict[str, Any]
VOID = {"meta", "br", "hr", "img", "input", "link", "base", "source", "embed", "col", "wbr"}


def at(document: Doc, place: int) -> Doc:
    row: Doc = document["groups"][0]["rows"][place]
    return row


def small(document: Doc, rows: int = 2) -> Doc:
    """One group of few rows, so that pictures are few."""
    document["groups"] = document["groups"][:1]
    document["groups"][0]["rows"] = document["groups"][0]["rows"][:rows]
    return document


def page_of(document: Doc) -> str:
    typed = validate(document)
    return render_html(typed, make_figures(typed))


def text_of(document: Doc) -> str:
    """The page without its tags."""
    return unescape(re.sub("<[^>]*>", "", page_of(document)))


def markdown_of(document: Doc) -> str:
    typed = validate(document)
    return render_markdown(typed, make_figures(typed))


def csv_of(document: Doc) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(write_csv(validate(document)))))


class Walk(HTMLParser):
    """Tags, attributes and texts; every tag that is opened must be closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} says something twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
        if {"td", "th"} & set(self.open):
            between = " " if self.open[-1] == "small" else ""
            self.tables[-1][-1][-1] += between + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "\n".join(text for texts in self.texts.values() for text in texts)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, unescaped."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
            inside = True
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        plain = [re.sub(r"\\([\\`*\[\]~|_])", r"\1", unescape(cell.strip())) for cell in cells]
        if set("".join(plain)) != {"-"}:
            tables[-1].append(plain)
    return tables


def result_tables(document: Doc) -> list[list[list[str]]]:
    """Cells of the Markdown's tables of networks, one a group."""
    return [table for table in markdown_tables(markdown_of(document)) if table[0][:2] == ["Network", "Top-1"]]
