"""The report: fetches nothing, leaves nothing out, says the same in every form, and survives hostile names."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.bench.page_document import failed, synthetic_document
from vexport.bench.accuracy import RULE
from vexport.bench.advice import conclude
from vexport.bench.page import document_schema, validate, write_report
from vexport.bench.page.answers import answers, group_verdicts, headline
from vexport.bench.page.clocks import clocks
from vexport.bench.page.document import Document
from vexport.bench.page.figures import make_figures
from vexport.bench.page.html import render_html
from vexport.bench.page.markdown import render_markdown
from vexport.bench.page.tables import columns, layer_sums, worst_layers, write_csv
from vexport.bench.page.words import digits
from vexport.bench.report import times
from vexport.errors import InputError, WorkspaceError

VOID = {"meta", "br", "hr", "img", "input", "link", "base", "source", "embed", "col", "wbr"}
HOSTILE = "<script>alert(1)</script>|`*_x_*`\"'&amp;]("

Doc = dict[str, Any]


@pytest.fixture(scope="module")
def synthetic() -> Doc:
    return synthetic_document()


@pytest.fixture
def document(synthetic: Doc) -> Doc:
    return copy.deepcopy(synthetic)


def page_of(document: Doc) -> str:
    typed = validate(document)
    return render_html(typed, make_figures(typed))


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


def test_the_page_fetches_nothing(document: Doc) -> None:
    page = page_of(document)
    walk = Walk(page)
    for tag, attributes in walk.tags:
        assert tag not in {
            "link",
            "iframe",
            "img",
            "object",
            "embed",
            "base",
            "source",
            "video",
            "audio",
            "use",
            "image",
        }
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    assert "@import" not in page
    assert "url(" not in page


def test_no_script_runs_but_its_own(document: Doc) -> None:
    walk = Walk(page_of(document))
    policy = next(a["content"] for a in walk.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = walk.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(script) < 5000


def test_the_page_can_be_read_without_seeing_it(document: Doc) -> None:
    walk = Walk(page_of(document))
    levels = [int(tag[1]) for tag, _ in walk.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(heading.get("scope") in {"col", "row", "colgroup"} for heading in walk.all("th"))
    assert len(walk.all("svg")) == 12
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in walk.all("svg"))
    assert len(walk.texts["desc"]) == 12
    names = [a["id"] for _, a in walk.tags if "id" in a]
    assert len(names) == len(set(names))
    targets = {(a["href"] or "")[1:] for a in walk.all("a")}
    assert targets <= set(names)
    assert walk.all("html") == [{"lang": "en"}]


def test_every_row_is_in_every_form(document: Doc) -> None:
    walk, in_csv = Walk(page_of(document)), csv_of(document)
    pages = [table for table in walk.tables if table[0][0] == "" and table[1][0].startswith("Network")]
    texts = [table for table in markdown_tables(markdown_of(document)) if table[0][:2] == ["Network", "Top-1"]]
    wanted = [[row["label"] for row in group["rows"]] for group in document["groups"]]
    assert [[line[0] for line in table[2:]] for table in pages] == wanted
    assert [[line[0] for line in table[1:]] for table in texts] == wanted
    assert [line["label"] for line in in_csv] == [label for group in wanted for label in group]
    assert [line["network"] for line in in_csv] == [row["network"] for g in document["groups"] for row in g["rows"]]


def test_figures_are_the_same_in_every_form(document: Doc) -> None:
    """The CSV has them in full; page and Markdown write the same cells, which are those figures rounded."""
    in_csv = csv_of(document)
    pages = [table for table in Walk(page_of(document)).tables if len(table) > 1 and table[1][0] == "Network"]
    texts = [table for table in markdown_tables(markdown_of(document)) if table[0][:2] == ["Network", "Top-1"]]
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


def test_unknown_accuracy_is_said(document: Doc) -> None:
    for group in document["groups"]:
        for row in group["rows"]:
            row["accuracy"] = None
    walk = Walk(page_of(document))
    assert "not known" in walk.text
    assert not any("Accuracy against latency" in (svg["aria-label"] or "") for svg in walk.all("svg"))
    typed = validate(document)
    found = {answer.rival.network: answer for answer in answers(typed, typed.groups[0])}
    assert found["resnet50"].kind == "slower", "what is slower at any accuracy needs none"
    assert found["resnet50"].text.startswith(
        "Whatever their accuracy, every VanillaNet measured here is slower than ResNet-50: VanillaNet-5 1."
    )
    assert found["swin_tiny"].kind == "unknown", "some are faster"
    assert "so this is speed alone: beside Swin-T, VanillaNet-5 2." in found["swin_tiny"].text
    said = headline(typed)
    assert said is not None
    assert "(VanillaNet-5) to 2." in said.lines[0], "in short"


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


def test_published_figures_have_their_own_columns_and_enter_no_ratio(document: Doc) -> None:
    before = csv_of(document)
    for group in document["groups"]:
        for row in group["rows"]:
            row["published_latencies_ms"] = dict.fromkeys(row["published_latencies_ms"], 0.0123)
            row["published_a100_ms"], row["published_top1"] = 0.0123, 12.3
    after = csv_of(document)
    published = {name for name in before[0] if name.startswith("published_")}
    assert len(published) == 5
    assert [{k: v for k, v in line.items() if k not in published} for line in after] == [
        {k: v for k, v in line.items() if k not in published} for line in before
    ]
    for table in markdown_tables(markdown_of(document)):
        if table[0][:2] == ["Network", "Top-1"]:
            for line in table[1:]:
                holds = [name for name, cell in zip(table[0], line, strict=True) if "0.0123" in cell or "12.30" in cell]
                assert all(name.startswith("Published: ") for name in holds)
                assert "Published: A100, PyTorch, batch 1, ms" in holds
    walk = Walk(page_of(document))
    heads = [attributes for tag, attributes in walk.tags if tag == "th" and "pub" in (attributes.get("class") or "")]
    assert heads
    assert "Published by the authors" in walk.text


def test_engines_stand_beside_both_published_clocks(document: Doc) -> None:
    """PyTorch's figure everywhere, TensorRT's of that precision beside engines; a dash where the paper has none."""
    fp16 = {**document["groups"][0], "backend": "tensorrt", "precision": "FP16"}
    document["groups"] = [document["groups"][0], fp16]
    first, second = (t for t in markdown_tables(markdown_of(document)) if t[0][:2] == ["Network", "Top-1"])
    assert [name for name in first[0] if name.startswith("Published")] == ["Published: A100, PyTorch, batch 1, ms"]
    shown = [name for name in second[0] if name.startswith("Published")]
    assert shown == ["Published: A100, PyTorch, batch 1, ms", "Published: A100, TensorRT FP16, batch 1, ms"]
    figures = {line[0]: line[-2:] for line in second[1:]}
    assert figures["ResNet-50"] == ["7.64", "0.54"]
    assert figures["VanillaNet-9"] == ["2.91", "0.49"]
    assert figures["Swin-S"] == ["20.25", "–"]


def test_the_published_ratio_stands_under_every_clock_beside_ours(document: Doc) -> None:
    found = clocks(validate(document))
    assert found is not None
    assert (found.own, found.rival) == ("VanillaNet-9", "ResNet-50")
    assert [(one.clock, one.own_ms, one.rival_ms, one.words) for one in found.published] == [
        ("PyTorch", 2.91, 7.64, "2.63x faster"),
        ("TensorRT FP32", 0.58, 0.80, "1.38x faster"),
        ("TensorRT FP16", 0.49, 0.54, "1.10x faster"),
    ]
    ours = [group["rows"][3]["ratio"]["value"] for group in document["groups"]]
    assert [one.ratio.value for one in found.measured] == ours
    table, text = Walk(page_of(document)).tables[0], markdown_of(document)
    assert table[1] == ["A100, PyTorch", "0.38x, faster", "2.91", "7.64", "published by the authors"]
    assert table[3][:2] == ["A100, TensorRT FP16", "0.91x, faster"]
    assert table[4][0] == "FP32"
    assert re.fullmatch(r"2\.00x \(1\.9\d to 2\.0\d\), slower", table[4][1])
    assert "VanillaNet-9 is 2.63x faster in PyTorch (2.91 against 7.64 ms), " in text
    assert "1.10x faster in TensorRT FP16 (0.49 against 0.54 ms) than ResNet-50" in text
    assert "the clock decides" in text
    assert text.index("2.63x") < text.index("## The answer"), "it comes before all tables"


@pytest.mark.parametrize("missing", ["figures", "baseline", "a network of its accuracy"])
def test_no_clocks_where_the_paper_has_no_pair(document: Doc, missing: str) -> None:
    for group in document["groups"]:
        rows = {row["network"]: row for row in group["rows"]}
        if missing == "figures":
            for row in rows.values():
                row["published_latencies_ms"] = {}
        elif missing == "baseline":
            del rows["resnet50"]
        else:
            del rows["vanillanet_9"], rows["vanillanet_13"]
        group["rows"] = list(rows.values())
    assert clocks(validate(document)) is None
    assert "clock by clock" not in page_of(document).lower()


def test_int8_that_is_slower_than_floating_point_says_so_in_its_row(document: Doc) -> None:
    document.update(conclude(document["groups"]))
    rows = document["groups"][1]["rows"]
    assert rows[3]["against_float"]["value"] == pytest.approx(15.1 / 62.1, rel=0.02)
    rows[0]["against_float"] = {"precision": "FP32", "value": 1.31, "low": 1.22, "high": 1.37, "level": 0.95}
    fp32, int8 = (t for t in markdown_tables(markdown_of(document)) if t[0][:2] == ["Network", "Top-1"])
    place = int8[0].index("Time against its FP32")
    assert int8[1][place] == "1.31x (1.22 to 1.37, slower)"
    assert int8[4][place].endswith(", faster)")
    assert "Time against its FP32" not in fp32[0]
    line = csv_of(document)[7]
    assert (line["against_float"], line["against_float_precision"]) == ("1.31", "FP32")


@pytest.mark.parametrize(
    ("random", "said"),
    [
        (range(7), "The files that were timed here have random weights"),
        ((1, 3), "The files that were timed here of VanillaNet-5, VanillaNet-9 have random weights"),
        ((), "of their weights: not of the files that were timed here"),
    ],
)
def test_published_accuracies_are_not_of_the_files_that_were_timed(
    document: Doc, random: Sequence[int], said: str
) -> None:
    for place in random:
        at(document, place)["weights"] = "random"
    for text in (page_of(document), markdown_of(document)):
        assert said in re.sub("<[^>]*>", "", text)


def test_depth_is_what_the_document_counted(document: Doc) -> None:
    document["settings"]["depth"] = "layers with weights; VanillaNet's as its authors count"
    for text in (Walk(page_of(document)).text, markdown_of(document)):
        assert "Depth: layers with weights; VanillaNet's as its authors count. Each network" in text


def test_measured_accuracies_need_no_such_note(document: Doc) -> None:
    document["groups"] = document["groups"][1:]
    assert "Accuracies marked published" not in page_of(document)


def test_what_a_file_is_not_is_said_below_its_table(document: Doc) -> None:
    """INT8 of which most stays FP32, and weights that prove nothing."""
    for row in document["groups"][0]["rows"]:
        row["notes"] = ["for latency only: random weights, accuracy unproven"]
    at(document, 5)["notes"].append("INT8: 1 of 1 convolutions; matrix products stay FP32: 76")
    for text in (re.sub("<[^>]*>", "", page_of(document)), markdown_of(document)):
        assert text.count("for latency only: random weights, accuracy unproven.") == 1
        assert "Swin-T: INT8: 1 of 1 convolutions; matrix products stay FP32: 76." in text


def test_what_to_take_instead_stands_in_the_answer(document: Doc) -> None:
    document["groups"] = document["groups"][:1]
    document.update(conclude(document["groups"]))
    said = headline(validate(document))
    assert said is not None
    (take,) = said.take
    assert re.fullmatch(
        r"Instead of VanillaNet-9 \(onnxruntime CPU FP32, 79.87 % published, 6\d.\d ms\) "
        r"take ResNet-50 \(onnxruntime CPU FP32, 79.80 % published, 3\d.\d ms\): "
        r"VanillaNet-9 has its accuracy and is 2.00x slower \(.*\), measured in turns\.",
        take,
    )
    assert take in re.sub("<[^>]*>", "", page_of(document))
    assert take in markdown_of(document)


def test_the_page_states_the_one_rule_of_accuracies(document: Doc) -> None:
    """The same that answers and advice go by."""
    assert RULE in unescape(re.sub("<[^>]*>", "", page_of(document)))
    assert RULE in markdown_of(document)
    at(document, 3)["accuracy"]["top1_percent"] = 79.5
    typed = validate(document)
    assert answers(typed, typed.groups[0])[0].row is typed.groups[0].rows[3], "0.3 points below count as equal"
    at(document, 3)["accuracy"]["top1_percent"] = 79.4
    typed = validate(document)
    answer = answers(typed, typed.groups[0])[0].row
    assert answer is not None
    assert answer.network == "vanillanet_13"


def test_what_was_not_measured_contradicts_nothing(document: Doc) -> None:
    """One table says slower, the other's baseline failed: the answer is that of the first."""
    rows = document["groups"][1]["rows"]
    rows[0] = failed(rows[0], "hung")
    for row in rows:
        row["ratio"] = None
    said = headline(validate(document))
    assert said is not None
    assert said.word == "No."
    assert "ResNet-50 was not measured: hung." in said.lines[1]


