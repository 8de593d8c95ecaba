"""The table of backends: what each takes, what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

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
    assert backends_for("engine") == ["tensorrt"]


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
