"""Page, Markdown and CSV: they leave nothing out, say the same, and survive hostile names and missing figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vexport.bench.page import validate, write_report
from vexport.bench.page.answers import headline
from vexport.bench.page.words import digits
from vexport.bench.report import times

from .reading import Doc, Walk, csv_of, markdown_of, markdown_tables, page_of, result_tables

HOSTILE = "<script>alert(1)</script>|`*_x_*`\"'&amp;]("


def test_every_row_is_in_every_form(document: Doc) -> None:
    walk, in_csv = Walk(page_of(document)), csv_of(document)
    pages = [table for table in walk.tables if table[0][0] == "" and table[1][0].startswith("Network")]
    texts = result_tables(document)
    wanted = [[row["label"] for row in group["rows"]] for group in document["groups"]]
    assert [[line[0] for line in table[2:]] for table in pages] == wanted
    assert [[line[0] for line in table[1:]] for table in texts] == wanted
    assert [line["label"] for line in in_csv] == [label for group in wanted for label in group]
    assert [line["network"] for line in in_csv] == [row["network"] for g in document["groups"] for row in g["rows"]]


def test_figures_are_the_same_in_every_form(document: Doc) -> None:
    """The CSV has them in full; page and Markdown write the same cells, which are those figures rounded."""
    in_csv = csv_of(document)
    pages = [table for table in Walk(page_of(document)).tables if len(table) > 1 and table[1][0] == "Network"]
    texts = result_tables(document)
    assert len(pages) == len(texts) == 2

    def words(cell: str) -> str:
        return " ".join(re.sub("[(),]", " ", cell).split())

    for page, text in zip(pages, texts, strict=True):
        for shown, written in zip(page[2:], text[1:], strict=True):
            if "failed: " not in " ".join(shown):
                assert [words(cell) for cell in shown] == [words(cell) for cell in written]
    lines = iter(in_csv)
    for group, text in zip(document["groups"], texts, strict=True):
        for row, written in zip(group["rows"], text[1:], strict=True):
            line = next(lines)
            cells = dict(zip(text[0], written, strict=True))
            for key in ("median_ms", "p90_ms", "p99_ms", "images_per_s"):
                assert (float(line[key]) if line[key] else None) == row[key]
            if row["error"] is None:
                assert cells["Median, ms"].startswith(digits(row["median_ms"]) + " (")
                assert digits(float(line["median_low_ms"])) in cells["Median, ms"]
                assert cells["p99, ms"] == digits(float(line["p99_ms"]))
                assert cells["Images/s"] == digits(float(line["images_per_s"]))
                assert cells["Time against ResNet-50"].startswith(times(float(line["ratio"])))
                assert float(line["ratio"]) == row["ratio"]["value"]


def test_hostile_names_stay_names(document: Doc) -> None:
    row = document["groups"][0]["rows"][3]
    row.update(
        label=HOSTILE, network=HOSTILE, family=HOSTILE, artifact=HOSTILE, unstable=True, unstable_because=[HOSTILE]
    )
    row["roofline"]["layers"][0].update(name=HOSTILE, operator=HOSTILE, time_ms=1e3)
    document["groups"][0].update(verdicts=[HOSTILE], conditions={HOSTILE: HOSTILE})
    document["groups"][1].update(backend=HOSTILE)
    document["groups"][1]["rows"][6]["error"] = HOSTILE
    document["environment"]["cpu"] = HOSTILE
    document["settings"]["runners"] = {HOSTILE: {"backend": HOSTILE, "includes": [HOSTILE], "excludes": []}}
    document.update(
        command=f"vexport bench {HOSTILE} ``` x", advice=[HOSTILE], version=HOSTILE, recipe={HOSTILE: HOSTILE}
    )
    document["peaks"]["device"] = HOSTILE
    page, text = page_of(document), markdown_of(document)
    walk = Walk(page)
    assert len(walk.all("script")) == 1
    assert "<script>alert" not in page
    assert HOSTILE in walk.text
    assert any(HOSTILE in cell for table in walk.tables for line in table for cell in line)
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    assert "<script" not in outside
    assert "````sh" in text, "the fence is longer than the backticks inside"
    for table in markdown_tables(outside):
        assert len({len(line) for line in table}) == 1
    assert any(line[0] == HOSTILE for table in markdown_tables(outside) for line in table)
    assert csv_of(document)[3]["label"] == HOSTILE


def test_control_characters_and_lone_surrogates_harm_nothing(document: Doc, tmp_path: Path) -> None:
    document["groups"] = document["groups"][:1]
    document["groups"][0]["rows"] = document["groups"][0]["rows"][:1]
    document["groups"][0]["rows"][0]["label"] = "a\x00b\x1b[31m\ud800\nc"
    document["command"] = "x\x00\ud800"
    written = write_report(document, tmp_path)
    for path in written:
        if path.suffix != ".png":
            text = path.read_text(encoding="utf-8")
            assert not set(text) & {"\x00", "\x1b"}
    Walk((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("sign", ["=", "+", "-", "@"])
def test_no_cell_of_the_csv_is_a_formula(document: Doc, sign: str) -> None:
    document["groups"][0]["rows"][0]["label"] = f"{sign}1+1"
    assert csv_of(document)[0]["label"] == f"'{sign}1+1"


@pytest.mark.parametrize("groups", ["none", "empty"])
def test_nothing_measured_yet(document: Doc, groups: str) -> None:
    document["groups"] = [] if groups == "none" else [{**document["groups"][0], "rows": [], "verdicts": []}]
    document.update(complete=False, advice=[], recipe=None, command=None, peaks=None, environment={}, settings={})
    page, text = page_of(document), markdown_of(document)
    assert Walk(page).all("svg") == []
    assert csv_of(document) == []
    for said in (page, text):
        assert "Incomplete" in said
        assert ("Nothing was measured in this group" in said) == (groups == "empty")


def test_a_complete_measurement_is_not_called_incomplete(document: Doc) -> None:
    assert "Incomplete" not in page_of(document)


def test_a_single_row(document: Doc) -> None:
    document["groups"] = document["groups"][:1]
    document["groups"][0]["rows"] = document["groups"][0]["rows"][3:4]
    document["groups"][0]["rows"][0]["ratio"] = None
    walk = Walk(page_of(document))
    assert len(walk.all("svg")) == 6
    assert "no baseline in this group" in walk.text
    assert headline(validate(document)) is None


def test_a_failed_cell_is_shown_as_such(document: Doc) -> None:
    why = "crashed: signal 9 (out of memory?)"
    walk = Walk(page_of(document))
    line = next(line for table in walk.tables for line in table if line[0] == "Swin-S" and why in " ".join(line))
    assert line[2] == f"failed: {why}"
    assert f"failed: {why}" in markdown_of(document)
    last = csv_of(document)[-1]
    assert (last["error"], last["stability"], last["median_ms"], last["ratio"]) == (why, "failed", "", "")
    assert "Not shown: VanillaNet-5 (accuracy not known), Swin-S (failed)." in walk.text


def test_a_failure_half_way_shows_no_latency(document: Doc) -> None:
    row = document["groups"][0]["rows"][3]
    row["error"] = "hung: no answer for 120 s"
    typed = validate(document)
    assert not typed.groups[0].rows[3].measured
    assert "failed: hung: no answer for 120 s" in page_of(document)
    assert digits(row["median_ms"]) not in [line[2] for line in markdown_tables(markdown_of(document))[0]]


def test_unstable_figures_are_marked_with_the_reason(document: Doc) -> None:
    row = document["groups"][0]["rows"][3]
    row.update(unstable=True, unstable_because=["drift: 12 %", "load: 1.0 of 2 cores"])
    page, text = Walk(page_of(document)), markdown_of(document)
    assert any("unstable drift: 12 %; load: 1.0 of 2 cores" in cell for t in page.tables for line in t for cell in line)
    assert "unstable (drift: 12 %; load: 1.0 of 2 cores)" in text
    assert csv_of(document)[3]["stability"] == "unstable: drift: 12 %; load: 1.0 of 2 cores"
    said = headline(validate(document))
    assert said is not None
    assert "Unstable: VanillaNet-9." in said.lines[0]
