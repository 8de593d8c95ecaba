"""The OpenVINO runner: answers, precisions read back, INT8 convolutions counted, and files that it refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from vexport.errors import InputError, PrecisionError
from vexport.graph.quantize import quantize
from vexport.run import BACKENDS, open_runner
from vexport.run import openvino as module
from vexport.run.openvino import OpenVinoRunner
from vexport.run.ort import OrtRunner

from .tiny import SIZE, images, tiny_graph

if find_spec("openvino") is None:  # found, not imported: an import by itself would send telemetry
    pytest.skip("the extra `openvino` brings it", allow_module_level=True)
without_bf16 = BACKENDS["openvino-bf16"].why_not_here()
needs_bf16 = pytest.mark.skipif(without_bf16 is not None, reason=str(without_bf16))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return saved(tiny_graph(), tmp_path / "tiny.onnx")


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def two_convolutions() -> onnx.ModelProto:
    """Two convolutions with a Relu between them, FP32, with named nodes."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
    values = {"w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["y"], name="flatten"),
    ]
    model = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", *SIZE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 8))],
        [
            onnx.numpy_helper.from_array(value.detach().numpy(), name)
            for name, value in values.items()
            if value is not None
        ],
    )
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def largest_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


@pytest.mark.parametrize("batch", [1, 3])
def test_fp32_answers_as_onnx_runtime(graph: Path, batch: int) -> None:
    x = images(batch, *SIZE)
    with open_runner(graph, backend="openvino", threads=1) as runner:
        logits = runner(x)
        said = runner.describe()
    assert logits.dtype == np.float32
    assert largest_error(OrtRunner(graph)(x), logits) < 1e-5
    assert said["backend"] == "openvino CPU FP32"
    assert (said["inference_precision"], said["performance_hint"], said["streams"]) == ("f32", "LATENCY", 1)
    assert said["threads"] == 1
    assert said["convolutions"] == {"f32": 1}
    assert said["versions"]["openvino"] != "missing"


def test_an_answer_is_not_written_over_by_the_next(graph: Path) -> None:
    with OpenVinoRunner(graph) as runner:
        first = runner(images(1, *SIZE))
        kept = first.copy()
        runner(images(1, *SIZE) * 2 + 1)
    np.testing.assert_array_equal(first, kept)


@needs_bf16
def test_bf16_is_asked_for_and_read_back(graph: Path) -> None:
    x = images(2, *SIZE)
    with open_runner(graph, backend="openvino-bf16") as runner:
        error = largest_error(OrtRunner(graph)(x), runner(x))
        said = runner.describe()
    assert said["backend"] == "openvino CPU BF16"
    assert said["inference_precision"] == "bf16"
    assert said["convolutions"] == {"bf16": 1}
    assert 1e-6 < error < 5e-2  # of BF16: neither exact nor wrong


@pytest.mark.parametrize("backend", ["openvino", pytest.param("openvino-bf16", marks=needs_bf16)])
def test_a_qdq_graph_computes_its_convolutions_in_int8(tmp_path: Path, backend: str) -> None:
    model = two_convolutions()
    path = saved(quantize(model, {"x": 4.0, "b": 3.0}), tmp_path / "two.int8.onnx")
    partly = saved(quantize(model, {"x": 4.0, "b": 3.0}, keep=["first"]), tmp_path / "partly.int8.onnx")
    x = images(4, *SIZE)
    rest = "FP32" if backend == "openvino" else "BF16"
    with open_runner(path, backend=backend) as runner:
        said = runner.describe()
        assert largest_error(OrtRunner(path)(x), runner(x)) < 5e-2
    assert said["backend"] == f"openvino CPU INT8 + {rest}"
    assert sum(said["convolutions"].get(kind, 0) for kind in ("i8", "u8")) == 2
    with open_runner(partly, backend=backend) as runner:
        counted = runner.describe()["convolutions"]
    assert sum(counted.get(kind, 0) for kind in ("i8", "u8")) == 1
    assert counted[rest.lower().replace("fp32", "f32")] == 1