def test_what_is_not_known_contradicts_nothing(document: Doc) -> None:
    """In INT8 no accuracy is known and one interval holds 1; FP32 says no, and so does the headline."""
    for row in document["groups"][1]["rows"]:
        row["accuracy"] = None
    subjects = [row for row in document["groups"][1]["rows"] if row["family"] == "VanillaNet" and row["ratio"]]
    subjects[0]["ratio"] = ratio_of(1.04, 0.98, 1.1)
    found = headline(validate(document))
    assert found is not None
    assert found.word == "No."
    assert [line for line in found.lines if line.startswith("INT8: Accuracy is not known here")], found.lines
    document["groups"] = document["groups"][1:]
    alone = headline(validate(document))
    assert alone is not None
    assert alone.word == "No answer."


def test_int8_that_did_not_run_gets_no_verdict(document: Doc) -> None:
    """Neither in the answers nor in a table nor by a clock; the share stands in every form."""
    document["groups"] = document["groups"][1:]
    for row in document["groups"][0]["rows"]:
        row["int8_share"] = 0.0 if row["network"] in ("resnet50", "swin_tiny") else 0.98
    typed = validate(document)
    group = typed.groups[0]
    for answer in answers(typed, group)[:2]:
        assert answer.kind == "unknown"
        assert answer.text == f"No INT8 verdict: 0% of {answer.rival.name}'s arithmetic ran in INT8."
    said = group_verdicts(typed, group)
    assert said[0] == "No INT8 verdicts beside ResNet-50: 0% of ResNet-50's arithmetic ran in INT8."
    assert not any("faster" in line or "slower" in line for line in said)
    found = clocks(typed)
    assert found is not None
    assert found.measured == ()
    text = markdown_of(document)
    assert text.count("not judged: mostly floating point") == 5, "all rows but the baseline and the failed one"
    assert "98% (of the arithmetic)" in text
    assert {line["int8_share"] for line in csv_of(document)} == {"0.0", "0.98"}


