"""The PyTorch runner: dtypes, devices, threads, and a module that stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vexport.errors import EngineError, InputError
from vexport.run import prepare
from vexport.run.pytorch import TorchRunner

from .tiny import SIZE, images, tiny_module


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float64_takes_both_and_answers_in_float64(dtype: str) -> None:
    runner = TorchRunner(tiny_module(), SIZE, name="tiny", dtype=torch.float64)
    x = images(2, *SIZE, dtype=dtype)
    logits = runner(x)
    assert runner.backend == "pytorch eager FP64"
    assert logits.dtype == np.float64
    expected = tiny_module().double()(torch.from_numpy(x).double()).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-13)


def test_half_precision_is_named_and_answers_in_float32() -> None:
    runner = TorchRunner(tiny_module(), SIZE, name="tiny", dtype=torch.bfloat16)
    assert runner.backend == "pytorch eager BF16"
    assert runner(images(1, *SIZE)).dtype == np.float32


def test_the_module_given_is_not_changed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    TorchRunner(module, SIZE, name="tiny", dtype=torch.float64)(images(3, *SIZE))
    TorchRunner(module, SIZE, name="tiny")(images(3, *SIZE))
    assert all(part.training for part in module.modules())
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_a_module_that_is_ready_is_not_copied() -> None:
    module = tiny_module()
    assert TorchRunner(module, SIZE, name="tiny")._module is module


def test_one_layer_in_training_mode_is_enough_for_a_copy() -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    module[0].train()
    runner = TorchRunner(module, SIZE, name="tiny")
    x = images(2, *SIZE)
    np.testing.assert_array_equal(runner(x), runner(x))
    assert module[0].training


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    other = 1 if before != 1 else 2
    with TorchRunner(tiny_module(), SIZE, name="tiny", threads=other) as runner:
        runner(images(1, *SIZE))
        assert torch.get_num_threads() == other
        assert runner.describe()["threads"] == other
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "module",
    [nn.Flatten(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(0)],
    ids=["rank 3", "rank 4", "no batch"],
)
def test_refuses_what_is_not_a_classifier(module: nn.Module) -> None:
    with pytest.raises(InputError, match="not 2xclasses"):
        TorchRunner(module, SIZE, name="tiny")(images(2, *SIZE))


def test_refuses_a_module_that_answers_with_a_tuple() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(InputError, match="tuple, not an array"):
        TorchRunner(Two(), SIZE, name="two")(images(1, *SIZE))


def test_refuses_devices_and_dtypes_that_are_not_there() -> None:
    with pytest.raises(InputError, match="cannot compute on nowhere"):
        TorchRunner(tiny_module(), SIZE, name="tiny", device="nowhere")
    with pytest.raises(InputError, match="cannot compute in"):
        TorchRunner(tiny_module(), SIZE, name="tiny", dtype=torch.int8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cuda"):
        TorchRunner(tiny_module(), SIZE, name="tiny", device="cuda")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "the GPU failed while it ran tiny"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the GPU failed while it ran tiny"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "the GPU failed while it ran tiny"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "the GPU has no memory left for tiny",
        ),
    ],
)
def test_a_gpu_that_fails_meanwhile_is_an_engine_error(error: RuntimeError, expected: str) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(EngineError, match=expected) as caught:
        TorchRunner(Fails(), SIZE, name="tiny")(images(1, *SIZE))
    assert caught.value.hint
    assert caught.value.details == (str(error),)


def test_other_errors_of_the_module_keep_their_traceback() -> None:
    """A bug that happens to name a device is no failing GPU."""

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu")

    with pytest.raises(RuntimeError, match="same device") as caught:
        TorchRunner(Fails(), SIZE, name="tiny")(images(1, *SIZE))
    assert not isinstance(caught.value, EngineError)


def test_channels_last_is_the_layout_that_the_network_sees() -> None:
    seen: list[bool] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            seen.append(self.conv.weight.is_contiguous(memory_format=torch.channels_last))
            logits: torch.Tensor = self.conv(x).mean((2, 3))
            return logits

    module = Looks().eval()
    x = images(2, *SIZE)
    plain, last = TorchRunner(module, SIZE, name="a"), TorchRunner(module, SIZE, name="a", channels_last=True)
    np.testing.assert_allclose(last(x), plain(x), atol=1e-6)
    assert seen == [True, True, False, False]
    assert module.conv.weight.is_contiguous()
    assert last.describe()["memory_format"] == "channels-last (NHWC)"
    assert last.backend == "pytorch eager FP32 channels-last"
    assert plain.describe()["memory_format"] == "contiguous (NCHW)"


def test_there_is_nothing_to_prepare_on_a_cpu_and_no_cuda_graph() -> None:
    runner = TorchRunner(tiny_module(), SIZE, name="tiny")
    assert prepare(runner, images(1, *SIZE)) is None
    with pytest.raises(InputError, match="1x1x8x8"):
        prepare(runner, images(1, 1, 8, 8))
    with pytest.raises(InputError, match="cpu records no CUDA graphs"):
        TorchRunner(tiny_module(), SIZE, name="tiny", cuda_graph=True)
