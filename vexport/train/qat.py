"""Quantisation-aware training: the deployed form, rounded in every step as the Q/DQ graph rounds.

What each convolution takes is held by INT8 up to a range that is measured once, before the first step, and then stays.
(Learning the ranges too was tried: a point or none where INT8 loses little, about three where it loses nearly all; not
worth a learning rate of their own.) Weights are held by INT8 with one scale per output channel, which follows the
weights step by step. Gradients pass the rounding as if it were not there, and stop where a value is clipped
(straight-through estimator, Bengio et al., arXiv 1308.3432).

The rounding is torch.fake_quantize_*. torch.ao's quantisation-aware modules are to be removed from torch, and torchao's
successor works on an exported program, which neither the moving average nor the loop could copy and name as it does a
network; both would have to be told this scheme in more lines than it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexport.errors import InputError, RecipeError, TrainingError
from vexport.model.checkpoint import LoadedCheckpoint, load_checkpoint, load_network
from vexport.model.vanillanet import SeriesActivation, VanillaNet
from vexport.model.variants import NetworkSpec
from vexport.run.calibrate import StreamedHistogram
from vexport.run.thresholds import Method, choose_threshold

LEVELS = 127
INPUT_RANGE = "input_range"


class FakeQuantised(nn.Module):
    """What the two kinds of convolution share: the range of what they take, and the rounding of both operands.

    `input_range` is the largest magnitude that INT8 holds of the input; NaN until it was measured. While `histogram` is
    set, the input is counted, and passes as it is.
    """

    input_range: Tensor
    zero: Tensor
    zeros: Tensor

    def add_range(self, channels: int) -> None:
        """Add the buffers.

        Args:
            channels: Output channels.
        """
        self.register_buffer(INPUT_RANGE, torch.tensor(math.nan))
        # Zero points, which the library wants beside the scales; not of the state dict.
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32), persistent=False)
        self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int32), persistent=False)
        self.histogram: StreamedHistogram | None = None

    def round_input(self, x: Tensor) -> Tensor:
        """What INT8 holds of the input: QuantizeLinear saturates at -128 and 127."""
        if self.histogram is not None:
            values = x.detach().float().cpu().numpy()
            largest = float(abs(values).max())
            if not math.isfinite(largest):
                raise TrainingError(
                    "an activation is not finite on the training images before the first step",
                    hint="check qat.start_from with `vexport eval`, and the images",
                )
            self.histogram.add(values, largest)
            return x
        return torch.fake_quantize_per_tensor_affine(x, self.input_range / LEVELS, self.zero, -LEVELS - 1, LEVELS)

    def round_weight(self, weight: Tensor) -> Tensor:
        """What INT8 holds of a weight (O, I, K, K), channel by channel."""
        if self.histogram is not None:
            return weight
        scales = weight.detach().abs().amax((1, 2, 3)) / LEVELS
        # A channel of zeros has no scale: any will do, and the quantiser takes 1 too.
        scales = torch.where(scales < torch.finfo(scales.dtype).tiny, 1.0, scales)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, self.zeros, 0, -LEVELS, LEVELS)
        return rounded


class FakeQuantisedConv(FakeQuantised, nn.Conv2d):
    """A convolution whose input and weight are rounded to what INT8 holds.

    Shape:
        As `nn.Conv2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(self.round_input(x), self.round_weight(self.weight), self.bias)
        return y


class FakeQuantisedSeries(FakeQuantised, SeriesActivation):
    """A deployed series activation whose convolution takes what INT8 holds of the ReLU's output, and so its weight.

    Shape:
        As `SeriesActivation`.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.round_input(F.relu(x)), self.round_weight(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.act_num, groups=self.weight.shape[0])


def fake_quantise(network: VanillaNet, ranges: Mapping[str, float] | None = None) -> VanillaNet:
    """Give every convolution of a deployed network rounded operands, in place.

    Args:
        network: In deployed form; its weights stay what they are.
        ranges: Largest magnitude of what each convolution takes, by its name; None leaves them to be measured.

    Returns:
        The same network. Its state dict has one tensor more per convolution, `<name>.input_range`.
    """
    assert network.deploy
    for name, module in list(network.named_modules()):
        made: FakeQuantisedConv | FakeQuantisedSeries
        with torch.device("meta"):  # nothing is drawn: weights are taken over
            if isinstance(module, SeriesActivation):
                made = FakeQuantisedSeries(module.weight.shape[0], module.act_num, deploy=True)
            elif isinstance(module, nn.Conv2d):
                sides = (module.kernel_size, module.stride, module.padding)
                made = FakeQuantisedConv(module.in_channels, module.out_channels, *sides)  # type: ignore[arg-type]
            else:
                continue
        made.weight, made.bias = module.weight, module.bias
        made.add_range(module.weight.shape[0])
        if ranges is not None:
            made.input_range.fill_(ranges[name])
        network.set_submodule(name, made.train(module.training))
    return network


def rounded_layers(network: nn.Module) -> dict[str, FakeQuantised]:
    """The convolutions with rounded operands, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, FakeQuantised)}


def split_ranges(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A state dict's published tensors, and the ranges beside them, by the name of the convolution."""
    ending = f".{INPUT_RANGE}"
    ranges = {name.removesuffix(ending): float(value) for name, value in tensors.items() if name.endswith(ending)}
    return {name: value for name, value in tensors.items() if not name.endswith(ending)}, ranges


def choose_ranges(network: nn.Module, method: Method) -> None:
    """Set each range from what was counted, and end counting, in place.

    Raises:
        TrainingError: a convolution took nothing but zeros.
    """
    for name, layer in rounded_layers(network).items():
        assert layer.histogram is not None
        counted, layer.histogram = layer.histogram.result(), None
        if not counted.largest:
            raise TrainingError(
                f"{name} takes nothing but zeros on the training images: there is nothing to learn behind it",
                hint="check qat.start_from with `vexport eval`, and the images",
            )
        layer.input_range.fill_(choose_threshold(counted, method))


def load_start(
    path: Path, spec: NetworkSpec, class_names: tuple[str, ...], drop_rate: float = 0.0
) -> tuple[VanillaNet, LoadedCheckpoint]:
    """The deployed network that training starts from, rounded, its ranges not yet measured.

    Args:
        path: A deployed checkpoint, as `vexport fuse` writes it.
        spec: The network that the recipe and its data ask for.
        class_names: Of the data.
        drop_rate: Dropout before the head.

    Raises:
        InputError, CheckpointError: it cannot be read.
        RecipeError: it is in training form, of another network, or of other classes.
    """
    loaded = load_checkpoint(path)
    if loaded.form != "deployed":
        raise RecipeError(
            f"qat.start_from {path} is in training form: its layers are not merged",
            hint=f"merge it first (vexport fuse {path}), and give what that writes",
        )
    wanted, found = spec.to_json(), loaded.spec.to_json()
    if differing := [key for key in wanted if wanted[key] != found.get(key)]:
        raise RecipeError(
            f"qat.start_from {path} is another network than the recipe's",
            details=[
                f"{key}: {found.get(key)} in the file, {wanted[key]} in the recipe and its data" for key in differing
            ],
            hint="give the network section of the recipe that it was trained by, and the same data",
        )
    if loaded.class_names is not None and loaded.class_names != class_names:
        pairs = enumerate(zip(loaded.class_names, class_names, strict=True))
        at, (then, now) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        raise RecipeError(
            f"qat.start_from {path} answers with other classes than the data have",
            details=[f"class {at} is {then} in the file, {now} in the data"],
            hint="give the data that it was trained on",
        )
    network = VanillaNet(**spec.network_kwargs(), drop_rate=drop_rate, deploy=True)
    network.load_state_dict(loaded.tensors)
    return fake_quantise(network), loaded


def load_rounded(path: Path) -> VanillaNet:
    """The network of a checkpoint of this training as it was trained: what the INT8 graph computes, in torch.

    Raises:
        InputError, CheckpointError: as `load_checkpoint`, and where it was not trained so.
    """
    network, loaded = load_network(path)
    if loaded.activation_ranges is None or not isinstance(network, VanillaNet):
        raise InputError(f"{path} has no trained ranges", hint="give a checkpoint of a recipe with a section `qat`")
    return fake_quantise(network, loaded.activation_ranges)
