"""The networks of the ablations: each is what its name says, and the known ones are the known networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vexport.errors import InputError
from vexport.model.ablation import AblationSpec, VanillaBody, VanillaStage, build_ablation, make_ablation_spec
from vexport.model.alexnet import AlexNet
from vexport.model.build import build_network, expected_shapes, read_spec
from vexport.model.randomize import image_like, randomize_
from vexport.model.techniques import DeepConv2d
from vexport.model.vanillanet import SeriesActivation
from vexport.model.variants import VARIANTS, make_spec

TINY = {"num_classes": 5, "image_size": 32}
ALL = ("none", "deep", "series", "both")


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("name", ["vanillanet_6", "vanillanet_13_x1_5_ada_pool"])
@pytest.mark.parametrize("act_num", [0, 3])
def test_with_both_techniques_it_is_vanillanet(name: str, act_num: int) -> None:
    """Module for module: the published network's weights give the published network's answers."""
    side = 224 if VARIANTS[name].pool_sizes else 64
    spec = make_spec(name, width=1 / 64, act_num=act_num, num_classes=7)
    published = randomize_(build_network(spec), (3, side, side))
    own = build_ablation(make_ablation_spec(name, width=1 / 64, act_num=act_num, num_classes=7, image_size=side))
    published.set_slope(0.3)  # type: ignore[operator]
    own.set_slope(0.3)
    state = own.state_dict()
    for mine, theirs in pairs(len(spec.dims) - 1).items():
        for key, tensor in published.state_dict().items():
            if key.startswith(f"{theirs}."):
                state[mine + key.removeprefix(theirs)] = tensor
    own.load_state_dict(state)
    learnt = sum(p.numel() for p in own.parameters())
    assert learnt == sum(p.numel() for p in published.parameters())
    images = image_like(2, (3, side, side))
    expected = published(images)
    assert torch.allclose(own(images), expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def pairs(stages: int) -> dict[str, str]:
    """Where the modules of the published training form stand in ours."""
    found = {"body.stem.0.conv1": "stem1.0", "body.stem.0.bn": "stem1.1", "body.stem.0.conv2": "stem2.0"}
    found |= {"body.stem.1": "stem2.1", "body.stem.2": "stem2.2"}
    for i in range(stages):
        mine, theirs = f"body.stages.{i}", f"stages.{i}"
        found |= {f"{mine}.conv.conv1": f"{theirs}.conv1.0", f"{mine}.conv.bn": f"{theirs}.conv1.1"}
        found |= {f"{mine}.conv.conv2": f"{theirs}.conv2.0", f"{mine}.bn": f"{theirs}.conv2.1"}
        found |= {f"{mine}.act": f"{theirs}.act"}
    return {
        **found,
        "body.head.2.conv1": "cls1.2",
        "body.head.2.bn": "cls1.3",
        "body.head.2.conv2": "cls2.0",
    }


def test_alexnet_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.alexnet()
        mine = AlexNet()
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mine.state_dict().items()} == shapes
    real, own = torchvision.models.alexnet().eval(), AlexNet().eval()
    own.load_state_dict(real.state_dict())
    images = image_like(1, (3, 224, 224))
    with torch.no_grad():
        assert torch.allclose(own(images), real(images), atol=1e-6)


def test_resnet50_is_timms() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("resnet50").state_dict()
    shapes = expected_shapes(make_ablation_spec("resnet50", techniques="none"), "training")
    assert {name.removeprefix("body."): shape for name, shape in shapes.items()} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("techniques", ALL)
@pytest.mark.parametrize(
    ("network", "convs", "acts", "how"),
    [
        ("vanillanet_6", 6, 5, {"width": 1 / 64}),
        ("alexnet", 5, 5, {"width": 1 / 16, "stem_stride": 1}),
        ("resnet50", 53, 49, {"width": 1 / 16}),
    ],
)
def test_each_technique_stands_where_it_should(
    network: str, convs: int, acts: int, how: dict[str, Any], techniques: Any
) -> None:
    spec = make_ablation_spec(network, techniques=techniques, **how, **TINY)
    built = build_ablation(spec)
    assert count(built, DeepConv2d) == (convs if techniques in ("deep", "both") else 0)
    assert count(built, SeriesActivation) == (acts if techniques in ("series", "both") else 0)
    assert built(image_like(2, (3, 32, 32))).shape == (2, 5)
    assert not built.training
    assert float(built.slope) == 1.0
    assert read_spec(spec.to_json()) == spec


@pytest.mark.parametrize("act_num", range(5))
def test_series_terms(act_num: int) -> None:
    spec = make_ablation_spec("vanillanet_6", width=1 / 64, act_num=act_num, **TINY)
    acts = [m for m in build_ablation(spec).modules() if isinstance(m, SeriesActivation)]
    assert {act.weight.shape[-1] for act in acts} == {2 * act_num + 1}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dims", [(8, 8), (8, 12)])
def test_a_shortcut_adds_the_input(stride: int, dims: tuple[int, int]) -> None:
    """With a convolution of zeros nothing but the shortcut is left: the pooled input, and zeros for new channels."""
    images = torch.rand(2, dims[0], 6, 6) + 0.1

    def left(shortcut: Any, act: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        stage = VanillaStage(*dims, stride, 0, deep=False, act_num=None, shortcut=shortcut).eval()
        for parameter in stage.conv.parameters():
            nn.init.zeros_(parameter)
        return stage(images)  # type: ignore[no-any-return]

    pooled = nn.functional.max_pool2d(images, stride)
    expected = torch.cat([pooled, torch.zeros(2, dims[1] - dims[0], *pooled.shape[2:])], 1)
    for shortcut in ("before", "after"):
        assert torch.equal(left(shortcut, torch.relu), expected)
    assert not left("none", torch.relu).any()


def test_before_and_after_the_activation_are_two_things() -> None:
    stage = VanillaStage(4, 4, 1, 0, deep=False, act_num=None, shortcut="after").eval()
    nn.init.zeros_(stage.conv.weight)  # type: ignore[arg-type]
    nn.init.zeros_(stage.conv.bias)  # type: ignore[arg-type]
    images = -torch.rand(1, 4, 3, 3)
    assert torch.equal(stage(images), images)
    stage.shortcut = "before"
    assert not stage(images).any(), "the ReLU takes what is negative"


def test_the_slope_reaches_every_pair() -> None:
    network = build_ablation(make_ablation_spec("vanillanet_6", width=1 / 64, **TINY))
    network.set_slope(0.5)
    assert {float(m.slope) for m in network.modules() if isinstance(m, DeepConv2d)} == {0.5}
    assert float(network.slope) == 0.5
    plain = build_ablation(make_ablation_spec("vanillanet_6", techniques="series", width=1 / 64, **TINY))
    plain.set_slope(0.5)
    assert float(plain.slope) == 1.0, "there is nothing that could have another one"


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="unknown model 'alexnett'") as caught:
        make_ablation_spec("alexnett")
    assert "alexnet" in str(caught.value.hint)
    with pytest.raises(InputError, match="cannot have shortcuts"):
        make_ablation_spec("resnet50", shortcut="before")
    for network in ("alexnet", "vanillanet_6"):
        with pytest.raises(InputError, match="an image of 16x16 is too small"):
            build_ablation(make_ablation_spec(network, width=1 / 16, num_classes=5, image_size=16))


def test_who_takes_one_size_only() -> None:
    names = ("vanillanet_6", "vanillanet_13_x1_5_ada_pool", "alexnet", "resnet50")
    assert [name for name in names if AblationSpec(name).fixed_size] == ["vanillanet_13_x1_5_ada_pool", "alexnet"]


def test_a_body_of_ones_own_numbers() -> None:
    body = VanillaBody((8, 16), (2,), deep=True, act_num=1, num_classes=3)
    assert body(torch.rand(2, 3, 32, 32)).shape == (2, 3)
