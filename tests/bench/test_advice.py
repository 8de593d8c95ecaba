"""Advice over groups: what to pick, what to take instead, and INT8 that does not pay."""

from __future__ import annotations

import pytest

from vexport.bench.advice import Option, advise, front, margin_points
from vexport.bench.clock import Samples
from vexport.bench.report import Case, make_report


def option(
    name: str,
    ms: float,
    top1: float | None,
    *,
    family: str = "ResNet",
    precision: str = "FP32",
    backend: str = "onnxruntime CPU",
    spread: float = 0.01,
    error: str | None = None,
) -> Option:
    rounds = tuple((int(ms * (1 + spread * shift) * 1e6),) * 5 for shift in (-1, -0.6, -0.2, 0.2, 0.6, 1))
    samples = Samples(name, () if error else rounds, error)
    case = Case(name, backend, precision, 1, (3, 224, 224), "ab", label=name)
    (row,) = make_report([(case, samples)], environment={}, settings={}).rows
    return Option(row, samples, "Example", backend.split()[0], family, top1)


def vanilla(name: str, ms: float, top1: float | None, **more: object) -> Option:
    return option(name, ms, top1, family="VanillaNet", **more)  # type: ignore[arg-type]


FIVE, NINE = vanilla("VanillaNet-5", 25, 72.49), vanilla("VanillaNet-9", 62, 79.87)
FIFTY, SWIN = option("ResNet-50", 31, 79.8), option("Swin-T", 55, 81.18, family="Swin")


def test_the_front_has_what_nothing_beats_at_about_its_accuracy() -> None:
    assert front([NINE, FIVE, SWIN, FIFTY]) == [FIVE, FIFTY, SWIN]
    assert front([NINE, option("unknown", 1, None)]) == [NINE]


def test_accuracies_that_so_many_images_do_not_tell_apart_are_equal() -> None:
    assert margin_points(FIFTY) == pytest.approx(0.352, abs=0.001)
    near, far = option("near", 62, 79.8 + 0.3), option("far", 62, 79.8 + 0.4)
    assert front([FIFTY, near]) == [FIFTY]
    assert front([FIFTY, far]) == [FIFTY, far]


def test_what_to_take_instead() -> None:
    picks, instead = advise([FIVE, NINE, FIFTY, SWIN])
    assert picks == (
        "On Example, batch 1, 224x224, pick by accuracy and latency: "
        "VanillaNet-5 (onnxruntime CPU FP32, 72.49 %, 25 ms); ResNet-50 (onnxruntime CPU FP32, 79.80 %, 31 ms); "
        "Swin-T (onnxruntime CPU FP32, 81.18 %, 55 ms)."
    )
    assert instead.startswith(
        "On Example, batch 1, 224x224: instead of VanillaNet-9 (onnxruntime CPU FP32, 79.87 %, 62 ms) "
        "take ResNet-50 (onnxruntime CPU FP32, 79.80 %, 31 ms). VanillaNet-9 takes 2.00x its time (2.00 to 2.00, "
        "measured in turns)"
    )


def test_a_vanillanet_that_wins_is_not_replaced() -> None:
    fast = vanilla("VanillaNet-9", 10, 79.87)
    assert [line for line in advise([fast, FIFTY]) if "instead" in line] == []
    shaky = vanilla("VanillaNet-9", 32, 79.87, spread=0.3)
    assert [line for line in advise([shaky, FIFTY]) if "instead" in line] == [], "not told apart"


def test_the_fastest_form_of_each_counts() -> None:
    """In another backend ResNet-50 is faster still; the two took no turns with each other."""
    other = option("ResNet-50", 20, 79.8, backend="openvino CPU")
    (instead,) = [line for line in advise([NINE, FIFTY, other]) if "instead" in line]
    assert "take ResNet-50 (openvino CPU FP32, 79.80 %, 20 ms)" in instead
    assert "measured one after the other" in instead


def test_int8_that_is_no_faster_is_said_and_never_picked() -> None:
    slow = option("ResNet-50", 33, 79.7, precision="INT8")
    said = advise([FIVE, FIFTY, slow])
    assert "INT8 in onnxruntime is no faster" in said[-1]
    assert "INT8" not in said[0]
    open_question = option("ResNet-50", 30.9, 79.7, precision="INT8", spread=0.2)
    assert "INT8 in onnxruntime is no faster" in advise([FIVE, FIFTY, open_question])[-1]


def test_int8_that_pays_is_an_option_where_its_accuracy_is_known() -> None:
    fast = option("ResNet-50", 15, 79.7, precision="INT8")
    said = advise([FIVE, FIFTY, fast])
    assert "ResNet-50 (onnxruntime CPU INT8, 79.70 %, 15 ms)" in said[0]
    assert not any("no faster" in line for line in said)
    unproven = option("ResNet-50", 15, None, precision="INT8")
    picks, faster = advise([FIVE, FIFTY, unproven])
    assert "INT8" not in picks
    assert (
        "INT8 in onnxruntime is faster, but its accuracy is not known, so it is not picked: ResNet-50 0.48x" in faster
    )


def test_int8_is_held_against_its_own_backend() -> None:
    """Another backend's FP32 may be faster still: that is another sentence."""
    int8 = option("ResNet-50", 15, None, precision="INT8")
    other = option("ResNet-50", 10, 79.8, backend="openvino CPU FP32")
    said = advise([FIVE, FIFTY, int8, other])
    assert said[0].endswith("ResNet-50 (openvino CPU FP32, 79.80 %, 10 ms).")
    assert "INT8 in onnxruntime is faster" in said[-1]


def test_int8_slower_than_fp16_does_not_pay_although_it_beats_fp32() -> None:
    half = option("ResNet-50", 10, 79.8, precision="FP16")
    int8 = option("ResNet-50", 15, 79.7, precision="INT8")
    assert "1.50x the time of FP16 (" in advise([FIFTY, half, int8])[-1]


def test_nothing_is_said_of_one_network_or_of_failures() -> None:
    assert advise([FIFTY]) == []
    assert advise([option("ResNet-50", 1, 79.8, error="crashed"), option("x", 1, 1, error="hung")]) == []


def test_without_accuracy_there_is_nothing_to_pick_by() -> None:
    said = advise([option("a", 1, None), option("b", 2, None)])
    assert said == ["On Example, batch 1, 224x224: no accuracy is known, so there is nothing to pick by."]
