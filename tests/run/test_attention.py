"""GradCAM++ maps: the formula by hand, where a planted patch lies, both forms alike, and every way to have no map."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vexport.errors import InputError, MissingDependencyError
from vexport.model.checkpoint import to_network
from vexport.model.fuse import merge_blocks, store
from vexport.model.variants import NetworkSpec
from vexport.run.attention import Attention, area_above_half, attend, effective_area
from vexport.run.attention_check import ProbabilityLost, pair, probability_lost, rank
from vexport.run.attention_layers import MapLayer, choose_layer, list_map_layers

SIZE = (3, 12, 10)


class Centred(nn.Module):
    """Takes the mean of each channel away: a feature map with values of both signs."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)


def small_network(*middle: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), *middle)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def images(count: int = 3, size: tuple[int, int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *size)).astype(np.float32)


def look(network: nn.Module, name: str | None, given: np.ndarray, labels: Any = None) -> list[Attention]:
    layer = choose_layer(network, list_map_layers(network, given.shape[1:]), name, network_name="it")
    return attend(network, layer, given, labels)


def by_hand(network: nn.Sequential, after: int, image: np.ndarray, label: int) -> np.ndarray:
    """The formula of the paper, channel by channel and place by place."""
    with torch.no_grad():
        kept = network[: after + 1](torch.from_numpy(image[None]))
    kept.requires_grad_(True)
    (found,) = torch.autograd.grad(network[after + 1 :](kept)[0, label], kept)
    activations, gradients = kept.detach()[0].double().numpy(), found[0].double().numpy()
    total = np.zeros(activations.shape[1:])
    for activation, gradient in zip(activations, gradients, strict=True):
        weight = 0.0
        for slope in gradient.ravel():
            if slope > 0:
                weight += slope * slope**2 / (2 * slope**2 + activation.sum() * slope**3)
        total += weight * activation
    return np.maximum(total, 0)


@pytest.mark.parametrize("middle", [(nn.ReLU(),), (Centred(), nn.Tanh())], ids=["not negative", "of both signs"])
@pytest.mark.parametrize("label", [0, 3])
def test_the_formula(middle: tuple[nn.Module, ...], label: int) -> None:
    network, given = small_network(*middle), images()
    for after in (2, 3):
        for image, found in zip(given, look(network, str(after), given, [label] * 3), strict=True):
            wanted = by_hand(network, after, image, label)
            np.testing.assert_allclose(found.at_layer, wanted, rtol=1e-4, atol=1e-6 * wanted.max())
            assert found.label == label


def test_small_gradients_do_not_change_the_map() -> None:
    """The package's 1e-6 beside squared gradients is nothing, whatever their size."""
    network, given = small_network(nn.ReLU()), images()
    before = look(network, "3", given, [1] * 3)
    with torch.no_grad():  # gradients of 1e-5, activations so much larger that sum(A) G stays what it was
        network[2].weight *= 1e4
        network[2].bias *= 1e4
        network[6].weight /= 1e4
    for a, b in zip(before, look(network, "3", given, [1] * 3), strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)


def test_the_package_shows_the_same_map() -> None:
    """It shows a map between its smallest and largest value; with large gradients its 1e-6 does not matter."""
    from pytorch_grad_cam import GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, given = small_network(nn.ReLU()), images()
    with torch.no_grad():
        network[6].weight *= 1000
    ours = look(network, "3", given, [2] * 3)
    cam = GradCAMPlusPlus(network, [network[3]])
    theirs = cam(torch.from_numpy(given), [ClassifierOutputTarget(2)] * 3)
    for one, shown in zip(ours, theirs, strict=True):
        span = one.values.max() - one.values.min()
        np.testing.assert_allclose((one.values - one.values.min()) / span, shown, atol=2e-3)


def test_the_answer_is_explained_unless_another_class_is_asked_for() -> None:
    network, given = small_network(nn.ReLU()), images(4)
    with torch.no_grad():
        logits = network(torch.from_numpy(given)).double()
    found = look(network, "3", given)
    assert [one.label for one in found] == [one.answer for one in found] == logits.argmax(1).tolist()
    np.testing.assert_allclose([one.probability for one in found], logits.softmax(1).max(1).values, rtol=1e-5)
    assert all(one.values.shape == SIZE[1:] and one.values.max() == 1 for one in found)
    with pytest.raises(InputError, match="there is no class 4"):
        look(network, "3", given, [4] * 4)


