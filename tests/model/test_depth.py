"""The longest path through a module's layers: what counts on it, and that whole networks come to published depths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vexport.model.baselines import create_baseline
from vexport.model.build import build_network
from vexport.model.depth import longest_path
from vexport.model.variants import make_spec


class Net(nn.Module):
    """Layers by name, put together by a function of them and the images."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._together = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Tensor:
        return self._together(self, images)


def depth(forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> int:
    return longest_path(Net(forward, **layers).eval().to("meta"), (4, 8, 8))


def conv(groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, groups=groups)


def test_layers_in_a_row_count_depthwise_ones_too() -> None:
    assert depth(lambda net, x: net.b(torch.relu_(net.a(x))).flatten(1), a=conv(), b=conv(4)) == 2


def test_a_downsampling_shortcut_is_beside_the_path() -> None:
    assert depth(lambda net, x: net.b(net.a(x)) + net.short(x), a=conv(), b=conv(), short=nn.Conv2d(4, 4, 1)) == 2


def test_a_gate_is_beside_the_path() -> None:
    def gated(net: nn.Module, images: Tensor) -> Tensor:
        value = net.a(images)
        gate: Tensor = net.excite(net.squeeze(value.mean((2, 3), keepdim=True))).sigmoid()
        return value * gate

    assert depth(gated, a=conv(), squeeze=nn.Conv2d(4, 2, 1), excite=nn.Conv2d(2, 4, 1)) == 1
    assert depth(lambda net, x: net.b(net.a(x)) * net.a(x), a=conv(), b=conv()) == 2, "no gate: as large"


def test_products_without_weights_do_not_count() -> None:
    def attend(net: nn.Module, images: Tensor) -> Tensor:
        tokens = images.flatten(2)
        query = net.query(tokens)
        return (query @ net.key(tokens).transpose(1, 2)).softmax(-1) @ tokens

    assert depth(attend, query=nn.Linear(64, 16), key=nn.Linear(64, 16, bias=False)) == 1


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", 18),
        ("resnet50", 50),
        ("convnextv2_atto", 41),
        ("shufflenetv2_x1_5", 51),
        ("mobilenetv3_large", 48),
        ("repvgg_a0", 23),
    ],
)
def test_baselines_have_the_depth_that_the_paper_tells(name: str, layers: int) -> None:
    with torch.device("meta"):
        module = create_baseline(name)
    assert longest_path(module, (3, 224, 224)) == layers


def test_series_activations_are_layers_to_it() -> None:
    """Which depthwise convolutions are activations, it cannot know: a variant's depth is told by the variant."""
    with torch.device("meta"):
        module = build_network(make_spec("vanillanet_5"), form="deployed")
    assert longest_path(module, (3, 224, 224)) == 5 + 4
