"""Attention maps by GradCAM++: where in an image a network finds what speaks for a class.

GradCAM++ (arXiv 1710.11063) at a layer with activations A (C, h, w) and G = dy / dA, y the logit of the class:

    alpha = G^2 / (2 G^2 + sum_hw(A) G^3),  0 where G is 0
    w     = sum_hw(alpha relu(G))           one weight per channel
    map   = relu(sum_c(w A))                (h, w)

The weights are those of the package grad-cam. It subtracts the smallest value of a map before it shows it; here 0 stays
0, so that an even map looks even and areas mean something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexport.deps import needs
from vexport.errors import InputError
from vexport.run.attention_layers import MapLayer, as_evaluated, device_of
from vexport.run.runner import Array, times

State = Literal["map", "no gradient", "not positive", "not finite"]
# The package adds 1e-6 to the denominator of alpha, as much as the squared gradient of a head that averages over the
# map. G / s and A s give the same map as G and A: with the largest G at this value, that term is nothing.
LARGEST_GRADIENT = 1e6


@dataclass(frozen=True)
class Attention:
    """The map of one image.

    Args:
        values: (H, W) of the image, float32, relative to the largest; all 0 where there is no map.
        at_layer: (h, w) of the layer, float64, not negative: what `values` was enlarged from.
        answer: The class that the network answers.
        probability: That it gives this class.
        label: The class whose map it is.
        state: `map`; `no gradient`: the class's score does not depend on the layer, or not in a positive way;
            `not positive`: the map is nowhere above 0; `not finite`: NaN or infinite.
        negative_share: Share of the channels' weights, by magnitude, that are negative. alpha has a pole where the
            activations of a channel sum to -2 / G; without negative activations this is 0.
    """

    values: Array
    at_layer: Array
    answer: int
    probability: float
    label: int
    state: State
    negative_share: float


def attend(network: nn.Module, layer: MapLayer, images: Array, labels: Sequence[int] | None = None) -> list[Attention]:
    """Make the maps of some images. The network is left as it was; frozen weights are no hindrance.

    Args:
        network: Images (N, C, H, W) to logits (N, classes); computed with in evaluation mode.
        layer: One of its layers, as `choose_layer` gives it.
        images: float32 (N, C, H, W), prepared.
        labels: Class whose map to make, per image; None takes the network's answers.

    Returns:
        One per image.

    Raises:
        InputError: the network does not answer with class scores, or has no such class.
        MissingDependencyError: grad-cam is not installed.
    """
    with needs("explain"):
        from pytorch_grad_cam import GradCAMPlusPlus

    # The weights may be frozen: what makes a graph is that the images want gradients. The copy is for networks that
    # begin with an operation in place, which no leaf takes.
    with torch.inference_mode(False), torch.enable_grad(), as_evaluated(network):
        given = torch.from_numpy(np.array(images, dtype=np.float32)).to(device_of(network)).requires_grad_(True)
        cam = GradCAMPlusPlus(network, [network.get_submodule(layer.name)], reshape_transform=layer.to_maps)
        try:
            logits = cam.activations_and_grads(given.clone())
            _require_scores(logits, labels)
            answers = logits.detach().argmax(dim=1)
            chosen = torch.tensor(labels, device=answers.device) if labels is not None else answers
            score = logits.gather(1, chosen[:, None]).sum()
            if score.requires_grad:
                score.backward()
            activations, gradients = _recorded(cam)
            weights = _weights(cam, activations, gradients)
        finally:
            cam.activations_and_grads.release()
        probabilities = logits.detach().double().softmax(dim=1).gather(1, answers[:, None])[:, 0]
    maps = np.maximum((weights[:, :, None, None] * activations).sum(axis=1), 0)  # NaN stays NaN
    return [
        _to_attention(one, weight, images.shape[2:], int(answer), float(probability), int(label))
        for one, weight, answer, probability, label in zip(maps, weights, answers, probabilities, chosen, strict=True)
    ]


def area_above_half(values: Array) -> float:
    """Share of a map's area where it is at least half its largest value."""
    return float((values >= values.max() / 2).mean())


def effective_area(values: Array) -> float:
    """Share of a map's area that it covers evenly: exp(entropy of the map as a distribution) / number of places.

    1 for an even map; 1 / N where all of it lies in one place of N; k / N for k places of one value and 0 elsewhere.
    """
    mass = values.astype(np.float64).ravel()
    mass = mass[mass > 0] / mass.sum()
    return float(math.exp(-(mass * np.log(mass)).sum()) / values.size)


def _require_scores(logits: Any, labels: Sequence[int] | None) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = times(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"the network answers with {kind}", hint="only classifiers (images, classes) can be explained")
    classes = logits.shape[1]
    wrong = [label for label in labels or () if not 0 <= label < classes]
    if wrong:
        raise InputError(f"there is no class {wrong[0]}", hint=f"the classes are 0 to {classes - 1}")


def _recorded(cam: Any) -> tuple[Array, Array]:
    """Activations and gradients (N, C, h, w), float64; gradients of 0 where the layer has no say in the answer."""
    (kept,) = cam.activations_and_grads.activations
    activations = kept.double().numpy()
    gradients = cam.activations_and_grads.gradients
    return activations, gradients[0].double().numpy() if gradients else np.zeros_like(activations)


def _weights(cam: Any, activations: Array, gradients: Array) -> Array:
    """One weight per image and channel (N, C), by the package."""
    largest = np.abs(gradients).max(axis=(1, 2, 3), keepdims=True)
    scale = LARGEST_GRADIENT / np.where(largest > 0, largest, LARGEST_GRADIENT)
    with np.errstate(all="ignore"):  # what is not finite is told below
        weights: Array = cam.get_cam_weights(None, None, None, activations / scale, gradients * scale)
        return weights / scale[:, :, 0, 0]


def _to_attention(
    found: Array, weights: Array, size: tuple[int, ...], answer: int, probability: float, label: int
) -> Attention:
    height, width = size
    state: State = "map" if found.any() else "not positive" if weights.any() else "no gradient"
    if not np.isfinite(found).all() or not math.isfinite(probability):
        state = "not finite"
    values = np.zeros((height, width), np.float32)
    if state == "map":
        enlarged = F.interpolate(torch.from_numpy(found / found.max())[None, None], (height, width), mode="bilinear")
        values = enlarged[0, 0].numpy().astype(np.float32)
        values /= values.max()
    total = np.abs(weights).sum()
    negative = float(-weights[weights < 0].sum() / total) if state == "map" else 0.0
    return Attention(values, found, answer, probability, label, state, negative)
