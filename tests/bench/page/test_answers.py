"""The answers and their headline: what is faster, what is slower, and what nobody can say."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest

from tests.bench.page.document import failed
from vexport.bench.accuracy import RULE
from vexport.bench.advice import conclude
from vexport.bench.page import validate
from vexport.bench.page.answers import Headline, answers, group_verdicts, headline
from vexport.bench.page.clocks import clocks

from .reading import Doc, Walk, at, csv_of, markdown_of, page_of, text_of


def ratio_of(value: float, low: float, high: float) -> Doc:
    return {"value": value, "low": low, "high": high, "level": 0.95}


def headline_of(document: Doc) -> Headline:
    """The headline of a document that has one."""
    said = headline(validate(document))
    assert said is not None
    return said


def answered(document: Doc, change: Callable[[dict[str, Doc]], None]) -> tuple[str, str, str]:
    """The headline, and kind and text of the answer for ResNet-50, with FP32 alone."""
    document["groups"] = document["groups"][:1]
    change({row["network"]: row for row in document["groups"][0]["rows"]})
    typed = validate(document)
    found = answers(typed, typed.groups[0])[0]
    assert found.rival.network == "resnet50"
    return headline_of(document).word, found.kind, found.text


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
    said = headline_of(document)
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
    assert "(VanillaNet-5) to 2." in headline_of(document).lines[0], "in short"


def test_what_was_not_measured_contradicts_nothing(document: Doc) -> None:
    """One table says slower, the other's baseline failed: the answer is that of the first."""
    rows = document["groups"][1]["rows"]
    rows[0] = failed(rows[0], "hung")
    for row in rows:
        row["ratio"] = None
    said = headline_of(document)
    assert said.word == "No."
    assert "ResNet-50 was not measured: hung." in said.lines[1]


def test_what_is_not_known_contradicts_nothing(document: Doc) -> None:
    """In INT8 no accuracy is known and one interval holds 1; FP32 says no, and so does the headline."""
    for row in document["groups"][1]["rows"]:
        row["accuracy"] = None
    subjects = [row for row in document["groups"][1]["rows"] if row["family"] == "VanillaNet" and row["ratio"]]
    subjects[0]["ratio"] = ratio_of(1.04, 0.98, 1.1)
    found = headline_of(document)
    assert found.word == "No."
    assert [line for line in found.lines if line.startswith("INT8: Accuracy is not known here")], found.lines
    document["groups"] = document["groups"][1:]
    assert headline_of(document).word == "No answer."


def test_what_to_take_instead_stands_in_the_answer(document: Doc) -> None:
    document["groups"] = document["groups"][:1]
    document.update(conclude(document["groups"]))
    (take,) = headline_of(document).take
    assert re.fullmatch(
        r"Instead of VanillaNet-9 \(onnxruntime CPU FP32, 79.87 % published, 6\d.\d ms\) "
        r"take ResNet-50 \(onnxruntime CPU FP32, 79.80 % published, 3\d.\d ms\): "
        r"VanillaNet-9 has its accuracy and is 2.00x slower \(.*\), measured in turns\.",
        take,
    )
    assert take in text_of(document)
    assert take in markdown_of(document)


def test_the_page_states_the_one_rule_of_accuracies(document: Doc) -> None:
    """The same that answers and advice go by."""
    assert RULE in text_of(document)
    assert RULE in markdown_of(document)
    at(document, 3)["accuracy"]["top1_percent"] = 79.5
    typed = validate(document)
    assert answers(typed, typed.groups[0])[0].row is typed.groups[0].rows[3], "0.3 points below count as equal"
    at(document, 3)["accuracy"]["top1_percent"] = 79.4
    typed = validate(document)
    answer = answers(typed, typed.groups[0])[0].row
    assert answer is not None
    assert answer.network == "vanillanet_13"


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


def test_sentences_of_a_table_do_not_repeat_its_title(document: Doc) -> None:
    typed = validate(document)
    said = group_verdicts(typed, typed.groups[1])
    assert said[2].startswith("VanillaNet-9 is 1.09x faster (")
    assert said[-1] == "Swin-S failed: crashed: signal 9 (out of memory?)."
    assert not any("INT8" in line for line in said)
    assert all(line in markdown_of(document) for line in said[:3])
