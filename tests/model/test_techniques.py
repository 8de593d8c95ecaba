"""The techniques in any network: what they replace, what they refuse, and that merging them changes no answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vexport.errors import FusionError, InputError, ParityError
from vexport.model.prove_techniques import merge_and_prove_network
from vexport.model.randomize import randomize_
from vexport.model.techniques import (
    DeepConv2d,
    apply_techniques,
    merge_techniques,
    reshape_to_deployed,
    set_slope,
    technique_modules,
)
from vexport.model.vanillanet import SeriesActivation

SIZE = (3, 17, 19)


class Residual(nn.Module):
    """A network of somebody's own: a shortcut, a grouped convolution, a ReLU of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, (1, 3), padding=(0, 2), dilation=(1, 2))
        self.act2 = nn.ReLU(inplace=True)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.fc1, self.act3, self.fc2 = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.grouped(self.act2(self.conv2(x) + x))
        return self.fc2(self.act3(self.fc1(x.mean((2, 3)))))  # type: ignore[no-any-return]


def made(deep: bool = True, act_num: int | None = 2) -> nn.Module:
    network = apply_techniques(Residual(), SIZE, deep=deep, act_num=act_num)
    return randomize_(network, SIZE).eval()


@pytest.mark.parametrize("kernel", [1, 3, (2, 5), 11])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 3, 1), ((3, 1), (2, 4), 2), (1, "same", 1)])
def test_a_pair_is_one_convolution_of_any_kernel(kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
    pair = DeepConv2d(3, 7, kernel, stride=stride, padding=padding, dilation=dilation, mid_channels=5)
    randomize_(nn.Sequential(pair, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2)), (3, 40, 40))
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    expected = copy.deepcopy(pair).double().eval()(images)
    got = pair.merged()(images)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max()))


def test_the_first_convolution_pads_before_the_batchnorm_shifts() -> None:
    """The borders are where a wrong merge of a padded pair shows."""
    pair = DeepConv2d(1, 1, 3, padding=1)
    nn.init.constant_(pair.bn.bias, 5.0)
    images = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    expected = copy.deepcopy(pair).double().eval()(images).detach()
    assert torch.allclose(pair.merged()(images), expected)


def test_at_any_other_slope_it_is_refused() -> None:
    network = made()
    set_slope(network, 0.75)
    with pytest.raises(FusionError, match=r"slope is 0\.75"):
        merge_techniques(network)
    assert len(list(technique_modules(network))) == 4, "nothing was changed"
    with pytest.raises(InputError, match="not within 0 and 1"):
        set_slope(network, 1.5)


def test_the_slope_is_never_lost() -> None:
    network = made()
    set_slope(network, 0.25)
    other = apply_techniques(Residual(), SIZE, act_num=2)
    other.load_state_dict(network.state_dict())
    assert [float(m.slope) for m in other.modules() if isinstance(m, DeepConv2d)] == [0.25, 0.25]


def test_a_slope_of_0_is_a_relu_and_of_1_the_identity() -> None:
    pair = DeepConv2d(2, 2, 1).eval()
    images = torch.randn(1, 2, 4, 4)
    between = pair.bn(pair.conv1(images))
    set_slope(pair, 0.0)
    assert torch.equal(pair(images), pair.conv2(between.relu()))
    set_slope(pair, 1.0)
    assert torch.equal(pair(images), pair.conv2(between))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("act_num", [None, 0, 3])
def test_a_network_of_ones_own_keeps_its_answers(deep: bool, act_num: int | None) -> None:
    network = made(deep, act_num)
    images = torch.randn(4, *SIZE)
    expected = copy.deepcopy(network).double()(images.double())
    merged = merge_techniques(copy.deepcopy(network))
    assert torch.allclose(merged(images.double()), expected, rtol=0, atol=1e-12)
    assert not list(technique_modules(merged))
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("DeepConv2d") == (2 if deep else 0), "the grouped one stays"
    assert kinds.count("SeriesActivation") == (0 if act_num is None else 2), "the ReLU of vectors stays"
    assert isinstance(network.act3, nn.ReLU)


def test_the_deployed_shape_is_known_before_the_weights_are() -> None:
    merged = merge_techniques(copy.deepcopy(made()))
    with torch.device("meta"):
        empty = reshape_to_deployed(apply_techniques(Residual(), SIZE, act_num=2))
    shapes = {name: tensor.shape for name, tensor in merged.state_dict().items()}
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes


