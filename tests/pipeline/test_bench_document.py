"""The document of a benchmark: the paper's figures beside what was measured, and what follows from all groups."""

from __future__ import annotations

from typing import Any

import pytest

from vexport.bench.clock import Samples
from vexport.bench.page import validate
from vexport.model.baselines import BASELINES, published_figures
from vexport.model.variants import VARIANTS
from vexport.pipeline.bench_accuracy import Answered, accuracy_key
from vexport.pipeline.bench_artifacts import Made
from vexport.pipeline.bench_document import Found, make_document, published_latencies
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_run import Result

SIZE = (3, 224, 224)


def result(network: str, backend: str, precision: str, ms: float, *, batch: int = 1, published: bool = True) -> Result:
    rounds = tuple((int(ms * 1e6 * (1 + 0.001 * turn)),) * 5 for turn in range(6))
    made = Made(None, f"{network}.onnx", f"{network}{precision}", 10, "random", ("a note",))
    cell = Cell(network, backend, precision, batch, SIZE, made, model=network, is_published=published)
    return Result(cell, Samples(network, rounds), {"backend": f"{backend} here"})


def document(*groups: list[Result], **more: Any) -> dict[str, Any]:
    made, _ = make_document(Found(groups, {"cpu": "Example"}, {}, "vexport bench", **more))
    validate(made)
    return made


@pytest.mark.parametrize(
    ("backend", "precision", "beside"),
    [
        ("onnxruntime", "fp32", (2.91, 7.64)),
        ("onnxruntime", "int8", (2.91, 7.64)),
        ("openvino", "fp32", (2.91, 7.64)),
        ("pytorch", "fp32", (2.91, 7.64)),
        ("pytorch-fp16", "fp16", (2.91, 7.64)),
        ("tensorrt", "fp32", (0.58, 0.80)),
        ("tensorrt", "fp16", (0.49, 0.54)),
        ("tensorrt-rtx", "fp16", (0.49, 0.54)),
        ("onnxruntime-tensorrt", "fp16", (0.49, 0.54)),
        ("tensorrt", "int8", (2.91, 7.64)),
    ],
)
def test_every_published_network_has_its_published_figures(
    backend: str, precision: str, beside: tuple[float, float]
) -> None:
    group = [result("vanillanet_9", backend, precision, 20), result("resnet50", backend, precision, 10)]
    nine, fifty = document(group)["groups"][0]["rows"]
    assert (nine["published_a100_ms"], fifty["published_a100_ms"]) == beside
    assert nine["published_latencies_ms"] == {"PyTorch": 2.91, "TensorRT FP32": 0.58, "TensorRT FP16": 0.49}
    assert fifty["published_latencies_ms"] == {"PyTorch": 7.64, "TensorRT FP32": 0.80, "TensorRT FP16": 0.54}
    assert nine["ratio"]["value"] == pytest.approx(2), "ours alone"


def test_figures_of_another_batch_or_size_have_none_beside_them() -> None:
    eight = result("vanillanet_9", "onnxruntime", "fp32", 20, batch=8)
    small = result("vanillanet_9", "onnxruntime", "fp32", 20, published=False)
    for one in (eight, small):
        (row,) = document([one])["groups"][0]["rows"]
        assert (row["published_a100_ms"], row["published_latencies_ms"]) == (None, {})


def test_the_paper_has_a_pytorch_figure_of_every_network() -> None:
    for name in (*VARIANTS, *BASELINES):
        assert "PyTorch" in published_latencies(published_figures(name), 1)
    assert published_latencies(published_figures("swin_small"), 1) == {"PyTorch": 20.25}
    assert published_latencies(None, 1) == {}


def test_networks_of_published_figures_alone_have_theirs() -> None:
    made = document([result("resnet50", "pytorch", "fp32", 10)], published=("vitae_tiny",))
    vitae = made["groups"][0]["rows"][-1]
    assert (vitae["published_latencies_ms"], vitae["median_ms"]) == ({"PyTorch": 13.37}, None)


def test_conclusions_over_groups_are_part_of_it() -> None:
    fp32 = [result("vanillanet_9", "onnxruntime", "fp32", 20), result("resnet50", "onnxruntime", "fp32", 10)]
    int8 = [result("vanillanet_9", "onnxruntime", "int8", 30), result("resnet50", "onnxruntime", "int8", 5)]
    made = document(fp32, int8)
    assert [row["against_float"] for row in made["groups"][0]["rows"]] == [None, None]
    slow, fast = (row["against_float"]["value"] for row in made["groups"][1]["rows"])
    assert (slow, fast) == (pytest.approx(1.5, rel=0.01), pytest.approx(0.5, rel=0.01))
    assert [one["network"] for one in made["instead"]] == ["vanillanet_9"]
    assert made["groups"][0]["rows"][0]["accuracy"]["source"] == "published"
    assert made["groups"][1]["rows"][0]["accuracy"] is None, "INT8 has none that is published"
    assert any("INT8 in onnxruntime is slower than floating point" in line for line in made["advice"])


def test_a_row_has_the_accuracy_of_its_own_backend() -> None:
    """Of one file; batches share it, and where there is none, the row says why."""
    ort = result("vanillanet_9", "onnxruntime", "fp32", 20)
    eight = result("vanillanet_9", "onnxruntime", "fp32", 90, batch=8)
    int8 = result("vanillanet_9", "openvino", "int8", 20)
    rtx = result("vanillanet_9", "onnxruntime-tensorrt", "int8", 20)
    measured = {"source": "measured", "images": 9, "data": "x"}
    keys = {one.cell.backend: accuracy_key(one.cell) for one in (ort, int8, rtx)}
    answered = {
        keys["onnxruntime"]: Answered({"top1_percent": 70.0, **measured}),
        keys["openvino"]: Answered({"top1_percent": 69.0, **measured}),
        keys["onnxruntime-tensorrt"]: Answered(None, "the GPU has no memory left"),
    }
    made = document([ort], [eight], [int8], [rtx], accuracies=answered)
    rows = [group["rows"][0] for group in made["groups"]]
    assert [row["accuracy"] and row["accuracy"]["top1_percent"] for row in rows] == [70, 70, 69, None]
    reason = "accuracy not measured: the GPU has no memory left"
    assert [row["notes"][1:] for row in rows] == [[], [], [], [reason]]
