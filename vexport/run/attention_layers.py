"""The layers of a network that an attention map can be made at: those that give a feature map, found by running it.

A feature map is (N, C, H, W), or (N, H, W, C) as in Swin, or tokens (N, L, C) as in ViT. Which of them it is follows
from the proportions of the image.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vexport.errors import InputError
from vexport.run.runner import times

Layout = Literal["NCHW", "NHWC", "tokens"]
LISTED = 12
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d)
_PASSING = (nn.Identity, _DropoutNd)  # in evaluation mode


@dataclass(frozen=True)
class MapLayer:
    """A layer that gives a feature map.

    Args:
        name: As in `named_modules()`.
        height: Of the map.
        width: Of the map.
        layout: How its axes are ordered.
        prefix: Tokens before those of the map.
        calls: How often it runs in one pass.
        is_own: Whether it computes its map: False for one that hands on what it was given, and for adaptive pools.
    """

    name: str
    height: int
    width: int
    layout: Layout = "NCHW"
    prefix: int = 0
    calls: int = 1
    is_own: bool = True

    @property
    def is_single(self) -> bool:
        """Whether the map is one place, which says nothing of where."""
        return self.height * self.width == 1

    def to_maps(self, values: Tensor) -> Tensor:
        """Its output, or the gradient of that, as (N, C, H, W); always a copy, since later layers may work in place."""
        if self.layout == "NCHW":
            return values.detach().clone()
        if self.layout == "NHWC":
            return values.detach().permute(0, 3, 1, 2).clone()
        tokens = values.detach()[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(tokens.shape[0], tokens.shape[1], self.height, self.width).clone()


def list_map_layers(network: nn.Module, input_size: tuple[int, int, int]) -> list[MapLayer]:
    """Every layer that gives a feature map, in the order in which they finish.

    Args:
        network: Images (N, C, H, W) to logits; it is run once on an empty image and left as it was.
        input_size: C, H and W.
    """
    found: dict[str, MapLayer] = {}
    prefix = int(getattr(network, "num_prefix_tokens", 0))

    def note(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        before = found.pop(name, None)  # the last run decides the place
        if before is not None:
            found[name] = replace(before, calls=before.calls + 1)
            return
        layer = _read_map(name, tuple(output.shape), input_size, prefix)
        if layer is not None:
            passed = isinstance(module, _PASSING) and any(output is one for one in given)
            found[name] = replace(layer, is_own=not passed and not isinstance(module, _POOLS))

    handles = [
        module.register_forward_hook(lambda module, given, output, name=name: note(name, module, given, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with as_evaluated(network), torch.no_grad():
            network(torch.zeros(1, *input_size, device=device_of(network)))
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def choose_layer(network: nn.Module, layers: list[MapLayer], name: str | None, *, network_name: str) -> MapLayer:
    """The layer to make maps at.

    Args:
        network: Whose layers they are.
        layers: As `list_map_layers` gives them.
        name: The one asked for; None takes the last with a map larger than 1x1, yet none within a block that gives 1x1.
        network_name: For messages.

    Raises:
        InputError: there is no such layer, it gives no map, one of 1x1, or several in one pass.
    """
    usable = [layer for layer in layers if not layer.is_single and layer.calls == 1 and layer.is_own]
    if not usable:
        raise InputError(
            f"no layer of {network_name} gives a feature map larger than 1x1",
            hint="attention maps need a convolutional network or a transformer, and images large enough for it",
        )
    default = _last(network, layers, usable)
    if name is None:
        return default
    listed = [f"can be used: {_describe(layer)}" for layer in _outline(usable)]
    found = next((layer for layer in layers if layer.name == name), None)
    if found is None:
        every = [one for one, _ in network.named_modules() if one]
        if name in every:
            raise InputError(
                f"the layer {name} of {network_name} gives no feature map",
                details=listed,
                hint=f"take another one, as --layer {default.name}",
            )
        near = difflib.get_close_matches(name, [layer.name for layer in usable], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"take one of these, as --layer {default.name}"
        raise InputError(f"{network_name} has no layer {name}", details=listed, hint=hint)
    if found.calls > 1:
        raise InputError(
            f"the layer {name} of {network_name} runs {found.calls} times in one pass: it has no single map",
            details=listed,
            hint="take the block around it",
        )
    if found.is_single:
        raise InputError(
            f"the map of {name} of {network_name} is 1x1: it says nothing of where",
            details=listed,
            hint=f"take a layer with a larger map, as --layer {default.name}",
        )
    return found


def device_of(network: nn.Module) -> torch.device:
    """Where a network is."""
    tensor = next(iter([*network.parameters(), *network.buffers()]), None)
    return tensor.device if tensor is not None else torch.device("cpu")


@contextmanager
def as_evaluated(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and frozen weights inside this block, so that their gradients are not touched; then as before."""
    modes = [(module, module.training) for module in network.modules()]
    weights = [(weight, weight.requires_grad) for weight in network.parameters()]
    try:
        network.eval()
        for weight, _ in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, wants in weights:
            weight.requires_grad_(wants)


def _last(network: nn.Module, layers: list[MapLayer], usable: list[MapLayer]) -> MapLayer:
    """The last feature map: of a block as a whole, not of a step within one that ends in a single place."""
    blocks = {layer.name for layer in layers if layer.is_single}
    blocks -= {name for name in blocks if isinstance(network.get_submodule(name), nn.Sequential)}  # just a row of steps

    def is_within(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:count]) in blocks for count in range(1, len(parts)))

    return next((layer for layer in reversed(usable) if not is_within(layer.name)), usable[-1])


def _read_map(name: str, shape: tuple[int, ...], input_size: tuple[int, int, int], prefix: int) -> MapLayer | None:
    _, height, width = input_size
    if shape[:1] != (1,):  # windows or the like: no map of the whole image
        return None
    if len(shape) == 4:
        _, a, b, c = shape
        if _in_proportion(b, c, height, width):
            return MapLayer(name, b, c)
        return MapLayer(name, a, b, "NHWC") if _in_proportion(a, b, height, width) else None
    if len(shape) == 3:
        rows = round(math.sqrt((shape[1] - prefix) * height / width)) if shape[1] > prefix else 0
        columns = (shape[1] - prefix) // rows if rows else 0
        if rows * columns == shape[1] - prefix and rows > 1 and _in_proportion(rows, columns, height, width):
            return MapLayer(name, rows, columns, "tokens", prefix)
    return None


def _in_proportion(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether a map has an image's proportions, as far as whole numbers allow, and is no larger."""
    return rows <= height and columns <= width and abs(rows * width - columns * height) <= max(height, width)


def _outline(layers: list[MapLayer]) -> list[MapLayer]:
    """A few layers for a message: the outermost ones."""
    depth = 1
    while True:
        found = [layer for layer in layers if layer.name.count(".") < depth]
        if len(found) >= min(3, len(layers)):
            return found[-LISTED:]
        depth += 1


def _describe(layer: MapLayer) -> str:
    return f"{layer.name} ({times((layer.height, layer.width))})"
