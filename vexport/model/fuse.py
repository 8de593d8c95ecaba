"""The merge: from the training form to the deployed form, in exact algebra and float64.

At slope 1 the activation A' between two convolutions is the identity, so (paper, section 3.1)

    BN2(W2 * BN1(W1 * x + b1) + b2)

is one convolution. BatchNorm folds into the convolution before it; a 1x1 convolution composes with the one before it
by a matrix product. The functions here are pure; `merge_blocks` walks a whole network one block at a time, so that no
more than one block is ever held in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vexport.errors import FusionError
from vexport.model.vanillanet import BN_EPS
from vexport.model.variants import NetworkSpec


class ConvWeights(NamedTuple):
    """A convolution: weight (O, I, K, K) and bias (O,)."""

    weight: Tensor
    bias: Tensor


class BatchNormStats(NamedTuple):
    """An evaluated BatchNorm over C channels: scale, shift, running mean and variance, each (C,)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float = BN_EPS


def fold_batchnorm(conv: ConvWeights, bn: BatchNormStats) -> ConvWeights:
    """Fold an evaluated BatchNorm into the convolution before it.

        scale = gamma / sqrt(var + eps);   W' = scale W;   b' = scale (b - mean) + beta

    Args:
        conv: Weight (O, I, K, K) and bias (O,).
        bn: Over O channels.

    Returns:
        Weight (O, I, K, K) and bias (O,), float64, with `conv'(x) == bn(conv(x))`.

    Raises:
        FusionError: the channel counts differ, or a variance plus eps is not positive.
    """
    if bn.weight.shape != conv.bias.shape:
        raise FusionError(
            f"a BatchNorm over {len(bn.weight)} channels does not follow a convolution to {len(conv.bias)}",
            hint="only a BatchNorm right behind its convolution can be folded",
        )
    variance = bn.running_var.double() + bn.eps
    if not bool((variance > 0).all()):
        raise FusionError("a BatchNorm's variance is not positive", hint="the checkpoint is damaged: take another one")
    scale = bn.weight.double() / variance.sqrt()
    # `to` with copy, then in place: one float64 copy of the weight exists, not two.
    weight = conv.weight.to(torch.float64, copy=True).mul_(scale.reshape(-1, 1, 1, 1))
    return ConvWeights(weight, scale * (conv.bias.double() - bn.running_mean.double()) + bn.bias.double())


def compose(first: ConvWeights, second: ConvWeights) -> ConvWeights:
    """One convolution for `second(first(x))`, where the second is 1x1.

        W = W2 W1 over flattened kernels;   b = W2 b1 + b2

    Exact also where the first one pads, since its padding is applied to x.

    Args:
        first: Weight (M, I, K, K) and bias (M,).
        second: Weight (O, M, 1, 1) and bias (O,).

    Returns:
        Weight (O, I, K, K), contiguous, and bias (O,), float64.

    Raises:
        FusionError: the second is not 1x1, or does not take what the first gives.
    """
    outputs, middle, *kernel = second.weight.shape
    if kernel != [1, 1] or middle != first.weight.shape[0]:
        raise FusionError(
            f"convolutions {tuple(first.weight.shape)} and {tuple(second.weight.shape)} do not compose",
            hint="the second must be 1x1 and take the first one's channels",
        )
    matrix = second.weight.double().reshape(outputs, middle)
    flat = first.weight.double().reshape(middle, -1)
    weight = (matrix @ flat).reshape(outputs, *first.weight.shape[1:])
    return ConvWeights(weight, matrix @ first.bias.double() + second.bias.double())


def fuse_series_activation(weight: Tensor, bn: BatchNormStats) -> ConvWeights:
    """The depthwise convolution of a series activation with its BatchNorm folded in.

    Args:
        weight: (C, 1, 2n+1, 2n+1); in training form it has no bias.
        bn: Over C channels.

    Returns:
        Weight (C, 1, 2n+1, 2n+1) and bias (C,), float64.
    """
    return fold_batchnorm(ConvWeights(weight, weight.new_zeros(weight.shape[0])), bn)


@dataclass(frozen=True)
class Block:
    """Where one block's tensors stand, before and after.

    Args:
        name: `stem`, `stages.N` or `head`.
        first, first_bn, second, second_bn, act: Prefixes in the training form; empty where there is none.
        conv, act_deployed: Prefixes in the deployed form.
    """

    name: str
    first: str
    first_bn: str
    second: str
    second_bn: str
    act: str
    conv: str
    act_deployed: str


def blocks_of(spec: NetworkSpec) -> list[Block]:
    """The blocks of a network in order: stem, stages, head."""
    stem = Block("stem", "stem1.0", "stem1.1", "stem2.0", "stem2.1", "stem2.2", "stem.0", "stem.1")
    stages = [
        Block(s, f"{s}.conv1.0", f"{s}.conv1.1", f"{s}.conv2.0", f"{s}.conv2.1", f"{s}.act", f"{s}.conv", f"{s}.act")
        for s in (f"stages.{index}" for index in range(len(spec.dims) - 1))
    ]
    return [stem, *stages, Block("head", "cls1.2", "cls1.3", "cls2.0", "", "", "cls.2", "")]


def conv_weights(tensors: Mapping[str, Tensor], prefix: str) -> ConvWeights:
    """The convolution that stands at a prefix."""
    return ConvWeights(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])


def batchnorm_stats(tensors: Mapping[str, Tensor], prefix: str) -> BatchNormStats:
    """The BatchNorm that stands at a prefix."""
    weight, bias, mean, var = (
        tensors[f"{prefix}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return BatchNormStats(weight, bias, mean, var)


@torch.no_grad()
def merge_block(tensors: Mapping[str, Tensor], block: Block) -> dict[str, Tensor]:
    """Merge one block.

    Args:
        tensors: A training form's state dict; not changed.
        block: Which one.

    Returns:
        The deployed tensors of the block by published name, float64 and contiguous.

    Raises:
        FusionError: the block cannot be merged.
    """
    first = fold_batchnorm(conv_weights(tensors, block.first), batchnorm_stats(tensors, block.first_bn))
    second = conv_weights(tensors, block.second)
    if block.second_bn:
        second = fold_batchnorm(second, batchnorm_stats(tensors, block.second_bn))
    merged = compose(first, second)
    del first, second
    result = {f"{block.conv}.weight": merged.weight, f"{block.conv}.bias": merged.bias}
    if block.act:
        act = fuse_series_activation(tensors[f"{block.act}.weight"], batchnorm_stats(tensors, f"{block.act}.bn"))
        result |= {f"{block.act_deployed}.weight": act.weight, f"{block.act_deployed}.bias": act.bias}
    return {name: tensor.contiguous() for name, tensor in result.items()}


def merge_blocks(tensors: Mapping[str, Tensor], spec: NetworkSpec) -> Iterator[tuple[Block, dict[str, Tensor]]]:
    """Merge a network block by block; drop each result before asking for the next to keep memory small."""
    for block in blocks_of(spec):
        yield block, merge_block(tensors, block)


def store(merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Deployed tensors as they are stored: float32, contiguous.

    Raises:
        FusionError: a value does not fit into float32.
    """
    stored = {name: tensor.float().contiguous() for name, tensor in merged.items()}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise FusionError(
                f"{name} exceeds float32 once merged", hint="a BatchNorm variance is near zero: check training"
            )
    return stored
