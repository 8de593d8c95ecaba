"""The table of backends: what each takes, what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vexport.errors import InputError, MissingDependencyError
from vexport.run import BACKENDS, BackendName, open_module, open_runner, prepare
from vexport.run.backends import backends_for, kind_of
from vexport.run.compiled import CompiledRunner
from vexport.run.ort import CPU

from .tiny import SIZE, images, tiny_graph, tiny_module

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
GPU = [name for name, backend in BACKENDS.items() if backend.device == "gpu"]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_graph(), path)
    return path


@pytest.fixture
def checkpoint(small_checkpoint: Path) -> Path:
    return small_checkpoint


def test_the_table_has_every_name_once() -> None:
    assert tuple(BACKENDS) == get_args(BackendName)
    assert all(name == backend.name and backend.title for name, backend in BACKENDS.items())


@pytest.mark.parametrize("name", BACKENDS)
def test_each_says_in_plain_values_whether_it_runs_here(name: str) -> None:
    said = json.loads(json.dumps(BACKENDS[name].to_json()))
    assert said["name"] == name
    assert said["why_not_here"] is None or isinstance(said["why_not_here"], str)


@pytest.mark.parametrize("name", ["pytorch", "pytorch-channels-last", "onnxruntime"])
def test_those_run_anywhere(name: str) -> None:
    assert BACKENDS[name].why_not_here() is None


@without_gpu
@pytest.mark.parametrize("name", GPU)
def test_without_a_gpu_each_says_why_and_refuses(name: str, graph: Path, checkpoint: Path, tmp_path: Path) -> None:
    backend = BACKENDS[name]
    reason = backend.why_not_here()
    assert reason
    engine = tmp_path / "any.engine"
    engine.write_bytes(b"a plan")
    path = {"graph": graph, "checkpoint": checkpoint, "engine": engine}[backend.takes]
    with pytest.raises(InputError, match=f"the backend {name} cannot run here") as caught:
        open_runner(path, backend=name)
    assert caught.value.details == (reason,)


def test_kinds_by_suffix() -> None:
    kinds = [kind_of(Path(name)) for name in ("a.onnx", "a.ENGINE", "a.plan", "a.safetensors", "a.pth")]
    assert kinds == ["graph", "engine", "engine", "checkpoint", "checkpoint"]
    assert "openvino" in backends_for("graph")
    assert backends_for("engine") == ["tensorrt", "tensorrt-rtx"]


def test_refuses_names_and_artifacts_that_do_not_fit(graph: Path, checkpoint: Path) -> None:
    with pytest.raises(InputError, match="there is no backend caffe") as caught:
        open_runner(graph, backend="caffe")
    assert "openvino" in caught.value.hint
    with pytest.raises(InputError, match=r"pytorch takes a checkpoint, and .*tiny\.onnx is a graph") as caught:
        open_runner(graph, backend="pytorch")
    assert "onnxruntime" in caught.value.hint
    with pytest.raises(InputError, match=r"onnxruntime takes a graph, and .* is a checkpoint"):
        open_runner(checkpoint, backend="onnxruntime")
    with pytest.raises(InputError, match="onnxruntime takes a graph, not a module"):
        open_module(tiny_module(), SIZE, name="tiny", backend="onnxruntime")


def test_a_missing_package_is_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'vexport[openvino]'" in str(BACKENDS["openvino"].why_not_here())
    with pytest.raises(MissingDependencyError, match="the package 'openvino' is not installed") as caught:
        open_runner(graph, backend="openvino")
    assert "vexport[openvino]" in caught.value.hint


def test_a_graph_and_a_checkpoint_by_name(graph: Path, checkpoint: Path) -> None:
    x = images(2, *SIZE)
    with open_runner(graph, backend="onnxruntime", threads=1) as named, open_runner(graph, threads=1) as usual:
        assert named.describe() == usual.describe()
        assert named.describe()["providers"] == [CPU]
        np.testing.assert_array_equal(named(x), usual(x))
        assert prepare(named, x) is None
    x = images(1, 3, 64, 64)
    with (
        open_runner(checkpoint, backend="pytorch-channels-last", threads=1, input_size=(3, 64, 64)) as last,
        open_runner(checkpoint, threads=1, input_size=(3, 64, 64)) as eager,
    ):
        assert (last.backend, eager.backend) == ("pytorch eager FP32 channels-last", "pytorch eager FP32")
        np.testing.assert_allclose(last(x), eager(x), rtol=0, atol=1e-5 * np.abs(eager(x)).max())


class Breaks(nn.Module):
    """What torch.compile can only compile in two halves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x.mean((2, 3))


def test_a_network_that_does_not_become_one_graph_is_refused() -> None:
    """By itself torch.compile would leave a part of it eager."""
    runner = CompiledRunner(Breaks(), SIZE, name="halves")
    with pytest.raises(InputError, match=r"torch\.compile cannot compile halves for 1x3x8x8") as caught:
        runner(images(1, *SIZE))
    assert "graph_break" in str(caught.value)
    assert "pytorch" in caught.value.hint
    assert runner.describe()["compiled"]["compile_s"] == {}