def test_the_proof_names_each_module_and_the_logits() -> None:
    network = made()
    before = copy.deepcopy(network.state_dict())
    proven = merge_and_prove_network(network, {"random": torch.randn(2, *SIZE), "more": torch.randn(1, *SIZE)})
    assert [block.name for block in proven.blocks] == ["conv1", "act1", "conv2", "act2", "logits"]
    assert all(block.chained < 1e-13 and block.stored < 1e-6 for block in proven.blocks)
    assert [entry["inputs"] for entry in proven.parity] == ["random", "more"]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "it is not changed"
    assert all(tensor.dtype == torch.float32 for name, tensor in proven.tensors.items() if "num_batches" not in name)
    deployed = reshape_to_deployed(apply_techniques(Residual(), SIZE, act_num=2)).eval()
    deployed.load_state_dict(proven.tensors)
    images = torch.randn(2, *SIZE)
    assert torch.allclose(deployed(images), network(images), rtol=0, atol=1e-4)


def test_a_wrong_merge_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DeepConv2d.merged

    def wrong(self: DeepConv2d) -> nn.Conv2d:
        conv = right(self)
        assert conv.bias is not None
        conv.bias.data[0] += 1e-6
        return conv

    monkeypatch.setattr(DeepConv2d, "merged", wrong)
    with pytest.raises(ParityError, match="merged conv1 disagrees"):
        merge_and_prove_network(made(), {"random": torch.randn(2, *SIZE)})


def test_a_damaged_batchnorm_is_refused() -> None:
    network = made()
    assert isinstance(network.conv1, DeepConv2d)
    assert network.conv1.bn.running_var is not None
    network.conv1.bn.running_var[0] = -1.0
    with pytest.raises(FusionError, match="variance is not positive"):
        merge_and_prove_network(network, {"random": torch.randn(2, *SIZE)})


def test_a_module_that_serves_twice_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.relu(self.conv(self.relu(x))))  # type: ignore[no-any-return]

    with pytest.raises(InputError, match="serves several places") as caught:
        apply_techniques(Shared(), SIZE, deep=False)
    assert caught.value.details == ("relu is called 2 times",)
    deep = apply_techniques(Shared(), SIZE, act_num=None).eval()
    with pytest.raises(InputError, match="conv is called more than once"):
        merge_and_prove_network(deep, {"random": torch.randn(1, *SIZE)})


def test_what_cannot_be_replaced_is_said() -> None:
    with pytest.raises(InputError, match="no convolution"):
        apply_techniques(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()), (4, 8, 8))
    with pytest.raises(InputError, match="no ReLU"):
        apply_techniques(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), SIZE)
    with pytest.raises(InputError, match="pads with reflect"):
        apply_techniques(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), SIZE)
    with pytest.raises(InputError, match="the layer itself"):
        apply_techniques(nn.Conv2d(3, 4, 3), SIZE, act_num=None)


def test_the_mode_is_kept() -> None:
    network = Residual().train()
    apply_techniques(network, SIZE)
    assert all(module.training for module in network.modules())
    assert isinstance(network.act1, SeriesActivation)
    assert network.act1.weight.shape == (8, 1, 7, 7)