def test_a_network_that_did_not_run_in_int8_does_not_answer_for_the_others(document: Doc) -> None:
    document["groups"] = document["groups"][1:]
    at(document, 3)["int8_share"] = 0.3
    typed = validate(document)
    answer = answers(typed, typed.groups[0])[0]
    assert answer.row is not None
    assert answer.row.network == "vanillanet_13", "the next one of its accuracy"
    assert answer.text.endswith(" Not judged: 30% of VanillaNet-9's arithmetic ran in INT8.")
    assert "No INT8 verdict on VanillaNet-9: 30% of VanillaNet-9's arithmetic ran in INT8." in group_verdicts(
        typed, typed.groups[0]
    )
    for row in document["groups"][0]["rows"]:
        row["int8_share"] = 0.3 if row["family"] == "VanillaNet" else 1.0
    typed = validate(document)
    assert answers(typed, typed.groups[0])[0].kind == "unknown"


def test_a_disturbed_profile_is_no_truth_about_layers(document: Doc) -> None:
    """Times of layers that sum to another latency are withheld, with the reason; the others' sums are told."""
    document["groups"] = document["groups"][:1]
    for row in document["groups"][0]["rows"]:
        row["roofline"]["profile"] = {"source": "invented", "sum_ms": 1.05 * row["median_ms"], "run_ms": None}
    five = at(document, 1)
    five["roofline"]["profile"]["sum_ms"] = 1.77 * five["median_ms"]
    group = validate(document).groups[0]
    assert "vanillanet_5" not in {row.network for row, _ in worst_layers(group)}
    assert worst_layers(group)
    sums = layer_sums(group)
    assert len(sums) == 7
    assert sums[1].startswith("VanillaNet-5: the profiled layers sum to ")
    assert sums[1].endswith("They differ by 77%: the profile was disturbed, and its layers' times are not shown.")
    assert not any("differ" in line for line in (sums[0], *sums[2:]))
    assert all(line in unescape(re.sub("<[^>]*>", "", page_of(document))) for line in sums)
    assert "the profiled layers sum to" in markdown_of(document)
    five["roofline"]["profile"]["sum_ms"] = 0.5 * five["median_ms"]
    assert "differ by 50%" in layer_sums(validate(document).groups[0])[1]


