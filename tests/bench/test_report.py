"""The report: what is compared with what, in which words, and one document that JSON can hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vexport.bench.clock import Samples
from vexport.bench.report import (
    BenchReport,
    Case,
    compared,
    make_report,
    published_clock,
    row_to_json,
    times,
    verdicts,
)
from vexport.bench.statistics import Ratio

FULL, SMALL = (3, 224, 224), (1, 8, 8)
NINE = Case("vanillanet_9", "onnxruntime CPU", "FP32", 1, FULL, "ab12", 79.87, 2.91, "VanillaNet-9")
RESNET = replace(
    NINE, network="resnet50", artifact_sha256=None, published_top1=79.8, published_a100_ms=7.64, label="ResNet-50"
)


def taking(*rounds_ms: float, error: str | None = None, spread: float = 0.0) -> Samples:
    """Rounds of four calls around the same duration."""
    steps = (-spread, 0, 0, spread)
    return Samples("", tuple(tuple(int(ms * (1 + step) * 1e6) for step in steps) for ms in rounds_ms), error)


def report(*measured: tuple[Case, Samples]) -> BenchReport:
    return make_report(measured, environment={"cpu": "Example"}, settings={"rounds": 3})


def test_a_row_has_its_figures_and_ratio() -> None:
    nine, resnet = report((NINE, taking(20, 20, 20)), (RESNET, taking(10, 10, 10))).rows
    assert (nine.median_ms, nine.p90_ms, nine.p99_ms, nine.cv, nine.images_per_s) == (20, 20, 20, 0, 50)
    assert nine.ratio is not None
    assert nine.ratio.value == 2
    assert resnet.ratio is not None
    assert resnet.ratio.value == 1
    assert (nine.published_top1, nine.published_a100_ms, nine.artifact_sha256) == (79.87, 2.91, "ab12")
    assert not nine.unstable


def test_throughput_counts_the_batch() -> None:
    (row,) = report((replace(NINE, batch=8), taking(20))).rows
    assert row.images_per_s == 400


@pytest.mark.parametrize(
    "other",
    [{"input_size": SMALL}, {"backend": "pytorch eager FP32"}, {"batch": 8}, {"precision": "FP16"}],
    ids=lambda changes: next(iter(changes)),
)
def test_only_like_is_compared_with_like(other: dict[str, object]) -> None:
    made = report((replace(NINE, **other), taking(1, 1)), (RESNET, taking(10, 10)))  # type: ignore[arg-type]
    assert made.rows[0].ratio is None
    assert verdicts(made.rows) == []


def test_slower_in_words() -> None:
    made = report((NINE, taking(19.8, 19, 19.2, 20.5, 20.3, 19.8)), (RESNET, taking(*[10] * 6)))
    assert verdicts(made.rows) == [
        "VanillaNet-9 is 1.98x slower (1.90 to 2.05) than ResNet-50 at FP32, batch 1, 224x224, onnxruntime CPU: "
        "about half as fast"
    ]


def test_faster_in_words() -> None:
    made = report((NINE, taking(8, 8, 8)), (RESNET, taking(10, 10, 10)))
    assert verdicts(made.rows, "Example") == [
        "VanillaNet-9 is 1.25x faster (1.25 to 1.25) than ResNet-50 at FP32, batch 1, 224x224, onnxruntime CPU "
        "on Example"
    ]


def test_equal_within_the_interval_in_words() -> None:
    made = report((NINE, taking(9.7, 9.8, 10, 10.2, 10.3)), (RESNET, taking(*[10] * 5)))
    assert verdicts(made.rows, "Example") == [
        "VanillaNet-9 and ResNet-50 cannot be told apart at FP32, batch 1, 224x224, onnxruntime CPU on Example: "
        "1.00x the time (0.97 to 1.03)"
    ]


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (1.95, 1.83, 2.10, "a is 1.95x slower (1.83 to 2.10) than b: about half as fast"),
        (1.19, 1.11, 1.23, "a is 1.19x slower (1.11 to 1.23) than b: 84% as fast"),
        (1.49, 1.45, 1.58, "a is 1.49x slower (1.45 to 1.58) than b: about two thirds as fast"),
        (30.0, 28.0, 31.0, "a is 30.00x slower (28.00 to 31.00) than b: 3.3% as fast"),
        (1.003, 1.001, 1.006, "a is 1.003x slower (1.001 to 1.006) than b"),
        (1 / 1.31, 1 / 1.36, 1 / 1.27, "a is 1.31x faster (1.27 to 1.36) than b"),
        (0.01, 0.009, 0.02, "a is 100.00x faster (50.00 to 111.11) than b"),
        (1.01, 1.0, 1.02, "a and b cannot be told apart: 1.01x the time (1.00 to 1.02)"),
        (0.99, 0.97, 1.0, "a and b cannot be told apart: 0.99x the time (0.97 to 1.00)"),
    ],
)
def test_slower_is_said_as_plainly_as_faster(value: float, low: float, high: float, said: str) -> None:
    """The interval alone decides; one that holds 1, if only at its end, tells nothing apart."""
    assert compared("a", "b", Ratio(value, low, high, 0.95)) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.98, "1.98x"), (1.004, "1.004x"), (0.998, "0.998x"), (1.0002, "1.0002x"), (1.0, "1.00x"), (0.031, "0.031x")],
)
def test_ratios_close_to_one_do_not_look_like_it(value: float, text: str) -> None:
    assert times(value) == text


@pytest.mark.parametrize(
    ("backend", "precision", "clock"),
    [
        ("onnxruntime CPU", "FP32", "PyTorch"),
        ("pytorch eager", "FP16", "PyTorch"),
        ("tensorrt", "fp16", "TensorRT FP16"),
        ("TensorRT for RTX", "FP32", "TensorRT FP32"),
        ("onnxruntime TensorRT provider", "FP16", "TensorRT FP16"),
        ("tensorrt", "INT8", "PyTorch"),
    ],
)
def test_the_paper_s_clock_that_is_most_like_a_backend(backend: str, precision: str, clock: str) -> None:
    assert published_clock(backend, precision) == clock


def test_doubt_is_said() -> None:
    made = report((NINE, taking(20, 20, spread=0.5)), (RESNET, taking(10, 10)))
    assert verdicts(made.rows)[0].endswith("; unstable: VanillaNet-9")
    both = report((NINE, taking(20, 20)), (RESNET, taking(10, 10, spread=0.5)))
    assert verdicts(both.rows)[0].endswith("; unstable: ResNet-50")


def test_a_failure_is_a_row_and_a_sentence() -> None:
    made = report((NINE, taking(error="RuntimeError: out of memory")), (RESNET, taking(10, 10)))
    assert made.rows[0].ratio is None
    assert verdicts(made.rows) == [
        "VanillaNet-9 failed at FP32, batch 1, 224x224, onnxruntime CPU: RuntimeError: out of memory"
    ]
    nobody = report((NINE, taking(10, 10)), (RESNET, taking(error="RuntimeError: no")))
    assert nobody.rows[0].ratio is None


def test_a_row_is_strict_json_with_raw_samples() -> None:
    failed = replace(NINE, network="swin_tiny")
    made = report(
        (NINE, taking(20, 20, 20, 20, 21, 21)), (RESNET, taking(*[10] * 6)), (failed, taking(error="RuntimeError: no"))
    )
    nine, resnet, swin = (
        json.loads(json.dumps(row_to_json(row, samples), allow_nan=False))
        for row, samples in zip(made.rows, made.samples, strict=True)
    )
    assert nine["input_size"] == [3, 224, 224]
    assert nine["samples_ns"] == [[20_000_000] * 4] * 4 + [[21_000_000] * 4] * 2
    assert nine["ratio"]["low"] <= nine["ratio"]["value"] <= nine["ratio"]["high"]
    assert (nine["label"], resnet["published_top1"]) == ("VanillaNet-9", 79.8)
    assert (swin["median_ms"], swin["ratio"], swin["error"]) == (None, None, "RuntimeError: no")
    assert nine["run"]["median_interval_ms"]["low"] == 20
    assert nine["run"]["spikes"] == []
    assert (swin["unstable_because"], swin["run"]["drift"]) == (["error: RuntimeError: no"], None)
    assert nine["device_ms"] is None


def test_the_devices_own_time_is_told_apart() -> None:
    samples = replace(taking(20, 20), parts_ns={"device": ((5_000_000,) * 3, (7_000_000,) * 2), "enqueue": ((1,),)})
    made = report((NINE, samples))
    device = row_to_json(made.rows[0], samples)["device_ms"]
    assert device["median"] == 5.0
    assert 5.0 < device["p90"] <= device["p99"] <= 7.0


def test_images_per_second_live_with_every_slow_call() -> None:
    """The same rule as throughput's over batch sizes: the mean."""
    calls = (10_000_000,) * 9 + (110_000_000,)
    case = Case("vanillanet_9", "onnxruntime CPU", "FP32", 4, (3, 224, 224))
    (row,) = make_report([(case, Samples("vanillanet_9", (calls,)))], environment={}, settings={}).rows
    assert row.median_ms == 10
    assert row.images_per_s == pytest.approx(200)
