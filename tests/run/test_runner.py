"""What both backends promise alike: shapes, dtypes, closing, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vexport.errors import InputError
from vexport.run import Runner, open_runner
from vexport.run.ort import OrtRunner
from vexport.run.pytorch import TorchRunner

from .tiny import SIZE, images, tiny_graph, tiny_module


def open_torch() -> TorchRunner:
    return TorchRunner(tiny_module(), SIZE, name="tiny")


def open_ort() -> OrtRunner:
    return OrtRunner(tiny_graph().SerializeToString(), name="tiny")


@pytest.fixture(params=[open_torch, open_ort], ids=["torch", "ort"])
def runner(request: pytest.FixtureRequest) -> Runner:
    make: Callable[[], Runner] = request.param
    return make()


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_are_the_modules(runner: Runner, batch: int) -> None:
    x = images(batch, *SIZE)
    logits = runner(x)
    assert logits.dtype == np.float32
    assert logits.shape == (batch, 5)
    np.testing.assert_allclose(logits, tiny_module()(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (images(3, 8, 8), "3x8x8, the network takes Nx3x8x8"),
        (images(1, 1, 8, 8), "1x1x8x8"),
        (images(1, 3, 8, 9), "1x3x8x9"),
        (images(0, 3, 8, 8), "0x3x8x8"),
        (images(1, 3, 8, 8, dtype="float64"), "float64, not float32"),
        (np.zeros((1, 3, 8, 8), np.uint8), "uint8"),
        (torch.zeros(1, 3, 8, 8), "Tensor, not an array"),
    ],
)
def test_refuses_what_the_network_does_not_take(runner: Runner, wrong: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        runner(wrong)
    assert caught.value.hint


def test_takes_any_memory_layout_and_leaves_it_alone(runner: Runner) -> None:
    x = images(2, *SIZE)
    expected = runner(x)
    strided = np.asfortranarray(x)
    strided.setflags(write=False)
    np.testing.assert_array_equal(runner(strided), expected)
    np.testing.assert_array_equal(runner(x[::-1])[::-1], expected)
    np.testing.assert_array_equal(strided, x)


def test_a_closed_runner_says_so(runner: Runner) -> None:
    with runner as opened:
        opened(images(1, *SIZE))
    with pytest.raises(InputError, match="tiny is closed"):
        runner(images(1, *SIZE))


def test_describes_itself_in_plain_values(runner: Runner) -> None:
    said = json.loads(json.dumps(runner.describe()))
    assert said["name"] == "tiny"
    assert said["input_shape"] == [None, 3, 8, 8]
    assert set(said) >= {"backend", "threads", "versions", "includes", "excludes"}
    assert "softmax" in said["excludes"]


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_thread_counts_below_one(threads: int) -> None:
    with pytest.raises(InputError, match="threads"):
        TorchRunner(tiny_module(), SIZE, name="tiny", threads=threads)
    with pytest.raises(InputError, match="threads"):
        OrtRunner(tiny_graph().SerializeToString(), threads=threads)


def test_open_runner_takes_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "tiny.fp32.onnx"
    onnx.save(tiny_graph(), path)
    with open_runner(path, threads=1) as opened:
        assert opened.backend == "onnxruntime CPU"
        assert opened.name == "tiny.fp32"
        assert opened.describe()["threads"] == 1


@pytest.mark.parametrize("form", ["training", "deployed"])
def test_open_runner_takes_a_checkpoint(tmp_path: Path, form: Any) -> None:
    from vexport.model.build import build_network
    from vexport.model.variants import make_spec

    network = build_network(make_spec("vanillanet_5", width=1 / 64, num_classes=7), form=form)
    torch.save({"model": network.state_dict()}, tmp_path / "small.pth")
    with open_runner(tmp_path / "small.pth", model="vanillanet_5") as opened:
        assert opened.backend == "pytorch eager FP32"
        assert opened.input_shape == (None, 3, 224, 224)
        x = images(1, 3, 224, 224)
        with torch.inference_mode():
            np.testing.assert_array_equal(opened(x), network(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("name", ["none.onnx", "none.pth"])
def test_open_runner_refuses_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_runner(tmp_path / name)


def test_open_runner_refuses_folders_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        open_runner(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InputError, match="is empty"):
        open_runner(tmp_path / "empty.onnx")