def patched(corner: tuple[int, int], size: tuple[int, int, int] = (3, 16, 24)) -> np.ndarray:
    """A blue image with a red patch in a corner."""
    image = np.zeros((1, *size), np.float32)
    image[0, 2] = 1
    rows = slice(0, 4) if corner[0] == 0 else slice(-4, None)
    columns = slice(0, 6) if corner[1] == 0 else slice(-6, None)
    image[0, :, rows, columns] = np.array([1, 0, 0], np.float32)[:, None, None]
    return image


class ChannelsLast(nn.Module):
    """(N, C, H, W) to (N, H, W, C), as Swin works inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToTokens(nn.Module):
    """(N, C, H, W) to (N, 1 + H W, C) with a first token that is none of the map's, as ViT works inside."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 9.0), tokens], dim=1)


class Mean(nn.Module):
    """The mean over places, whatever the layout."""

    def __init__(self, *axes: int, first: int = 0) -> None:
        super().__init__()
        self.axes, self.first = axes, first

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.first :].mean(dim=self.axes) if self.first else x.mean(dim=self.axes)


LAYOUTS: dict[str, tuple[tuple[nn.Module, ...], str, str]] = {
    "NCHW": ((Mean(2, 3),), "1", "NCHW"),
    "NHWC": ((ChannelsLast(), Mean(1, 2)), "2", "NHWC"),
    "tokens": ((ToTokens(), Mean(1, first=1)), "2", "tokens"),
}


def red_network(layout: str) -> nn.Sequential:
    """Channel 0 sees red, channel 1 blue; class 0 wants red, class 1 wants blue."""
    network = nn.Sequential(nn.Conv2d(3, 2, 2, stride=2, bias=False), nn.ReLU(), *LAYOUTS[layout][0], nn.Linear(2, 2))
    network.num_prefix_tokens = int(layout == "tokens")  # type: ignore[assignment]
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0] = 1
        network[0].weight[1, 2] = 1
        network[-1].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    return network.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_planted_patch(layout: str, corner: tuple[int, int]) -> None:
    network, image = red_network(layout), patched(corner)
    layer = choose_layer(network, list_map_layers(network, image.shape[1:]), LAYOUTS[layout][1], network_name="it")
    assert (layer.layout, layer.height, layer.width) == (LAYOUTS[layout][2], 8, 12)
    (red,) = attend(network, layer, image, [0])
    (blue,) = attend(network, layer, image, [1])
    inside = image[0, 0] == 1
    assert red.values[inside].sum() / red.values.sum() > 0.8, "bilinear enlargement spreads the edges a little"
    assert red.at_layer[image[0, 0, ::2, ::2] == 0].sum() == 0
    assert blue.at_layer[image[0, 0, ::2, ::2] == 1].sum() == 0
    assert effective_area(red.values) < 0.15 < 0.8 < effective_area(blue.values)


def test_both_forms_give_the_same_map(fill: Callable[..., dict[str, Tensor]], small_spec: NetworkSpec) -> None:
    tensors = fill(small_spec)
    deployed = {k: v for _, part in merge_blocks(tensors, small_spec) for k, v in store(part).items()}
    given = images(4, (3, 128, 96))
    last = f"stages.{len(small_spec.dims) - 2}"
    both = [
        to_network(small_spec, "training", tensors, slope=1.0),
        to_network(small_spec, "deployed", deployed),
    ]
    first, second = (look(network, None, given, [1] * 4) for network in both)
    for network in both:
        layers = list_map_layers(network, (3, 128, 96))
        assert choose_layer(network, layers, None, network_name="it").name == last
    assert any(one.state == "map" for one in first)
    for a, b in zip(first, second, strict=True):
        assert a.state == b.state
        np.testing.assert_allclose(a.values, b.values, atol=1e-4)
        np.testing.assert_allclose(a.at_layer, b.at_layer, rtol=1e-3, atol=1e-4 * max(a.at_layer.max(), 1e-12))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_is_left_as_it_was(frozen: bool) -> None:
    network = small_network(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    network.train()
    network[3].eval()
    network.requires_grad_(not frozen)
    network[0].weight.requires_grad_(True)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        found = look(network, "4", images())
    again = look(network, "4", images())
    assert all(one.state == "map" for one in found)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(found, again, strict=True)), "no dropout"
    assert [module.training for module in network] == [True, True, True, False, *[True] * 5]
    assert network[2].weight.requires_grad is not frozen
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert network[2].weight.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_it_is_left_as_it_was_after_an_error() -> None:
    network = small_network(nn.ReLU())
    layer = choose_layer(network, list_map_layers(network, SIZE), "3", network_name="it")
    network.train()
    with pytest.raises(InputError, match="no class 9"):
        attend(network, layer, images(), [9] * 3)
    assert network.training
    assert network[0].weight.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_later_steps_in_place_do_not_spoil_the_map() -> None:
    plain, in_place = small_network(Centred(), nn.ReLU()), small_network(Centred(), nn.ReLU(inplace=True))
    for a, b in zip(look(plain, "3", images()), look(in_place, "3", images()), strict=True):
        np.testing.assert_array_equal(a.at_layer, b.at_layer)
    first = nn.Sequential(nn.ReLU(inplace=True), *small_network(nn.ReLU())).eval()
    given = images()
    kept = given.copy()
    assert all(one.state == "map" for one in look(first, "4", given))
    np.testing.assert_array_equal(given, kept)


