"""Documents of earlier benchmarks: read, reported anew, held against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vexport.bench.compare import Comparison, compare_documents
from vexport.errors import InputError
from vexport.workspace import require_file

__all__ = ["Comparison", "compare_documents", "read_document", "read_share", "write_report"]


def read_document(path: Path) -> dict[str, Any]:
    """A benchmark's document.

    Args:
        path: The .json file.

    Raises:
        InputError: it is not one, or of another schema.
    """
    require_file(path, "benchmark's document (bench.json)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no JSON document", details=[str(error)], hint="give a bench.json that `vexport bench` wrote"
        ) from error
    from vexport.bench.page import validate

    try:
        validate(data)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", details=error.details, hint=error.hint) from error
    document: dict[str, Any] = data
    return document


def read_share(text: str) -> float:
    """A share from `5%` or `0.05`.

    Raises:
        InputError: it is neither, or negative.
    """
    stripped = text.strip()
    try:
        value = float(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"--max-regression {text} is no share", hint="give per cent as 5%, or a number as 0.05")
    return value


def write_report(document: Mapping[str, Any], folder: Path, *, force: bool = False) -> tuple[Path, ...]:
    """The report of a document that was measured earlier; see `vexport.bench.page.write_report`."""
    from vexport.bench.page import write_report as write

    return tuple(write(document, folder, force=force))
