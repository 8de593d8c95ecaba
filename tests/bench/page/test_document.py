"""The document: its schema is the shipped one, and what does not fit is refused with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vexport.bench.page import document_schema, validate, write_report
from vexport.bench.page.document import Document
from vexport.errors import InputError

from .reading import Doc, at


def test_the_schema_is_the_shipped_one() -> None:
    path = Path(write_report.__code__.co_filename).with_name("schema.json")
    assert json.loads(path.read_text(encoding="utf-8")) == document_schema(), "generate it anew"


def test_the_schema_is_told_when_to_want_a_hash() -> None:
    row = document_schema()["$defs"]["RowPart"]
    assert row["then"]["required"] == ["artifact_sha256"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: at(d, 0).update(artifact_sha256=None), "a latency without the hash"),
        (lambda d: at(d, 0).update(median_ms=math.nan), "finite"),
        (lambda d: at(d, 0).update(median_ms=None), "a ratio without a latency"),
        (lambda d: at(d, 0)["ratio"].update(low=3.0), "does not lie between"),
        (lambda d: at(d, 0)["accuracy"].update(source="guessed"), "accuracy.source"),
        (lambda d: at(d, 0)["accuracy"].update(top1_percent=101.0), "top1_percent"),
        (lambda d: d.update(groups={"rows": []}), "groups"),
        (lambda d: d.pop("baseline"), "baseline"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(document: Doc, change: Callable[[Doc], None], said: str) -> None:
    change(document)
    with pytest.raises(InputError) as caught:
        validate(document)
    assert any(said in line for line in caught.value.details)
    assert "vexport bench" in caught.value.hint


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        ({"schema": 1}, "measure again with this version"),
        ({"schema": 3}, "a newer vexport wrote it"),
        ({"schema": True}, "give a bench.json"),
        ({}, "give a bench.json"),
        ([], "give a bench.json"),
        (None, "give a bench.json"),
    ],
)
def test_other_documents_are_refused(other: Any, hint: str) -> None:
    with pytest.raises(InputError, match="schema") as caught:
        validate(other)
    assert hint in caught.value.hint


def test_further_fields_are_let_through(document: Doc) -> None:
    document["further"] = {"x": 1}
    at(document, 0)["further"] = [1]
    assert isinstance(validate(document), Document)
