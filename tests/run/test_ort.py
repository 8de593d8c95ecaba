"""The ONNX Runtime runner: files that are no graphs, providers that are not there, graphs that are no classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vexport.errors import InputError
from vexport.run.ort import CPU, OrtRunner

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


def test_a_provider_that_silently_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel knows CUDA; without a GPU its session runs on the CPU and only says so when asked."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda source, options, providers: real(source, options, providers=[CPU])
    )
    with pytest.raises(InputError, match="does not use CUDAExecutionProvider"):
        OrtRunner(tiny_graph().SerializeToString(), providers=["CUDAExecutionProvider"])


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
