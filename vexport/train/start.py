"""The network of a run as it is before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from vexport.model.ablation import AblationSpec
from vexport.model.build import Network, Spec, build_network
from vexport.model.checkpoint import load_checkpoint
from vexport.model.vanillanet import init_lecun_normal
from vexport.recipe import Recipe
from vexport.train.data import TrainingData
from vexport.train.qat import fake_quantise, load_start
from vexport.train.transfer import carry_over


def make_network(
    recipe: Recipe,
    spec: Spec,
    data: TrainingData,
    start: Path | None,
    tell: Callable[[str], None] = lambda _: None,
) -> Network:
    """A fresh network, or one that starts from a checkpoint; in the form that the recipe trains.

    Args:
        recipe: What to train.
        spec: The network.
        data: Of the run.
        start: The checkpoint; None where there is none, or where a resumed run brings all weights.
        tell: Told what was taken over.

    Raises:
        InputError, CheckpointError: the checkpoint cannot be read.
        RecipeError: it does not fit.
    """
    drop_rate = recipe.network.drop_rate
    if isinstance(spec, AblationSpec):
        ablated = build_network(spec, drop_rate=drop_rate)
        _draw_weights(ablated, recipe)
        return ablated
    if recipe.qat is None:
        network = build_network(spec, drop_rate=drop_rate)
        _draw_weights(network, recipe)
        if start is not None:
            for block in carry_over(network, spec, load_checkpoint(start)):
                tell(f"  {block}")
        return network
    if start is None:
        return fake_quantise(build_network(spec, form="deployed", drop_rate=drop_rate))
    network, loaded = load_start(start, spec, data.class_names, drop_rate)
    if loaded.preprocessing != data.preprocessing:
        tell(f"note: {start.name} was trained on images that are prepared otherwise")
    return network


def _draw_weights(network: nn.Module, recipe: Recipe) -> None:
    """Anew, where the recipe does not want them as the network came."""
    if recipe.network.init == "lecun_normal":
        network.apply(init_lecun_normal)