def test_without_a_map_it_says_why() -> None:
    network, given = small_network(nn.ReLU()), images()
    with torch.no_grad():
        network[6].weight[0] = 0
        network[6].weight[1] = -1
    for label in (0, 1):  # no gradient at all, and none that is positive
        found = look(network, "3", given, [label] * 3)
        assert {one.state for one in found} == {"no gradient"}
        assert not any(one.values.any() for one in found)
    with torch.no_grad():
        network[6].bias[2] = float("nan")
    broken = look(network, "3", given, [2] * 3)
    assert {one.state for one in broken} == {"not finite"}
    assert all(not one.values.any() and one.negative_share == 0 for one in broken)


def test_a_map_that_is_nowhere_positive() -> None:
    network = small_network(nn.Softsign(), nn.Hardtanh(-1.0, -0.001))
    with torch.no_grad():
        network[2].weight /= 100  # small steps within the slanted part
        network[2].bias.fill_(-0.05)
        network[7].weight.fill_(1.0)
    assert {one.state for one in look(network, "4", images(), [0] * 3)} == {"not positive"}


def test_negative_weights_are_counted() -> None:
    """Activations that sum to less than -2 / G turn the sign of alpha."""
    network, given = small_network(nn.Identity()), images()
    assert all(one.negative_share == 0 for one in look(small_network(nn.ReLU()), "3", given, [0] * 3))
    with torch.no_grad():
        network[2].bias[:4] = -3.0
        network[2].bias[4:] = 3.0
        network[6].weight.fill_(5.0)
    shares = [one.negative_share for one in look(network, "2", given, [0] * 3)]
    assert all(0.1 < share < 1 for share in shares)


def test_areas() -> None:
    even, one, four = np.full((8, 8), 0.7), np.zeros((8, 8)), np.zeros((8, 8))
    one[3, 5] = 2.0
    four[:2, :2] = 0.3
    assert (area_above_half(even), area_above_half(one), area_above_half(four)) == (1, 1 / 64, 4 / 64)
    assert effective_area(even) == pytest.approx(1)
    assert effective_area(one) == pytest.approx(1 / 64)
    assert effective_area(four) == pytest.approx(4 / 64)
    two = np.array([[0.75, 0.25]])
    assert effective_area(two) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)) / 2)
    assert area_above_half(two) == 0.5
    assert area_above_half(np.array([[1.0, 0.5, 0.49]])) == pytest.approx(2 / 3)


def reddened(*parts: tuple[slice, slice], size: tuple[int, int, int] = (3, 16, 24)) -> np.ndarray:
    """A blue image with red parts."""
    image = np.zeros((1, *size), np.float32)
    image[0, 2] = 1
    for rows, columns in parts:
        image[0, :, rows, columns] = np.array([1, 0, 0], np.float32)[:, None, None]
    return image


def only_red(weight: float = 8.0) -> nn.Sequential:
    """Class 0 is the likelier the more red there is, wherever it is and whatever else there is."""
    network = red_network("NCHW")
    with torch.no_grad():
        network[-1].weight.copy_(torch.tensor([[weight, 0.0], [0.0, 0.0]]))
        network[-1].bias.zero_()
    return network


def probability(network: nn.Module, image: np.ndarray) -> float:
    with torch.no_grad():
        return float(network(torch.from_numpy(image)).double().softmax(1)[0, 0])


