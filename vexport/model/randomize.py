"""Random weights that behave like trained ones: activations and logits of order 1 that vary with the input.

The paper's initialisation (truncated normal of 0.02) gives logits of 1e-11 in a deep variant, on which no tolerance
means anything. Here the weights are drawn from a seed, then every BatchNorm takes the statistics of a few images, so
that each layer's output has unit variance whatever the depth.

The statistics are sums over many values, whose last bits follow the number of threads and their order. So that the
same seed gives the same file in every run, they are computed in float64 and rounded to the grid of bfloat16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def image_like(batch: int, input_size: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Random images (batch, C, H, W), float32: noise at several scales, so that they differ as wholes.

    Args:
        batch: N.
        input_size: C, H and W.
        seed: Of the generator; the same seed gives the same images.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = input_size
    # In float64: the last bits of a float32 sum or interpolation depend on the number of threads.
    total = torch.randn(batch, channels, height, width, generator=generator).double()
    for side in (1, 2, 4, 8, 16):
        if side < min(height, width):
            coarse = torch.randn(batch, channels, side, side, generator=generator).double()
            total += F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (total / total.std(dim=(1, 2, 3), keepdim=True)).float()


@torch.no_grad()
def randomize_(module: nn.Module, input_size: tuple[int, int, int], seed: int = 0, batch: int = 4) -> nn.Module:
    """Fill a module with seeded random weights of the kind above, in place.

    Convolutions and linear layers get normal weights of variance 2 / fan-in, BatchNorms a scale in [0.5, 1.5] and a
    small shift, then the statistics of `batch` random images. Layers that are none of these keep what they have. Last,
    the classifier is scaled so that the logits of other images have unit variance.

    Args:
        module: Any classification network on images.
        input_size: C, H and W of its input.
        seed: Of the generator.
        batch: Images whose statistics the BatchNorms take.

    Returns:
        `module`, in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and name.endswith("weight"):
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(0, math.sqrt(2 / fan_in), generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1, generator=generator)
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.1, generator=generator)
    dtype = next(module.parameters()).dtype
    module.double()
    _take_statistics(module, norms, image_like(batch, input_size, seed).double())
    module.eval()
    scale = 1.0 / module(image_like(batch, input_size, seed + 1).double()).std()
    module.to(dtype)
    _scale_classifier(module, _round(scale).to(dtype))
    return module


def _take_statistics(module: nn.Module, norms: list[_BatchNorm], images: Tensor) -> None:
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                statistic.copy_(_round(statistic))


def _round(values: Tensor) -> Tensor:
    """To the nearest bfloat16, in the type it came in: coarser than what threads change, finer than what matters."""
    return values.to(torch.bfloat16).to(values.dtype)


def _scale_classifier(module: nn.Module, scale: Tensor) -> None:
    last = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
    last.weight.mul_(scale)
    if last.bias is not None:
        last.bias.mul_(scale)
