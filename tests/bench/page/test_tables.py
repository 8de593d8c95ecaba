"""The tables: columns that only some groups have, sentences below them, and how it was measured."""

from __future__ import annotations

from html import unescape

import pytest

from vexport.bench.advice import conclude
from vexport.bench.page import validate
from vexport.bench.page.tables import columns, layer_sums, worst_layers
from vexport.bench.page.words import digits

from .reading import Doc, Walk, at, csv_of, markdown_of, page_of, result_tables, small, text_of


def test_int8_that_is_slower_than_floating_point_says_so_in_its_row(document: Doc) -> None:
    document.update(conclude(document["groups"]))
    rows = document["groups"][1]["rows"]
    assert rows[3]["against_float"]["value"] == pytest.approx(15.1 / 62.1, rel=0.02)
    rows[0]["against_float"] = {"precision": "FP32", "value": 1.31, "low": 1.22, "high": 1.37, "level": 0.95}
    fp32, int8 = result_tables(document)
    place = int8[0].index("Time against its FP32")
    assert int8[1][place] == "1.31x (1.22 to 1.37, slower)"
    assert int8[4][place].endswith(", faster)")
    assert "Time against its FP32" not in fp32[0]
    line = csv_of(document)[7]
    assert (line["against_float"], line["against_float_precision"]) == ("1.31", "FP32")


def test_gpu_time_has_a_column_where_it_was_told_apart(document: Doc) -> None:
    typed = validate(document)
    assert "GPU time, ms" not in [column.heading for column in columns(typed, typed.groups[0])]
    document["groups"][0]["rows"][0]["device_ms"] = {"median": 0.4321, "p90": 0.5, "p99": 0.6}
    document["groups"][0]["device"] = "An Accelerator"
    document["groups"] = document["groups"][:1]
    page = Walk(page_of(document))
    assert "0.4321" in [line[6] for line in page.tables[1][1:]]
    assert "on An Accelerator?" in page.text


def test_what_the_host_did_stands_beside_gpu_time(document: Doc) -> None:
    row = document["groups"][0]["rows"][0]
    row["device_ms"] = {"median": 0.43, "p90": 0.5, "p99": 0.6, "waits_for_host": True}
    row["run"]["parts_ns"] = {"device": [[430_000]], "enqueue": [[410_000, 400_000], [420_000]]}
    typed = validate(document)
    (column,) = [one for one in columns(typed, typed.groups[0]) if one.heading == "GPU time, ms"]
    assert column.small(typed.groups[0].rows[0]) == "enqueue 0.4100, waits for the host"
    assert column.small(typed.groups[0].rows[1]) == ""


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


def test_what_a_file_is_not_is_said_below_its_table(document: Doc) -> None:
    """INT8 of which most stays FP32, and weights that prove nothing."""
    for row in document["groups"][0]["rows"]:
        row["notes"] = ["for latency only: random weights, accuracy unproven"]
    at(document, 5)["notes"].append("INT8: 1 of 1 convolutions; matrix products stay FP32: 76")
    for text in (text_of(document), markdown_of(document)):
        assert text.count("for latency only: random weights, accuracy unproven.") == 1
        assert "Swin-T: INT8: 1 of 1 convolutions; matrix products stay FP32: 76." in text


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
    shown = text_of(document)
    assert all(line in shown for line in sums)
    assert "the profiled layers sum to" in markdown_of(document)
    five["roofline"]["profile"]["sum_ms"] = 0.5 * five["median_ms"]
    assert "differ by 50%" in layer_sums(validate(document).groups[0])[1]


def test_a_crash_shows_its_last_lines(document: Doc) -> None:
    row = document["groups"][1]["rows"][-1]
    row["failure"] = {"kind": "crashed", "text": "signal 9", "stderr": ["<loading>", "out of memory"]}
    assert "Swin-S ended with: <loading> / out of memory" in text_of(document)
    assert "out of memory" in markdown_of(document)


def test_depth_is_what_the_document_counted(document: Doc) -> None:
    document["settings"]["depth"] = "layers with weights; VanillaNet's as its authors count"
    for text in (Walk(page_of(document)).text, markdown_of(document)):
        assert "Depth: layers with weights; VanillaNet's as its authors count. Each network" in text


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