def hide(network: nn.Module, given: np.ndarray, maps: Sequence[np.ndarray]) -> list[ProbabilityLost]:
    """What hiding costs class 0, each image beside the next one's map."""
    ranked = [rank(one) for one in maps]
    pairs = pair(range(len(maps)))
    others = [ranked[other] for _, other in pairs]
    return probability_lost(network, given, [0] * len(maps), ranked, others)


def mean_and_error(lost: Sequence[ProbabilityLost]) -> tuple[float, float]:
    differences = [one.difference for one in lost]
    return float(np.mean(differences)), float(np.std(differences, ddof=1) / len(lost) ** 0.5)


def bump(row: float, column: float, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    """A map that is largest at one place."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / 20)


def test_pairs() -> None:
    assert pair([2, 5, 9]) == [(2, 5), (5, 9), (9, 2)]
    assert pair([4, 7]) == [(4, 7), (7, 4)]
    assert pair([3]) == pair([]) == []


def test_where_a_map_is_largest() -> None:
    values = np.zeros((4, 5))
    values[2, 1], values[0, 3], values[3, 4] = 0.5, 1.0, 0.25
    found = rank(values)
    assert found.positive == 3
    assert found.places[:3].tolist() == [3, 11, 19]
    assert len(found.places) == 4, "a fifth"
    assert rank(values + 0.1).positive == 4
    even = rank(np.ones((40, 50))).places
    rows = np.bincount(even // 50, minlength=40)
    assert rows.min() > 0, "of an even map it takes places anywhere: the upper rows seldom hold an object"
    assert len(set(even.tolist())) == 400
    assert abs(rows[:20].sum() - 200) < 50


def test_two_patches() -> None:
    network, given = only_red(), np.concatenate([patched((0, 1)), patched((1, 0))])
    found = look(network, "1", given, [0, 0])
    lost = hide(network, given, [one.values for one in found])
    for image, one, cost in zip(given, found, lost, strict=True):
        hidden = image[None].copy()
        shown = one.values > 0
        assert 24 <= shown.sum() < 0.2 * 16 * 24, "less than a fifth: no more is hidden than the map shows"
        hidden[0][:, shown] = 0
        assert cost.own == pytest.approx(probability(network, image[None]) - probability(network, hidden))
        assert cost.own > 0.3
        assert cost.other == pytest.approx(0, abs=0.05), "the other's patch, and perhaps a pixel at random"
        assert cost.difference == cost.own - cost.other


def test_as_much_is_hidden_where_the_other_map_is_largest() -> None:
    """Everything is red: only how much is hidden counts."""
    network, given = only_red(0.5), np.repeat(reddened((slice(0, 16), slice(0, 24))), 2, axis=0)
    small, large = np.zeros((16, 24)), np.random.default_rng(0).uniform(0.5, 1, (16, 24))
    small[3, 4:9] = 1
    lost = hide(network, given, [small, large])
    for one in lost:
        assert one.own > 1e-4
        assert one.difference == pytest.approx(0, abs=1e-6)
    assert lost[0].own < lost[1].own / 10, "5 pixels and 77"


def test_what_both_maps_hide_is_no_difference() -> None:
    network = only_red()
    left, right = (slice(4, 8), slice(6, 12)), (slice(4, 8), slice(9, 15))
    given = np.concatenate([reddened(left), reddened(right)])
    maps = [image[0] for image in given]
    for one in hide(network, given, maps):
        assert 0 < one.other < one.own
    same = np.repeat(given[:1], 2, axis=0)
    assert [one.difference for one in hide(network, same, [maps[0]] * 2)] == [0, 0]


def test_maps_that_follow_a_patch_in_random_places() -> None:
    network, random = only_red(), np.random.default_rng(0)
    places = [(int(random.integers(0, 13)), int(random.integers(0, 19))) for _ in range(40)]
    given = np.concatenate([reddened((slice(y, y + 4), slice(x, x + 6))) for y, x in places])
    found = look(network, "1", given, [0] * 40)
    mean, error = mean_and_error(hide(network, given, [one.values for one in found]))
    assert mean > 0.2
    assert mean > 10 * error
    blind = [bump(random.uniform(0, 16), random.uniform(0, 24)) for _ in places]
    mean, error = mean_and_error(hide(network, given, blind))
    assert abs(mean) < 2.5 * error, "anywhere, but not at the patch"


def test_maps_that_are_always_central() -> None:
    """Objects in the middle, and maps that are there without looking: each costs much, but none more than another's."""
    network, random = only_red(), np.random.default_rng(1)

    def near(middle: float) -> float:
        return middle + random.uniform(-3, 3)

    objects = [(int(near(6)), int(near(9))) for _ in range(60)]
    given = np.concatenate([reddened((slice(y, y + 4), slice(x, x + 6))) for y, x in objects])
    lost = hide(network, given, [bump(near(8), near(12)) for _ in objects])
    mean, error = mean_and_error(lost)
    assert np.mean([one.own for one in lost]) > 0.2
    assert error > 0
    assert abs(mean) < 2.5 * error
    same = hide(network, given, [bump(8, 12)] * 60)
    assert np.mean([one.own for one in same]) > 0.3
    assert all(one.difference == 0 for one in same)
    seeing = hide(network, given, [bump(y + 1.5, x + 2.5) for y, x in objects])
    mean, error = mean_and_error(seeing)
    assert mean > 3 * error, "one that follows them within the middle is told apart"


def default(network: nn.Module, size: tuple[int, int, int]) -> MapLayer:
    return choose_layer(network, list_map_layers(network, size), None, network_name="it")


def test_the_default_layer_of_usual_networks() -> None:
    import timm
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer

    resnet = timm.create_model("resnet18", num_classes=5).eval()
    assert default(resnet, (3, 64, 96)) == MapLayer("layer4", 2, 3)
    assert default(resnet, (3, 32, 32)) == MapLayer("layer3", 2, 2), "nothing within layer4, which ends in 1x1"
    swin = SwinTransformer(
        img_size=64, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=5
    ).eval()
    assert default(swin, (3, 64, 64)) == MapLayer("norm", 8, 8, "NHWC")
    assert len(look(swin, None, images(2, (3, 64, 64)))) == 2
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()
    found = choose_layer(vit, list_map_layers(vit, (3, 32, 32)), "blocks.1.norm1", network_name="it")
    assert found == MapLayer("blocks.1.norm1", 4, 4, "tokens", 1)
    assert {one.state for one in look(vit, "blocks.1.norm1", images(2, (3, 32, 32)))} <= {"map", "not positive"}
    assert default(small_network(nn.ReLU(), nn.Identity()), SIZE).name == "3", "what hands its input on is no layer"
    assert default(small_network(nn.ReLU(), nn.AdaptiveAvgPool2d((6, 5))), SIZE).name == "3"


def test_layers_that_cannot_be_used() -> None:
    network = small_network(nn.ReLU())
    layers = list_map_layers(network, SIZE)
    with pytest.raises(InputError, match=r"it has no layer conv1") as caught:
        choose_layer(network, layers, "conv1", network_name="it")
    assert "can be used: 3 (6x5)" in caught.value.details
    with pytest.raises(InputError, match="the layer 6 of it gives no feature map"):
        choose_layer(network, layers, "6", network_name="it")
    with pytest.raises(InputError, match="the map of 4 of it is 1x1") as caught:
        choose_layer(network, layers, "4", network_name="it")
    assert "--layer 3" in caught.value.hint
    import timm

    resnet = timm.create_model("resnet18", num_classes=5).eval()
    with pytest.raises(InputError, match="it has no layer layer44") as caught:
        choose_layer(resnet, list_map_layers(resnet, (3, 64, 64)), "layer44", network_name="it")
    assert "did you mean layer4" in caught.value.hint
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 8, 1), shared, *small_network()[3:]).eval()
    found = list_map_layers(twice, SIZE)
    with pytest.raises(InputError, match="the layer 1 of it runs 2 times in one pass"):
        choose_layer(twice, found, "1", network_name="it")
    assert choose_layer(twice, found, None, network_name="it").name == "2"
    flat = nn.Sequential(nn.Flatten(), nn.Linear(360, 4)).eval()
    with pytest.raises(InputError, match="no layer of it gives a feature map larger than 1x1"):
        choose_layer(flat, list_map_layers(flat, SIZE), None, network_name="it")


def test_a_network_that_does_not_classify() -> None:
    network = small_network(nn.ReLU())[:5].eval()
    layer = choose_layer(network, list_map_layers(network, SIZE), "3", network_name="it")
    with pytest.raises(InputError, match="the network answers with 3x8x1x1"):
        attend(network, layer, images())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    network = small_network(nn.ReLU())
    with pytest.raises(MissingDependencyError, match="pytorch_grad_cam") as caught:
        look(network, "3", images())
    assert "pip install 'vexport[explain]'" in caught.value.hint