def test_a_precision_that_openvino_quietly_replaces_is_refused(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    """Asked for FP16, it computes in BF16 or FP32 on CPUs without such instructions, and says so only when asked."""
    core = module.load_openvino().Core()
    if "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in FP16")
    monkeypatch.setattr(module, "PRECISIONS", {"fp32": ("f16", "FP32")})
    with pytest.raises(PrecisionError, match=r"computes in (bf16|f32), not in f16") as caught:
        OpenVinoRunner(graph)
    assert "convolutions: 1 in" in str(caught.value)


def test_a_cpu_without_the_instructions_is_an_input_error(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    monkeypatch.setattr(module, "PRECISIONS", {"bf16": ("bf16", "TRINARY")})
    with pytest.raises(InputError, match="no instructions for TRINARY"):
        OpenVinoRunner(graph, precision="bf16")


def test_a_fixed_batch_is_part_of_the_shape(tmp_path: Path) -> None:
    path = saved(tiny_graph(shape=(2, *SIZE), output=(2, 5)), tmp_path / "two.onnx")
    with OpenVinoRunner(path) as runner:
        assert runner.input_shape == (2, 3, 8, 8)
        assert runner(images(2, *SIZE)).shape == (2, 5)
        with pytest.raises(InputError, match="1x3x8x8, the network takes 2x3x8x8"):
            runner(images(1, *SIZE))


def test_an_fp16_graph_is_fed_and_read_in_float32(tmp_path: Path) -> None:
    path = saved(tiny_graph(dtype=TensorProto.FLOAT16), tmp_path / "half.onnx")
    x = images(3, *SIZE)
    with OpenVinoRunner(path) as half:
        logits = half(x)
        assert half.describe()["input_dtype"] == "float16"
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, OrtRunner(tiny_graph().SerializeToString())(x), atol=1e-2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (images(3, 8, 8), "3x8x8, the network takes Nx3x8x8"),
        (images(0, 3, 8, 8), "0x3x8x8"),
        (images(1, 3, 8, 9), "1x3x8x9"),
        (images(1, 3, 8, 8, dtype="float64"), "float64, not float32"),
    ],
)
def test_refuses_images_that_do_not_fit(graph: Path, wrong: Any, said: str) -> None:
    with OpenVinoRunner(graph) as runner, pytest.raises(InputError, match=said):
        runner(wrong)


def test_a_closed_runner_says_so(graph: Path) -> None:
    with OpenVinoRunner(graph) as runner:
        runner(images(1, *SIZE))
    with pytest.raises(InputError, match="tiny is closed"):
        runner(images(1, *SIZE))
    with pytest.raises(InputError, match="0 threads"):
        OpenVinoRunner(graph, threads=0)


@pytest.mark.parametrize("content", [b"not a graph", b"\x00" * 100], ids=["text", "zeros"])
def test_refuses_files_that_are_no_graphs(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a whole ONNX graph"):
        OpenVinoRunner(path)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="no such file"):
        OpenVinoRunner(tmp_path / "none.onnx")


def test_refuses_operators_that_openvino_does_not_know(tmp_path: Path) -> None:
    nodes = [helper.make_node("Invented", ["x"], ["y"], domain="nowhere")]
    model = tiny_graph(nodes=nodes)
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(InputError, match="that OpenVINO can compile") as caught:
        OpenVinoRunner(saved(model, tmp_path / "odd.onnx"))
    assert "Invented" in str(caught.value)


def test_refuses_graphs_that_are_no_classifiers(tmp_path: Path) -> None:
    features = [helper.make_node("Conv", ["x", "weight", "bias"], ["y"])]
    maps = tiny_graph(nodes=features, output=("N", 5, 8, 8))
    with pytest.raises(InputError, match="does not answer with one row"):
        OpenVinoRunner(saved(maps, tmp_path / "maps.onnx"))
    flatten = [helper.make_node("Flatten", ["x"], ["y"])]
    table = tiny_graph(nodes=flatten, shape=("N", 7), output=("N", 7))
    with pytest.raises(InputError, match="does not take one batch of images"):
        OpenVinoRunner(saved(table, tmp_path / "table.onnx"))


def test_its_telemetry_is_never_loaded() -> None:
    """In a process of its own: here another test may have imported OpenVINO already."""
    code = (
        "import sys; from vexport.run.openvino import load_openvino; load_openvino();"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
