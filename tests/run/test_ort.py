"""The ONNX Runtime runner: files that are no graphs, providers that are not there, graphs that are no classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from vexport.errors import EngineError, InputError
from vexport.graph.quantize import quantize
from vexport.run.ort import CPU, CUDA, TENSORRT, OrtRunner
from vexport.run.ort_session import why_not_provider

from .tiny import SIZE, images, tiny_graph


def test_reads_metadata_providers_and_threads() -> None:
    runner = OrtRunner(tiny_graph().SerializeToString(), threads=1)
    assert runner.metadata == {"vexport.model": "tiny"}
    assert runner.providers == (CPU,)
    assert runner.backend == "onnxruntime CPU"
    assert runner._session.get_session_options().intra_op_num_threads == 1


def test_a_fixed_batch_is_part_of_the_shape() -> None:
    runner = OrtRunner(tiny_graph(shape=(2, 3, 8, 8), output=(2, 5)).SerializeToString())
    assert runner.input_shape == (2, 3, 8, 8)
    assert runner(images(2, *SIZE)).shape == (2, 5)
    with pytest.raises(InputError, match="1x3x8x8, the network takes 2x3x8x8"):
        runner(images(1, *SIZE))


def test_an_fp16_graph_is_fed_and_read_in_float32() -> None:
    half = OrtRunner(tiny_graph(dtype=TensorProto.FLOAT16).SerializeToString())
    full = OrtRunner(tiny_graph().SerializeToString())
    x = images(3, *SIZE)
    assert half(x).dtype == np.float32
    assert half.describe()["input_dtype"] == "float16"
    np.testing.assert_allclose(half(x), full(x), atol=1e-2)


def test_external_data_is_found_and_missed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_graph(), path, save_as_external_data=True, location="tiny.onnx.data", size_threshold=0)
    x = images(1, *SIZE)
    np.testing.assert_array_equal(OrtRunner(path)(x), OrtRunner(tiny_graph().SerializeToString())(x))
    (tmp_path / "tiny.onnx.data").unlink()
    with pytest.raises(InputError, match=r"\.data file"):
        OrtRunner(path)


@pytest.mark.parametrize("content", [b"not a graph", b"\x08\x01", b"\x00" * 100], ids=["text", "no graph", "zeros"])
def test_refuses_files_that_are_no_graphs(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    for source, said in ((path, r"broken\.onnx is not an ONNX graph"), (content, "the graph is not an ONNX graph")):
        with pytest.raises(InputError, match=said) as caught:
            OrtRunner(source)
        assert caught.value.hint
        assert caught.value.details
    assert capfd.readouterr().err == ""


def test_refuses_a_truncated_graph(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    whole = tiny_graph().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not an ONNX graph"):
        OrtRunner(path)


def test_refuses_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InputError, match="is empty"):
        OrtRunner(tmp_path / "empty.onnx")
    with pytest.raises(InputError, match="is empty"):
        OrtRunner(b"")
    with pytest.raises(InputError, match="no such file"):
        OrtRunner(tmp_path / "none.onnx")


def test_refuses_providers_that_are_not_installed() -> None:
    with pytest.raises(InputError, match="does not use FancyExecutionProvider") as caught:
        OrtRunner(tiny_graph().SerializeToString(), providers=["FancyExecutionProvider"])
    assert CPU in str(caught.value)
    with pytest.raises(InputError, match="no execution provider"):
        OrtRunner(tiny_graph().SerializeToString(), providers=[])


def _with_sessions(monkeypatch: pytest.MonkeyPatch, open_session: Callable[..., Any]) -> None:
    """An ONNX Runtime that knows CUDA and opens sessions so."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)


