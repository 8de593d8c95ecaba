"""How many layers with weights stand one after another in a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Where the two factors stand among an operation's arguments; the others are biases and numbers.
_FACTORS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"convolution": (0, 1), "addmm": (1, 2), "mm": (0, 1), "bmm": (0, 1)}
)
_PRODUCTS = ("mul", "mul_")


def longest_path(module: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Layers with weights on the longest path from the images to the logits, as published depths count them.

    Convolutions, depthwise ones too, and linear layers count. Layers beside the path, such as the downsampling
    convolution of a shortcut, do not; nor do those of a gate, which only scales what others give (squeeze and excite).
    `vexport.graph.depth` counts nodes by the same rule.

    Args:
        module: Images (N, C, H, W) to logits (N, classes); on the meta device, so that nothing is computed.
        input_size: C, H and W of an image.
    """
    images = torch.empty(1, *input_size, device="meta")
    counting = _Counting(images)
    with torch.no_grad(), counting:
        logits = module(images)
    return counting.depth(logits)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes of every tensor that depends on the images how many layers lie before it; other tensors are weights."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensors are kept too: an identity of one that is gone may come again.
        self._depths: dict[int, tuple[Tensor, int]] = {id(images): (images, 0)}

    def depth(self, tensor: Tensor) -> int:
        return self._depths[id(tensor)][1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        depends = [one for one in tree_leaves((args, kwargs)) if self._depends(one)]
        if depends:
            depth = self._count(func.overloadpacket.__name__, args, depends)
            self._depths.update({id(one): (one, depth) for one in tree_leaves(given) if isinstance(one, Tensor)})
        return given

    def _depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and id(value) in self._depths

    def _count(self, operation: str, args: Sequence[Any], depends: Sequence[Tensor]) -> int:
        if operation in _PRODUCTS:  # a gate has fewer numbers than what it scales
            most = max(one.numel() for one in depends)
            depends = [one for one in depends if one.numel() == most]
        counts = any(not self._depends(args[place]) for place in _FACTORS.get(operation, ()))
        return max(self.depth(one) for one in depends) + int(counts)