def test_compiling_starts_no_processes_of_its_own() -> None:
    """They would stay in the background of what is timed, one per core for each network that is held open."""
    from torch._inductor import config

    runner, seen = CompiledRunner(tiny_module(), SIZE, name="tiny"), list[int]()
    real = tiny_module()

    def compiled(x: torch.Tensor) -> torch.Tensor:
        seen.append(config.compile_threads)
        return real(x)

    before, runner._compiled = config.compile_threads, compiled
    runner(images(1, *SIZE))
    assert (seen, config.compile_threads) == ([1], before)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(InputError, match="the backend torch-compile cannot run here") as caught:
        open_module(tiny_module(), SIZE, name="tiny", backend="torch-compile")
    assert "/nowhere/g++" in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(BACKENDS["torch-compile"].why_not_here() is not None, reason="there is no C++ compiler")
def test_torch_compile_agrees_and_says_how_long_it_compiled() -> None:
    with open_module(tiny_module(), SIZE, name="tiny", backend="torch-compile", threads=1) as runner:
        for count in (1, 2, 1):
            x = images(count, *SIZE)
            expected = tiny_module()(torch.from_numpy(x)).detach().numpy()
            np.testing.assert_allclose(runner(x), expected, atol=1e-5)
        said = runner.describe()
    assert runner.backend == "pytorch compiled FP32"
    assert set(said["compiled"]["compile_s"]) == {"1", "2"}
    assert all(seconds > 0 for seconds in said["compiled"]["compile_s"].values())
    assert "compilation" in said["excludes"]
    with pytest.raises(InputError, match="tiny is closed"):
        runner(images(1, *SIZE))


@pytest.mark.slow
@pytest.mark.skipif(BACKENDS["torch-compile"].why_not_here() is not None, reason="there is no C++ compiler")
def test_more_compiled_forms_than_a_process_holds_are_refused_not_run_eagerly() -> None:
    torch._dynamo.reset()  # what other tests compiled
    runner = CompiledRunner(tiny_module(), SIZE, name="tiny")
    with torch._dynamo.config.patch(recompile_limit=1):
        runner(images(3, *SIZE))
        with pytest.raises(InputError, match="cannot compile tiny for 4x3x8x8") as caught:
            runner(images(4, *SIZE))
    assert "several processes" in caught.value.hint


def test_an_engine_belongs_to_one_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vexport.artifacts import Manifest
    from vexport.run import backends
    from vexport.run.backends import choose_backend, engine_backend
    from vexport.workspace import manifest_path

    rtx, classic = tmp_path / "a.engine", tmp_path / "b.plan"
    rtx.write_bytes(b"vtrt" + bytes(8))
    classic.write_bytes(b"ftrt" + bytes(8))
    assert [engine_backend(path) for path in (rtx, classic)] == ["tensorrt-rtx", "tensorrt"]
    assert choose_backend(rtx, None).name == "tensorrt-rtx"
    assert engine_backend(tmp_path / "nothing.engine") == "tensorrt"
    manifest = Manifest("engine", "ab", 12, None, {}, {"runtime": {"name": "tensorrt-rtx"}}, versions={})
    manifest_path(classic).write_text(json.dumps(manifest.to_json()))
    assert engine_backend(classic) == "tensorrt-rtx", "what its manifest says comes first"
    monkeypatch.setattr(backends, "_no_tensorrt", lambda _: None)
    with pytest.raises(InputError, match=r"a\.engine is an engine of tensorrt-rtx, not of tensorrt") as caught:
        choose_backend(rtx, "tensorrt")
    assert caught.value.hint == "take the backend tensorrt-rtx"


def test_a_tensorrt_that_is_missing_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    reason = BACKENDS["tensorrt"].why_not_here()
    assert reason is not None
    assert "pip install 'vexport[trt]'" in reason


def qdq_graph() -> onnx.ModelProto:
    from vexport.graph.quantize import conv_inputs, conv_nodes, quantize

    model = tiny_graph()
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
    return quantize(model, dict.fromkeys(conv_inputs(model, conv_nodes(model)), 4.0))


@pytest.mark.parametrize(
    ("model", "types", "flags"),
    [
        (tiny_graph(), set(), {}),
        (tiny_graph(dtype=onnx.TensorProto.FLOAT16), {"fp16"}, {"trt_fp16_enable": "1"}),
        (qdq_graph(), {"int8"}, {"trt_int8_enable": "1"}),
    ],
)
def test_tensorrt_is_told_the_types_of_a_graph(
    model: onnx.ModelProto, types: set[str], flags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its flags the builder refuses Q/DQ nodes, and computes an FP16 graph in FP32."""
    import onnxruntime as ort

    from vexport.run.ort import CUDA, TENSORRT, OrtRunner
    from vexport.run.ort_session import graph_types, provider_options

    path = tmp_path / "x.onnx"
    onnx.save(model, path)
    assert graph_types(path) == graph_types(model.SerializeToString()) == types
    assert provider_options([TENSORRT, CPU], types) == [(TENSORRT, flags), (CPU, {})]
    assert provider_options([CUDA], types) == [(CUDA, {"use_tf32": "1"})]
    given: list[Any] = []

    def start(_source: object, _options: object, *, providers: Any, **_: object) -> Any:
        given.extend(providers)
        raise RuntimeError("stop")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", start)
    with pytest.raises(InputError, match="does not use TensorrtExecutionProvider"):
        OrtRunner(path, providers=[TENSORRT])
    assert given == [(TENSORRT, flags)]


def test_what_is_no_graph_has_no_types(tmp_path: Path) -> None:
    from vexport.run.ort_session import graph_types

    assert graph_types(b"no graph") == frozenset()
    assert graph_types(tmp_path / "nothing.onnx") == frozenset()
