"""Start from another network: what of it fits, block by block.

A deeper variant has the shallower one's stages and more of the repeated kind: stages are matched from both ends, and
what is left in the middle is new. The published networks of 11 layers and more start like this (supplement, table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vexport.errors import RecipeError
from vexport.model.checkpoint import LoadedCheckpoint
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import NetworkSpec


@dataclass(frozen=True)
class CarriedBlock:
    """What became of one block of the new network.

    Args:
        block: `stem`, `stages.N` or `head`.
        source: The block that it was taken from; None for a new one.
        note: What differs, in words.
    """

    block: str
    source: str | None
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.block}: new" if self.source is None else f"{self.block}: from {self.source}"
        return f"{text} ({self.note})" if self.note else text


def carry_over(network: VanillaNet, spec: NetworkSpec, source: LoadedCheckpoint) -> list[CarriedBlock]:
    """Put the weights that fit into a fresh network in training form, in place.

    Another n: a kernel grows by zeros around it, which changes nothing, and shrinks to its middle. Another class
    count: the head is new.

    Args:
        network: The fresh one.
        spec: What it is.
        source: The checkpoint to start from.

    Raises:
        RecipeError: it is in deployed form, or no block fits.
    """
    if not isinstance(source.spec, NetworkSpec):
        raise RecipeError(
            f"network.init_from {source.path} is a {source.spec.label}, of an ablation",
            hint="give a checkpoint of the published design",
        )
    if source.form != "training":
        raise RecipeError(
            f"network.init_from {source.path} is in deployed form: its layers are merged",
            hint="give the training checkpoint that it was fused from",
        )
    state, taken = network.state_dict(), dict(source.tensors)
    carried = [_carry("stem", ("stem1.", "stem2."), ("stem1.", "stem2."), state, taken)]
    for index, match in enumerate(match_stages(_shapes(source.spec), _shapes(spec))):
        new = (f"stages.{index}.",)
        if match is None:
            carried.append(CarriedBlock(f"stages.{index}", None))
        else:
            carried.append(_carry(f"stages.{index}", new, (f"stages.{match}.",), state, taken, f"stages.{match}"))
    carried.append(_carry("head", ("cls1.", "cls2."), ("cls1.", "cls2."), state, taken))
    if all(block.source is None for block in carried):
        raise RecipeError(
            f"nothing of network.init_from {source.path} fits a {spec.variant}",
            details=[
                f"it is a {source.spec.variant} of widths {' '.join(map(str, source.spec.dims))}",
                f"the recipe's has widths {' '.join(map(str, spec.dims))}",
            ],
            hint="give a checkpoint of the same width",
        )
    network.load_state_dict(state)
    return carried


def _shapes(spec: NetworkSpec) -> list[tuple[int, int, int]]:
    """Channels in, channels out and stride of each stage."""
    strides = spec.network_kwargs()["strides"]
    return [(spec.dims[i], spec.dims[i + 1], stride) for i, stride in enumerate(strides)]


def match_stages(old: Sequence[tuple[int, int, int]], new: Sequence[tuple[int, int, int]]) -> list[int | None]:
    """For each stage of a network the stage of another that it is taken from: from the front, then from the back."""
    found: list[int | None] = [None] * len(new)
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front]:
        found[front] = front
        front += 1
    back = 1
    while back <= min(len(old), len(new)) - front and old[-back] == new[-back]:
        found[-back] = len(old) - back
        back += 1
    return found


def _carry(
    block: str,
    new: Sequence[str],
    old: Sequence[str],
    state: dict[str, Tensor],
    taken: dict[str, Tensor],
    source: str | None = None,
) -> CarriedBlock:
    """Copy a block's tensors if all of them fit, resized where only n differs."""
    pairs: dict[str, Tensor] = {}
    notes: list[str] = []
    for mine, theirs in zip(new, old, strict=True):
        for name in (name for name in state if name.startswith(mine)):
            tensor = taken.get(theirs + name.removeprefix(mine))
            if tensor is None:
                return CarriedBlock(block, None, f"{name} is missing")
            fitted = _fit(tensor, state[name].shape)
            if fitted is None:
                was, shall = ("x".join(map(str, shape)) for shape in (tensor.shape, state[name].shape))
                return CarriedBlock(block, None, f"{name} was {was}, shall be {shall}")
            if fitted.shape != tensor.shape:
                sides = [f"{shape[-1]}x{shape[-1]}" for shape in (tensor.shape, fitted.shape)]
                change = "with zeros around" if fitted.numel() > tensor.numel() else "its middle"
                notes.append(f"kernel {sides[0]} to {sides[1]}, {change}")
            pairs[name] = fitted
    state.update(pairs)
    return CarriedBlock(block, source or block, "; ".join(dict.fromkeys(notes)))


def _fit(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """A tensor in this shape, if it has it or is a depthwise kernel of another odd side."""
    if tensor.shape == shape:
        return tensor.detach().clone()
    depthwise = tensor.ndim == 4 == len(shape) and tensor.shape[:2] == shape[:2] and shape[1] == 1
    odd = depthwise and all(side % 2 for side in (*tensor.shape[2:], *shape[2:]))
    if not odd:
        return None
    # Negative padding crops.
    rim = (shape[-1] - tensor.shape[-1]) // 2
    return F.pad(tensor.detach(), (rim, rim, rim, rim))
