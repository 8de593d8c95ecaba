"""Accuracy beside latency: of each artifact with each backend that was timed, once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.tiny_bench import folder_of_images, recipe, tiny_graph
from vexport.bench.clock import Samples
from vexport.bench.page import validate
from vexport.errors import EngineError
from vexport.pipeline import evaluate as module
from vexport.pipeline.bench import measure_recipe
from vexport.pipeline.bench_accuracy import Answered, accuracy_key, measure_accuracies
from vexport.pipeline.bench_artifacts import Made, Weights
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_run import Result
from vexport.run.backends import BACKENDS
from vexport.workspace import Workspace

TOP1 = {"onnxruntime": 70.0, "openvino": 69.0}


@dataclass
class Asked:
    """In place of `evaluate`: remembers what it was asked, and fails where a backend has no top-1."""

    calls: list[tuple[str, str, int | None]]

    def __call__(self, artifact: Path, _data: Path, **options: Any) -> Any:
        backend: str = options["backend"]
        self.calls.append((artifact.name, backend, options["size"]))
        if backend not in TOP1:
            raise EngineError("the GPU fails", details=["out of memory"], hint="take a smaller batch")
        score = SimpleNamespace(top1_percent=TOP1[backend], images=10)
        return SimpleNamespace(subject=SimpleNamespace(score=score, backend=f"{backend} here"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked([])
    monkeypatch.setattr(module, "evaluate", asked)
    return asked


def result(file: str, backend: str, *, batch: int = 1, size: int = 32, weights: Weights = "trained") -> Result:
    made = Made(Path(file), file, f"hash of {file}", 10, weights)
    return Result(Cell("own", backend, "fp32", batch, (3, size, size), made), Samples(file, ((1,),)))


def measure(results: list[Result], found: dict[Any, Answered] | None = None) -> tuple[dict[Any, Answered], list[str]]:
    found, told = {} if found is None else found, []
    measure_accuracies(
        results, found, data=Path("images"), limit=None, threads=1, own_process=False, tell=told.append
    )  # fmt: skip
    return found, told


def test_each_artifact_is_answered_once_per_backend(asked: Asked) -> None:
    rows = [
        result("a.onnx", "onnxruntime"),
        result("a.onnx", "onnxruntime", batch=8),
        result("a.onnx", "openvino"),
        result("b.onnx", "openvino"),
        result("b.onnx", "openvino", batch=8),
    ]
    found, told = measure(rows)
    assert asked.calls == [("a.onnx", "onnxruntime", 32), ("a.onnx", "openvino", 32), ("b.onnx", "openvino", 32)]
    answers = [found[accuracy_key(row.cell)].accuracy for row in rows]
    assert [answer["top1_percent"] for answer in answers if answer] == [70, 70, 69, 69, 69]
    assert answers[0] == {
        "top1_percent": 70.0, "source": "measured", "images": 10, "data": "images", "backend": "onnxruntime here",
    }  # fmt: skip
    assert told == []


def test_what_was_found_before_is_not_answered_again(asked: Asked) -> None:
    row = result("a.onnx", "openvino")
    found, _ = measure([row])
    measure([row, result("a.onnx", "onnxruntime")], found)
    assert [backend for _, backend, _ in asked.calls] == ["openvino", "onnxruntime"]


def test_a_checkpoint_is_answered_at_each_size_that_was_timed(asked: Asked) -> None:
    measure([result("a.ckpt", "openvino", size=size) for size in (32, 64, 32)])
    assert [size for *_, size in asked.calls] == [32, 64]


def test_random_weights_answer_nothing(asked: Asked) -> None:
    nothing = Result(Cell("own", "pytorch", "fp32", 1, (3, 32, 32)), Samples("own", ()))
    assert measure([result("a.onnx", "onnxruntime", weights="random"), nothing]) == ({}, [])
    assert asked.calls == []


def test_a_backend_that_fails_is_a_reason_and_costs_no_other(asked: Asked) -> None:
    rows = [result("a.onnx", "onnxruntime-cuda"), result("a.onnx", "openvino")]
    found, told = measure(rows)
    assert found[accuracy_key(rows[0].cell)] == Answered(None, "the GPU fails: out of memory")
    assert told == ["a.onnx with onnxruntime-cuda has no accuracy: the GPU fails: out of memory"]
    answer = found[accuracy_key(rows[1].cell)].accuracy
    assert answer is not None
    assert answer["top1_percent"] == 69


@pytest.mark.skipif(BACKENDS["openvino"].why_not_here() is not None, reason="the extra `openvino` brings it")
def test_rows_of_one_file_say_what_answered_for_each(out: Workspace, made: dict[str, Path], tmp_path: Path) -> None:
    """By the real backends, each in a process of its own."""
    own = tiny_graph(tmp_path / "own.onnx", 9)
    asked = recipe(networks=("resnet50",), backends=("onnxruntime", "openvino"), threads=1)
    outcome = measure_recipe(asked, [own], workspace=out, data=folder_of_images(tmp_path / "images"))
    assert made
    validate(outcome.document)
    rows = [row for group in outcome.document["groups"] for row in group["rows"] if row["network"] == "own"]
    assert [row["accuracy"]["backend"] for row in rows] == [row["backend"] for row in rows]
    assert [row["backend"] for row in rows] == ["onnxruntime CPU", "openvino CPU FP32"]


def test_a_row_without_an_accuracy_says_why(out: Workspace, made: dict[str, Path], tmp_path: Path) -> None:
    own = tiny_graph(tmp_path / "own.onnx", 9)
    images = folder_of_images(tmp_path / "images")
    for label in range(5, 10):
        shutil.rmtree(images / str(label))
    told: list[str] = []
    outcome = measure_recipe(recipe(networks=("resnet50",)), [own], workspace=out, data=images, tell=told.append)
    assert made
    fifty, mine = outcome.document["groups"][0]["rows"]
    (note,) = mine["notes"]
    assert note.startswith("accuracy not measured: ")
    assert "10 classes" in note
    assert (mine["accuracy"], fifty["notes"]) == (None, ["a note"])
    assert any(line.startswith("own.onnx with onnxruntime has no accuracy: ") for line in told)