def test_sentences_of_a_table_do_not_repeat_its_title(document: Doc) -> None:
    typed = validate(document)
    said = group_verdicts(typed, typed.groups[1])
    assert said[2].startswith("VanillaNet-9 is 1.09x faster (")
    assert said[-1] == "Swin-S failed: crashed: signal 9 (out of memory?)."
    assert not any("INT8" in line for line in said)
    assert all(line in markdown_of(document) for line in said[:3])


def test_a_network_that_is_there_for_its_published_figures_only(document: Doc) -> None:
    rows = document["groups"][0]["rows"]
    empty = {key: [] if isinstance(value, list) else None for key, value in rows[0].items()}
    empty["published_latencies_ms"] = {"PyTorch": 13.37}
    keep = {key: rows[0][key] for key in ("backend", "precision", "batch", "input_size", "accuracy")}
    extra = {
        "network": "vitae",
        "label": "ViTAE-T",
        "published_a100_ms": 13.37,
        "unstable": False,
        "count": 0,
        "run": {},
    }
    rows.append({**empty, **keep, **extra, "notes": ["published figures only"]})
    typed = validate(document)
    assert "ViTAE-T" not in [answer.rival.name for answer in answers(typed, typed.groups[0])]
    walk = Walk(page_of(document))
    line = next(line for table in walk.tables for line in table if line[0] == "ViTAE-T" and "13.37" in line)
    assert line[2] == "not measured; published figures only"
    assert "failed" not in csv_of(document)[7]["stability"]


