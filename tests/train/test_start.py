"""The first weights: drawn as the recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vexport.errors import RecipeError
from vexport.pipeline.train import train_recipe
from vexport.recipe import load_recipe, recipe_hash
from vexport.train.data import load_data
from vexport.train.fit import _spec
from vexport.train.start import make_network
from vexport.workspace import Workspace

CASES = [[], ["network.techniques=series"], ["network.techniques=none", "network.shortcut=after"]]


def first_weights(tiny: Path, *changes: str) -> dict[str, nn.Conv2d]:
    recipe = load_recipe(tiny, ["network.width=0.125", *changes])
    data = load_data(recipe)
    torch.manual_seed(0)
    network = make_network(recipe, _spec(recipe, data), data, None)
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_standard_deviation_of_the_first_weights(changes: list[str], tiny: Path) -> None:
    published, by_fan_in = (first_weights(tiny, *changes, *init) for init in ([], ["network.init=lecun_normal"]))
    assert published.keys() == by_fan_in.keys()
    for name, conv in published.items():
        other, fan_in = by_fan_in[name], conv.weight[0].numel()
        close = 4 / (2 * conv.weight.numel()) ** 0.5  # four standard errors
        assert float(conv.weight.detach().std()) == pytest.approx(0.02, rel=close)
        assert float(other.weight.detach().std()) == pytest.approx(fan_in**-0.5, rel=close)
        assert conv.bias is not None
        assert other.bias is not None
        assert not conv.bias.any()
        assert not other.bias.any()


def test_it_is_part_of_the_hash_and_the_usual_one_is_not(tiny: Path) -> None:
    usual = recipe_hash(load_recipe(tiny))
    assert recipe_hash(load_recipe(tiny, ["network.init=published"])) == usual
    assert recipe_hash(load_recipe(tiny, ["network.init=lecun_normal"])) != usual


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["network.model=resnet50"], "resnet50 is drawn as its library draws it"),
        (["network.init_from=other"], "the weights are those of network.init_from"),
        (["qat={start_from: other}", "deep_training.decay_epochs=0"], "the weights are those of qat.start_from"),
        (["network.init=kaiming"], "'published' or 'lecun_normal'"),
    ],
)
def test_where_it_means_nothing(changes: list[str], why: str, tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny, ["network.init=lecun_normal", *changes])
    assert any("network.init:" in line and why in line for line in caught.value.details)


def test_such_a_network_trains(tiny: Path, tmp_path: Path) -> None:
    trained = train_recipe(
        tiny,
        workspace=Workspace(tmp_path / "out"),
        overrides=[
            "epochs=2",
            "deep_training.decay_epochs=0.3",
            "schedule.warmup_epochs=0",
            "network.init=lecun_normal",
        ],
    )
    assert trained is not None
    assert trained.best.facts["slope"] == 1.0
