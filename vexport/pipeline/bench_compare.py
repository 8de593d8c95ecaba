"""Documents of earlier benchmarks: read, reported anew, held against each other.

A document of the schema may lack fields that came later. They are filled with what the schema says, with the paper's
figures of the networks that it names, and with the conclusions of today.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vexport.bench.advice import conclude
from vexport.bench.compare import Comparison, compare_documents
from vexport.bench.report import published_clock
from vexport.errors import InputError
from vexport.workspace import require_file

__all__ = ["Comparison", "compare_documents", "read_document", "read_share", "write_report"]


def read_document(path: Path) -> dict[str, Any]:
    """A benchmark's document.

    Args:
        path: The .json file.

    Returns:
        With every field of the schema; what the file says stays as it is, but for the advice, which is drawn anew.

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
        typed = validate(data)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", details=error.details, hint=error.hint) from error
    return _complete(data, typed.model_dump(mode="json", by_alias=True))


def _complete(data: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """The document with all fields, those of `full` where it has none."""
    groups = []
    for group, full_group in zip(data.get("groups", ()), full["groups"], strict=True):
        shared = {key: group[key] for key in ("backend", "precision", "batch", "input_size")}
        pairs = zip(group.get("rows", ()), full_group["rows"], strict=True)
        rows = [_with_published({**full_row, "label": row["network"], **shared, **row}) for row, full_row in pairs]
        groups.append({**full_group, **group, "rows": rows})
    return {**full, **data, **conclude(groups)}


def _with_published(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a published network, with the paper's latencies by their clocks."""
    if row["published_latencies_ms"] or row["published_top1"] is None:
        return row
    from vexport.model.baselines import published_figures  # imports torch
    from vexport.pipeline.bench_document import published_latencies

    latencies = published_latencies(published_figures(row["network"]), row["batch"])
    fitting = latencies.get(published_clock(row["backend"], row["precision"]))
    return row | {"published_latencies_ms": latencies, "published_a100_ms": row["published_a100_ms"] or fitting}


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
