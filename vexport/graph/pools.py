"""Adaptive max-pools as ordinary ones, for one input size.

ONNX has no adaptive max-pool. For a fixed input size an adaptive pool of PyTorch takes, along each axis, the windows
[floor(i * size / target), ceil((i + 1) * size / target)); where these are the windows of an ordinary pool, that pool
gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vexport.errors import ExportError


def ordinary_pool(size: int, target: int) -> tuple[int, int, int] | None:
    """Kernel, stride and padding with the windows of an adaptive pool along one axis.

    Args:
        size: Length of the axis before the pool.
        target: Length after it.

    Returns:
        The smallest kernel that fits, with padding on both sides alike; None where there is none.
    """
    windows = [(index * size // target, -(-(index + 1) * size // target)) for index in range(target)]
    longest = max(end - start for start, end in windows)
    for kernel in range(longest, longest + 2):
        for padding in range(kernel // 2 + 1):
            stride = 1 if target == 1 else windows[1][0] + padding
            clipped = [(max(i * stride - padding, 0), min(i * stride - padding + kernel, size)) for i in range(target)]
            if stride > 0 and clipped == windows and (size + 2 * padding - kernel) // stride + 1 == target:
                return kernel, stride, padding
    return None


@contextmanager
def ordinary_pools(module: nn.Module, image: Tensor) -> Iterator[None]:
    """Within this block the module's adaptive max-pools are ordinary ones, for images of one size.

    Args:
        module: Changed within the block and restored after it.
        image: (N, C, H, W), of the size that the pools are made for.

    Raises:
        ExportError: at this size a pool has windows that no ordinary pool has.
    """
    adaptive = {name: m for name, m in module.named_modules() if isinstance(m, nn.AdaptiveMaxPool2d)}
    if not adaptive:
        yield
        return
    sizes = _input_sizes(adaptive, module, image)
    try:
        for name, pool in adaptive.items():
            _set(module, name, _replacement(name, pool, sizes[name]))
        yield
    finally:
        for name, pool in adaptive.items():
            _set(module, name, pool)


def _input_sizes(
    pools: dict[str, nn.AdaptiveMaxPool2d], module: nn.Module, image: Tensor
) -> dict[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] = (inputs[0].shape[-2], inputs[0].shape[-1])

        return pools[name].register_forward_pre_hook(hook)

    handles = [note(name) for name in pools]
    try:
        with torch.no_grad():
            module(image[:1])
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _replacement(name: str, pool: nn.AdaptiveMaxPool2d, size: tuple[int, int]) -> nn.Module:
    wanted = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size, pool.output_size)
    targets = [before if target is None else target for before, target in zip(size, wanted, strict=True)]
    found = [ordinary_pool(before, target) for before, target in zip(size, targets, strict=True)]
    if found[0] is None or found[1] is None:
        raise ExportError(
            f"{name} pools {size[0]}x{size[1]} to {targets[0]}x{targets[1]}, which no ordinary max-pool does",
            hint="export it for 224x224, or use the variant without adaptive pools",
        )
    (kernel_h, stride_h, pad_h), (kernel_w, stride_w, pad_w) = found[0], found[1]
    return nn.MaxPool2d((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w))


def _set(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)