def ratio_of(value: float, low: float, high: float) -> Doc:
    return {"value": value, "low": low, "high": high, "level": 0.95}


def answered(document: Doc, change: Callable[[dict[str, Doc]], None]) -> tuple[str, str, str]:
    """The headline, and kind and text of the answer for ResNet-50, with FP32 alone."""
    document["groups"] = document["groups"][:1]
    change({row["network"]: row for row in document["groups"][0]["rows"]})
    typed = validate(document)
    said, found = headline(typed), answers(typed, typed.groups[0])[0]
    assert said is not None
    assert found.rival.network == "resnet50"
    return said.word, found.kind, found.text


def test_slower_is_said_as_plainly_as_faster(document: Doc) -> None:
    def slower(rows: dict[str, Doc]) -> None:
        rows["vanillanet_9"]["ratio"] = ratio_of(1.98, 1.9, 2.05)

    def faster(rows: dict[str, Doc]) -> None:
        rows["vanillanet_9"]["ratio"] = ratio_of(0.8, 0.75, 0.85)

    word, kind, text = answered(copy.deepcopy(document), slower)
    assert (word, kind) == ("No.", "slower")
    assert text.startswith("VanillaNet-9 is 1.98x slower (1.90 to 2.05) than ResNet-50: about half as fast.")
    word, kind, text = answered(document, faster)
    assert (word, kind) == ("Yes.", "faster")
    assert text.startswith("VanillaNet-9 is 1.25x faster (1.18 to 1.33) than ResNet-50.")


@pytest.mark.parametrize(("value", "low", "high"), [(0.99, 0.97, 1.01), (1.02, 0.99, 1.06)])
def test_an_interval_that_holds_one_is_no_answer(document: Doc, value: float, low: float, high: float) -> None:
    def close(rows: dict[str, Doc]) -> None:
        rows["vanillanet_9"]["ratio"] = rows["vanillanet_13"]["ratio"] = ratio_of(value, low, high)

    word, kind, text = answered(document, close)
    assert (word, kind) == ("Not decided.", "undecided")
    assert "cannot be told apart" in text
    assert markdown_of(document).count("no difference shown") == 3, "in the table twice, and among the clocks"