def test_a_provider_that_silently_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel knows CUDA; without a GPU its session runs on the CPU and only says so when asked."""
    real = onnxruntime.InferenceSession
    _with_sessions(monkeypatch, lambda source, options, **_: real(source, providers=[CPU]))
    with pytest.raises(InputError, match="does not use CUDAExecutionProvider"):
        OrtRunner(tiny_graph().SerializeToString(), providers=[CUDA])


class _HalfOnGpu:
    """A session on which CUDA takes the convolution and leaves the rest to the CPU."""

    def __init__(self, graph: bytes, options: Any, **_: Any) -> None:
        if options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1":
            # ONNX Runtime's own words, for a graph of which no provider but the CPU's takes a node.
            raise Fail(
                "nodes that are assigned to the default CPU EP, but fallback to CPU EP has been explicitly disabled"
            )

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        node = SimpleNamespace
        parts = {CUDA: [node(name="conv", op_type="Conv")], CPU: [node(name="", op_type="Shape")]}
        return [node(ep_name=name, get_nodes=lambda nodes=nodes: nodes) for name, nodes in parts.items()]


def test_a_graph_of_which_nodes_are_left_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_sessions(monkeypatch, _HalfOnGpu)
    with pytest.raises(InputError, match="CUDAExecutionProvider leaves nodes of the graph to the CPU") as caught:
        OrtRunner(tiny_graph().SerializeToString(), providers=[CUDA])
    assert caught.value.details == ("unnamed (Shape)",)
    assert "fixed batch" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_gpu_provider_without_a_gpu_is_refused_quietly(provider: str, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime itself would print, and go on with the CPU."""
    with pytest.raises(InputError, match=f"does not use {provider} here"):
        OrtRunner(tiny_graph().SerializeToString(), providers=[provider])
    reason = why_not_provider(provider)
    assert reason is not None
    assert provider in reason
    assert capfd.readouterr() == ("", "")


def test_the_cpu_provider_works_anywhere() -> None:
    assert why_not_provider(CPU) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA failure 719: unspecified launch failure ; GPU=0", "the GPU failed while it ran tiny"),
        ("CUDA error cudaErrorMemoryAllocation:out of memory", "the GPU has no memory left for tiny"),
    ],
)
def test_a_gpu_that_fails_meanwhile_is_an_engine_error(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    runner = OrtRunner(tiny_graph().SerializeToString(), name="tiny")

    def fail(*_: Any) -> None:
        raise Fail(said)

    monkeypatch.setattr(runner, "_session", SimpleNamespace(run=fail))
    with pytest.raises(InputError, match="cannot run tiny"):  # on the CPU it can only be the graph
        runner(images(1, *SIZE))
    monkeypatch.setattr(runner, "providers", (CUDA, CPU))
    with pytest.raises(EngineError, match=expected) as caught:
        runner(images(1, *SIZE))
    assert caught.value.hint


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(KeyError, match="a bug"):
        OrtRunner(tiny_graph().SerializeToString())


def test_refuses_graphs_that_are_no_classifiers() -> None:
    features = [helper.make_node("Conv", ["x", "weight", "bias"], ["y"])]
    map_of_features = tiny_graph(nodes=features, output=("N", 5, 8, 8)).SerializeToString()
    with pytest.raises(InputError, match="does not answer with one row"):
        OrtRunner(map_of_features)
    flatten = [helper.make_node("Flatten", ["x"], ["y"])]
    table = tiny_graph(nodes=flatten, shape=("N", 7), output=("N", 7)).SerializeToString()
    with pytest.raises(InputError, match="does not take one batch of images"):
        OrtRunner(table)


def test_what_fails_while_running_is_an_input_error() -> None:
    """A reshape that holds for one image only, behind a free batch axis."""
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[1, 192]),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    runner = OrtRunner(tiny_graph(nodes=nodes, output=None).SerializeToString(), name="fixed")
    assert runner(images(1, *SIZE)).shape == (1, 192)
    with pytest.raises(InputError, match="cannot run fixed on 2x3x8x8"):
        runner(images(2, *SIZE))


def test_says_how_many_convolutions_of_a_qdq_graph_compute_in_int8(tmp_path: Path) -> None:
    """ONNX Runtime leaves a convolution in FP32 where a Relu stands before the next QuantizeLinear."""
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["a"], name="before_relu"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="before_conv"),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="last"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["y"], name="flatten"),
    ]
    model = tiny_graph(nodes=nodes)
    model.graph.initializer.append(numpy_helper.from_array(images(5, 5, 1, 1), "w2"))
    onnx.save(model, tmp_path / "plain.onnx")
    onnx.save(quantize(model, {"x": 4.0, "b": 3.0, "c": 3.0}), tmp_path / "int8.onnx")
    assert OrtRunner(tmp_path / "plain.onnx").describe()["convolutions"] is None
    assert OrtRunner(tmp_path / "int8.onnx").describe()["convolutions"] == {"int8": 1, "fp32": 2}
