"""Writes the report: the page, Markdown, CSV and pictures, from one document."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vexport.bench.page.document import Document, validate
from vexport.bench.page.figures import make_figures
from vexport.bench.page.html import render_html
from vexport.bench.page.markdown import render_markdown
from vexport.bench.page.png import render_png
from vexport.bench.page.svg import standalone_svg
from vexport.bench.page.tables import write_csv
from vexport.errors import WorkspaceError
from vexport.workspace import hash_file, mapped_os_errors

HTML, MARKDOWN, CSV = "report.html", "report.md", "results.csv"
FIGURES = "figures"
OWNED = "report.files.json"  # what the last report wrote, by hash: that much the next one may replace


def write_report(document: Mapping[str, Any], folder: Path, *, force: bool = False) -> list[Path]:
    """Write everything that people read of a benchmark.

    Args:
        document: The benchmark's JSON document.
        folder: Where to; made where it is missing. Pictures go into `figures` inside it. What an earlier report left
            there is replaced, or removed where this one has no such picture.
        force: Replace files too that no report wrote, or that were changed since.

    Returns:
        What was written, the page first.

    Raises:
        InputError: the document does not fit its schema.
        WorkspaceError: a file that is not a report's is in the way, or the folder cannot be written.
    """
    contents = render_report(validate(document))
    with mapped_os_errors(folder / HTML):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        before = _owned(folder)
        if not force:
            _require_clear(folder, contents, before)
        for name, data in contents.items():
            _replace(folder / name, data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        _replace(folder / OWNED, (json.dumps(hashes, indent=2) + "\n").encode())
        for name in before.keys() - contents.keys():
            path = folder / name
            if path.is_file() and hash_file(path) == before[name]:
                path.unlink()
    return [folder / name for name in contents]


def render_report(document: Document) -> dict[str, bytes]:
    """All files of a report by their names relative to its folder, the page first."""
    figures = make_figures(document)
    texts = {HTML: render_html(document, figures), MARKDOWN: render_markdown(document, figures, FIGURES)}
    contents = {name: text.encode() for name, text in {**texts, CSV: write_csv(document)}.items()}
    for figure in figures:
        contents[f"{FIGURES}/{figure.name}.svg"] = standalone_svg(figure.drawing).encode()
        contents[f"{FIGURES}/{figure.name}.png"] = render_png(figure.drawing)
    return contents


def _owned(folder: Path) -> dict[str, str]:
    """Names inside the folder to hashes, as the last report left them."""
    try:
        found = json.loads((folder / OWNED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    # A name that leads out of the folder was not written by us.
    return {str(name): str(value) for name, value in found.items() if ".." not in Path(name).parts and name[:1] != "/"}


def _require_clear(folder: Path, contents: Mapping[str, bytes], before: Mapping[str, str]) -> None:
    foreign = [
        name
        for name, data in contents.items()
        if (folder / name).exists()
        and hash_file(folder / name) not in (before.get(name), hashlib.sha256(data).hexdigest())
    ]
    if foreign:
        raise WorkspaceError(
            f"{folder / foreign[0]} is in the way: no report wrote it, or it was changed since",
            details=[str(folder / name) for name in foreign[1:]],
            hint="move it, choose another folder, or give --force",
        )


def _replace(target: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=".vexport-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