def test_a_less_accurate_network_does_not_answer(document: Doc) -> None:
    """VanillaNet-6 has 76.36 %: however fast, it says nothing of a network of 79.80 %."""

    def quick(rows: dict[str, Doc]) -> None:
        rows["vanillanet_6"]["ratio"] = ratio_of(0.1, 0.09, 0.11)
        rows["vanillanet_9"]["ratio"] = ratio_of(2.0, 1.9, 2.1)

    assert answered(document, quick)[1] == "slower"


def test_none_accurate_enough(document: Doc) -> None:
    def best(rows: dict[str, Doc]) -> None:
        rows["resnet50"]["accuracy"]["top1_percent"] = 99.0

    word, kind, text = answered(document, best)
    assert (word, kind) == ("No answer.", "out of reach")
    assert "VanillaNet-13" in text


def test_a_failed_baseline_leaves_no_answer(document: Doc) -> None:
    def broken(rows: dict[str, Doc]) -> None:
        rows["resnet50"].update(failed(rows["resnet50"], "hung"))
        for row in rows.values():
            row["ratio"] = None

    assert answered(document, broken)[:2] == ("No answer.", "failed")


def test_the_headline_tells_groups_apart(document: Doc) -> None:
    said = headline(validate(document))
    assert said is not None
    assert said.word == "It depends."
    assert said.lines[0].startswith("FP32: VanillaNet-9 is 2.00x slower (")
    assert said.lines[1].startswith("INT8: VanillaNet-9 is 1.09x faster (")
    assert "It depends." in Walk(page_of(document)).texts["strong"]


def test_rivals_that_are_no_baseline_are_compared_by_the_samples(document: Doc) -> None:
    typed = validate(document)
    found = {answer.rival.network: answer for answer in answers(typed, typed.groups[0])}
    assert found["swin_tiny"].row is not None
    assert found["swin_tiny"].row.network == "vanillanet_13"
    assert found["swin_tiny"].ratio is not None
    assert found["swin_tiny"].ratio.value == pytest.approx(84.7 / 84.1, rel=0.02)


def test_gpu_time_has_a_column_where_it_was_told_apart(document: Doc) -> None:
    typed = validate(document)
    assert "GPU time, ms" not in [column.heading for column in columns(typed, typed.groups[0])]
    document["groups"][0]["rows"][0]["device_ms"] = {"median": 0.4321, "p90": 0.5, "p99": 0.6}
    document["groups"][0]["device"] = "An Accelerator"
    document["groups"] = document["groups"][:1]
    page = Walk(page_of(document))
    assert "0.4321" in [line[6] for line in page.tables[1][1:]]
    assert "on An Accelerator?" in page.text


def test_size(synthetic: Doc) -> None:
    """Seven networks in two precisions, two thousand calls each."""
    page = page_of(synthetic_document(rounds=20, calls=100))
    assert len(page.encode()) < 400_000
    assert len(page.encode()) < 1.3 * len(page_of(synthetic).encode()), "the page does not grow with the calls"


def test_the_schema_is_the_shipped_one() -> None:
    path = Path(write_report.__code__.co_filename).with_name("schema.json")
    assert json.loads(path.read_text(encoding="utf-8")) == document_schema(), "generate it anew"


def test_the_schema_is_told_when_to_want_a_hash() -> None:
    row = document_schema()["$defs"]["RowPart"]
    assert row["then"]["required"] == ["artifact_sha256"]


def at(document: Doc, place: int) -> Doc:
    row: Doc = document["groups"][0]["rows"][place]
    return row


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


def small(document: Doc, rows: int = 2) -> Doc:
    """One group of few rows, so that pictures are few."""
    document["groups"] = document["groups"][:1]
    document["groups"][0]["rows"] = document["groups"][0]["rows"][:rows]
    return document


