"""The authors' figures: marked as theirs, beside ours under every clock, and in no ratio."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from vexport.bench.page import validate
from vexport.bench.page.answers import answers
from vexport.bench.page.clocks import clocks

from .reading import Doc, Walk, at, csv_of, markdown_of, page_of, result_tables, text_of


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
    for table in result_tables(document):
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
    first, second = result_tables(document)
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
    assert said in text_of(document)
    assert said in markdown_of(document)


def test_measured_accuracies_need_no_such_note(document: Doc) -> None:
    document["groups"] = document["groups"][1:]
    assert "Accuracies marked published" not in page_of(document)


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
