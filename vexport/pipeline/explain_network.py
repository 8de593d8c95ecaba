"""The networks whose attention is looked at, each with the layer at which its maps are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vexport.artifacts import Parent, Preprocessing
from vexport.errors import InputError
from vexport.pipeline.explain_weights import is_name, load_weights, require_network
from vexport.pipeline.resolve import Weights
from vexport.pipeline.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from vexport.run.attention_layers import MapLayer

DEFAULT_LAYER = "default"
# A map with fewer places to a side is enlarged many times: told, not refused.
COARSE = 4


@dataclass(frozen=True)
class Network:
    """A network in memory, ready to be looked at.

    Args:
        name: For people; no two of one run are the same.
        module: In evaluation mode.
        layer: Where its maps are made.
        subject: The same network as a runner, with what it says of its images and classes.
        preprocessing: How its images are prepared.
        parent: The checkpoint's name and hash, or where else the weights come from.
        notes: What the reader should know.
    """

    name: str
    module: nn.Module
    layer: MapLayer
    subject: Subject
    preprocessing: Preprocessing
    parent: Parent
    notes: tuple[str, ...] = ()


def open_networks(
    given: Sequence[str],
    layers: Sequence[str],
    *,
    weights: Weights | None,
    weights_from: Literal["ema", "model"] | None,
) -> list[Network]:
    """Load the networks and choose their layers.

    Args:
        given: Checkpoints, or names of networks.
        layers: Names of layers: none, one for all, or one for each; `default` takes the network's own.
        weights: Of networks given by name.
        weights_from: Which weights of training checkpoints.

    Raises:
        InputError: one is no checkpoint and no name, a graph or an engine, or given twice; a layer does not fit; or
            they do not tell the same classes apart.
        CheckpointError: a checkpoint cannot be loaded.
        DownloadError: published weights cannot be fetched.
    """
    _require_options(given, layers, weights)
    for one in given:
        require_network(one, weights)
    wanted = list(layers) if len(layers) == len(given) else (list(layers) or [DEFAULT_LAYER]) * len(given)
    networks = [
        _open(one, name, None if layer == DEFAULT_LAYER else layer, weights, weights_from)
        for one, name, layer in zip(given, _short_names(given), wanted, strict=True)
    ]
    for other in networks[1:]:
        _require_same_classes(networks[0], other)
    return networks


def _require_options(given: Sequence[str], layers: Sequence[str], weights: Weights | None) -> None:
    if len(layers) not in (0, 1, len(given)):
        raise InputError(
            f"{len(layers)} layers for {len(given)} network(s)",
            hint="give --layer once for all of them, or once for each in their order; `default` is a network's own",
        )
    twice = [one for index, one in enumerate(given) if one in given[:index]]
    if twice:
        raise InputError(f"{twice[0]} is given twice", hint="--beside takes another network")
    if weights is not None and not any(map(is_name, given)):
        raise InputError(
            f"--weights {weights} needs a network's name", hint="a checkpoint has its own: leave --weights out"
        )


def _require_same_classes(first: Network, other: Network) -> None:
    """Refuse networks that do not answer the same question."""
    counts = first.subject.classes, other.subject.classes
    if counts[0] != counts[1]:
        raise InputError(
            f"{first.name} tells {counts[0]} classes apart, {other.name} {counts[1]}",
            hint="compare networks of the same classes",
        )
    names = first.subject.facts.class_names, other.subject.facts.class_names
    if None not in names and names[0] != names[1]:
        raise InputError(
            f"{first.name} and {other.name} do not have the same classes in the same order",
            hint="compare networks of the same classes",
        )


def _short_names(given: Sequence[str]) -> list[str]:
    """File names, with the folder that tells them apart before them where they are the same."""
    parts = [(one,) if is_name(one) else Path(one).absolute().parts for one in given]
    for count in range(1, max(map(len, parts)) + 1):
        ends = [one[-count:] for one in parts]
        if len(set(ends)) == len(ends):
            # What lies between is the same for all: it only takes room.
            return ["/".join(one if len(one) <= 2 else (one[0], "...", one[-1])) for one in ends]
    return list(given)


def _open(
    given: str, name: str, layer: str | None, weights: Weights | None, weights_from: Literal["ema", "model"] | None
) -> Network:
    import numpy as np

    from vexport.run.attention_layers import choose_layer, list_map_layers
    from vexport.run.images import require_sound
    from vexport.run.pytorch import TorchRunner

    module, facts, parent, notes = load_weights(given, weights, weights_from)
    how = facts.preprocessing or Preprocessing()
    require_sound(how)
    size = how.input_size
    runner = TorchRunner(module, size, name=name)
    classes = runner(np.zeros((1, *size), np.float32)).shape[1]
    layers = list_map_layers(module, size)
    chosen = choose_layer(module, layers, layer, network_name=name)
    notes += _layer_notes(module, layers, chosen, name, is_default=layer is None)
    subject = Subject(Path(name), parent.sha256, facts, runner, size, classes)
    return Network(name, module, chosen, subject, how, parent, tuple(notes))


def _layer_notes(
    module: nn.Module, layers: Sequence[MapLayer], chosen: MapLayer, name: str, *, is_default: bool
) -> list[str]:
    from vexport.run.runner import times

    notes = []
    info = getattr(module, "feature_info", None)
    last = info[-1].get("module") if isinstance(info, list) and info else None
    if is_default and any(layer.name == last and layer.is_single for layer in layers):
        notes.append(
            f"{name}: the last feature map, of {last}, is 1x1 and says nothing of where: {chosen.name} instead"
        )
    if min(chosen.height, chosen.width) < COARSE:
        size = times((chosen.height, chosen.width))
        notes.append(f"{name}: a map of {size} is coarse; an earlier layer has more places (--layer)")
    return notes