def test_files(document: Doc, tmp_path: Path) -> None:
    written = write_report(small(document), tmp_path / "new" / "folder")
    assert [path.name for path in written[:3]] == ["report.html", "report.md", "results.csv"]
    assert all(path.is_file() for path in written)
    pictures = {path.name for path in written[3:]}
    assert len(pictures) == 12
    assert {Path(name).stem for name in pictures if name.endswith(".svg")} == {
        Path(name).stem for name in pictures if name.endswith(".png")
    }
    linked = re.findall(r"\((figures/[^)]+)\)", (tmp_path / "new/folder/report.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(f"figures/{name}" for name in pictures)


def test_again_replaces_and_removes_what_is_no_longer_drawn(document: Doc, tmp_path: Path) -> None:
    first = write_report(small(copy.deepcopy(document)), tmp_path)
    document = small(document)
    for row in document["groups"][0]["rows"]:
        row["accuracy"] = None
    second = write_report(document, tmp_path)
    gone = set(first) - set(second)
    assert len(gone) == 4
    assert not any(path.exists() for path in gone)
    assert not list(tmp_path.rglob(".vexport-*"))


def test_what_a_report_did_not_write_is_kept(document: Doc, tmp_path: Path) -> None:
    mine = tmp_path / "report.md"
    mine.write_text("my own notes", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="in the way"):
        write_report(small(document), tmp_path)
    assert mine.read_text(encoding="utf-8") == "my own notes"
    assert not (tmp_path / "report.html").exists()
    write_report(document, tmp_path, force=True)
    assert "my own notes" not in mine.read_text(encoding="utf-8")
    mine.write_text("changed by hand", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="in the way"):
        write_report(document, tmp_path)


def test_a_list_of_files_that_leads_elsewhere_deletes_nothing(document: Doc, tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("x", encoding="utf-8")
    folder = tmp_path / "report"
    folder.mkdir()
    hashes = {"../precious.txt": hashlib.sha256(b"x").hexdigest(), str(outside): hashlib.sha256(b"x").hexdigest()}
    (folder / "report.files.json").write_text(json.dumps(hashes), encoding="utf-8")
    write_report(small(document), folder)
    assert outside.exists()


def test_a_folder_that_is_a_file(document: Doc, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="not a folder"):
        write_report(small(document), tmp_path / "taken")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("vexport bench quick --resume", "vexport bench quick"),
        ("vexport bench --resume quick -o x.json", "vexport bench quick -o x.json"),
        ("vexport bench 'my --resumed.yaml'", "vexport bench 'my --resumed.yaml'"),
    ],
)
def test_to_repeat_is_not_to_resume(document: Doc, command: str, said: str) -> None:
    document = small(document)
    document["command"] = command
    assert f"```sh\n{said}\n```" in markdown_of(document)
    assert f"<code>{said}</code>" in unescape(page_of(document))


def test_percentiles_of_too_few_calls_are_a_dash(document: Doc) -> None:
    """By MLPerf's rule, which the method names; figures in full stay in the CSV."""
    assert "MLPerf" not in markdown_of(document)
    document = small(document)
    told = {"count": 100, "estimate_ms": 40.0, "p99_estimate_ms": None}
    document["groups"][0]["rows"][1]["single_stream"] = told
    typed = validate(document)
    shown = {column.heading: column for column in columns(typed, typed.groups[0])}
    row = typed.groups[0].rows[1]
    assert shown["p99, ms"].text(row) == "–"
    assert shown["p90, ms"].text(row) == digits(row.p90_ms or 0)
    assert shown["p99, ms"].text(typed.groups[0].rows[0]) != "–"
    assert "from 64 calls on and from 662" in markdown_of(document)
    assert csv_of(document)[1]["p99_ms"] != ""


def test_a_crash_shows_its_last_lines(document: Doc) -> None:
    row = document["groups"][1]["rows"][-1]
    row["failure"] = {"kind": "crashed", "text": "signal 9", "stderr": ["<loading>", "out of memory"]}
    assert "Swin-S ended with: <loading> / out of memory" in unescape(re.sub("<[^>]*>", "", page_of(document)))
    assert "out of memory" in markdown_of(document)


def test_what_the_host_did_stands_beside_gpu_time(document: Doc) -> None:
    row = document["groups"][0]["rows"][0]
    row["device_ms"] = {"median": 0.43, "p90": 0.5, "p99": 0.6, "waits_for_host": True}
    row["run"]["parts_ns"] = {"device": [[430_000]], "enqueue": [[410_000, 400_000], [420_000]]}
    typed = validate(document)
    (column,) = [one for one in columns(typed, typed.groups[0]) if one.heading == "GPU time, ms"]
    assert column.small(typed.groups[0].rows[0]) == "enqueue 0.4100, waits for the host"
    assert column.small(typed.groups[0].rows[1]) == ""