def test_what_is_refused_leaves_the_network_as_it_was() -> None:
    class Late(nn.Module):
        """What is wrong with it is found last."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv2(self.relu(self.conv1(x))))  # type: ignore[no-any-return]

    network = Late()
    for how in ({"act_num": None}, {"deep": False}, {}):
        with pytest.raises(InputError):
            apply_techniques(network, SIZE, **how)  # type: ignore[arg-type]
        assert [type(module) for module in network.children()] == [nn.Conv2d, nn.Conv2d, nn.ReLU]


def test_twice_is_refused() -> None:
    network = apply_techniques(Residual(), SIZE, act_num=None)
    with pytest.raises(InputError, match="has techniques already"):
        apply_techniques(network, SIZE)


def test_shared_convolutions_are_refused() -> None:
    network = Residual()
    network.other = network.conv1
    with pytest.raises(InputError, match="in several places") as caught:
        apply_techniques(network, SIZE)
    assert caught.value.details == ("conv1, other",)


def test_subclasses_stay_what_they_are() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    network = nn.Sequential(Scaled(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
    apply_techniques(network, SIZE)
    assert type(network[0]) is Scaled
    assert isinstance(network[1], DeepConv2d)


def test_a_subclass_of_relu_stays_what_it_is() -> None:
    class Shifted(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - 1)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(), nn.Conv2d(4, 4, 3), nn.ReLU())
    apply_techniques(network, SIZE, deep=False)
    assert [type(module) for module in network][1::2] == [Shifted, SeriesActivation]
    with pytest.raises(InputError, match="no ReLU"):
        apply_techniques(network[:2], SIZE, deep=False)


@pytest.mark.parametrize("deep", [False, True])
def test_a_network_without_parameters_is_refused(deep: bool) -> None:
    with pytest.raises(InputError, match="no parameters") as caught:
        apply_techniques(nn.Sequential(nn.ReLU()), SIZE, deep=deep)
    assert caught.value.hint


def test_a_negative_number_of_terms_is_refused() -> None:
    network = Residual()
    with pytest.raises(InputError, match="act_num -1 is negative") as caught:
        apply_techniques(network, SIZE, act_num=-1)
    assert caught.value.hint
    assert type(network.conv1) is nn.Conv2d, "nothing was changed"


@pytest.mark.parametrize("size", [(4, 17, 19), (3, 17), (3, -1, 4)])
def test_images_that_the_network_is_not_for_are_refused(size: Any) -> None:
    network = Residual().train()
    network.bn1.eval()
    with pytest.raises(InputError, match="cannot run on an image of") as caught:
        apply_techniques(network, size)
    assert "channels, height and width" in caught.value.hint
    assert caught.value.details
    assert (network.training, network.bn1.training) == (True, False)
    assert not network.act1._forward_hooks
    assert type(network.conv1) is nn.Conv2d


def test_what_was_frozen_is_frozen() -> None:
    network = Residual()
    for parameter in (*network.conv1.parameters(), network.conv2.bias):
        assert parameter is not None
        parameter.requires_grad_(False)
    network.bn1.eval()
    apply_techniques(network, SIZE)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if name.startswith("conv1.")]
    assert {name for name in trained if name.startswith("conv2.")} == {
        "conv2.conv1.weight", "conv2.conv1.bias", "conv2.bn.weight", "conv2.bn.bias", "conv2.conv2.weight",
    }  # fmt: skip
    assert {"act1.weight", "bn1.weight"} <= trained
    assert not network.bn1.training, "each module keeps its mode"


def test_functional_relus_stay() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(nn.functional.relu(self.conv(x)))  # type: ignore[no-any-return]

    network = apply_techniques(Both(), SIZE, deep=False, act_num=0)
    assert isinstance(network.relu, SeriesActivation)
    assert [name for name, _ in technique_modules(network)] == ["relu"]


def test_the_first_convolution_starts_as_the_one_that_it_replaces() -> None:
    network = Residual()
    before = network.conv1.weight.detach().clone()
    apply_techniques(network, SIZE)
    assert isinstance(network.conv1, DeepConv2d)
    assert torch.equal(network.conv1.conv1.weight, before)


def test_the_type_is_kept() -> None:
    network = apply_techniques(Residual().double(), SIZE)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert network.eval()(torch.rand(1, *SIZE, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    network = randomize_(apply_techniques(Residual(), SIZE), SIZE).cuda().eval()
    proven = merge_and_prove_network(network, {"random": torch.randn(2, *SIZE)})
    assert all(entry["passed"] for entry in proven.parity)
    images = torch.randn(2, *SIZE, device="cuda")
    expected = network(images)
    assert torch.allclose(merge_techniques(network).float()(images), expected, atol=1e-4)
    other = apply_techniques(Residual().cuda(), SIZE)
    assert {parameter.device.type for parameter in other.parameters()} == {"cuda"}


def test_what_is_never_called_is_not_proven() -> None:
    class Idle(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(5, 5)  # its name is that of the report's last line
            self.training_only = DeepConv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits(super().forward(x))  # type: ignore[no-any-return]

    network = Idle().eval()
    with pytest.raises(InputError, match="not called in evaluation mode") as caught:
        merge_and_prove_network(network, {"random": torch.randn(1, *SIZE)})
    assert caught.value.details == ("training_only",)
