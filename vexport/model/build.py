"""From the description of a network to the network, its tensor names and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vexport.model.ablation import AblationNetwork, AblationSpec, build_ablation, make_ablation_spec
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import NetworkSpec, get_variant

Form = Literal["training", "deployed"]
Spec = NetworkSpec | AblationSpec
Network = VanillaNet | AblationNetwork


@overload
def build_network(spec: NetworkSpec, *, form: Form = "training", drop_rate: float = 0.0) -> VanillaNet: ...
@overload
def build_network(spec: AblationSpec, *, form: Form = "training", drop_rate: float = 0.0) -> AblationNetwork: ...
def build_network(spec: Spec, *, form: Form = "training", drop_rate: float = 0.0) -> Network:
    """Build the network that a spec describes, freshly initialised, in evaluation mode.

    Raises:
        InputError: its numbers do not make a network.
    """
    if isinstance(spec, AblationSpec):
        return build_ablation(spec, form=form, drop_rate=drop_rate)
    return VanillaNet(**spec.network_kwargs(), drop_rate=drop_rate, deploy=form == "deployed").eval()


def read_spec(data: Mapping[str, Any]) -> Spec:
    """The spec that a file of ours describes.

    Raises:
        TypeError, KeyError: the description is damaged.
        InputError: it names no network that there is.
    """
    if "ablation" in data:
        return make_ablation_spec(**{key: value for key, value in data.items() if key != "ablation"})
    spec = NetworkSpec.from_json(data)
    get_variant(spec.variant)
    return spec


def expected_shapes(spec: Spec, form: Form) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a network, in the order of the state dict; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_network(spec, form=form).state_dict().items()}


def conv_names(spec: NetworkSpec) -> list[str]:
    """Names of the deployed form's convolutions, in the order in which they come; exported nodes are called so too."""
    # Nothing else in it has a weight.
    return [name.removesuffix(".weight") for name in expected_shapes(spec, "deployed") if name.endswith(".weight")]


@dataclass(frozen=True)
class Cost:
    """Size of a network.

    Args:
        params: Learnt numbers.
        gmacs: Multiply-accumulates of convolutions and matrix products for one image, billions.
    """

    params: int
    gmacs: float


def count_cost(module: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count parameters and multiply-accumulates of a module that lives on the meta device.

    Args:
        module: On the meta device, so that nothing is computed.
        input_size: Channels, height and width of one input.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.empty(1, *input_size, device="meta"))
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() / 2e9)
