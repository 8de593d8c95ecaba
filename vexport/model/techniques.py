"""The paper's two techniques for any network: deep training of convolutions, and series activations in place of ReLUs.

Source: arXiv 2305.12972, section 3.1 (deep training) and 3.2 (series activation); its ablation study has the same two
techniques on AlexNet and ResNet-50. `apply_techniques` puts them into a network, `merge_techniques` takes them out
again: each pair of convolutions becomes one, each BatchNorm of an activation becomes its bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vexport.errors import FusionError, InputError
from vexport.model.fuse import BatchNormStats, ConvWeights, compose, fold_batchnorm, fuse_series_activation
from vexport.model.vanillanet import BN_EPS, SeriesActivation, leaky


class DeepConv2d(nn.Module):
    """Two convolutions that train as a deep network and become one: the pair of deep training (paper, section 3.1).

        y = W2 * A'(BN(W1 * x + b1)) + b2,   A'(x) = (1 - l) * relu(x) + l * x

    The first has any kernel, stride, padding and dilation, the second is 1x1. The slope l stands in the state dict, so
    that it is never lost; only at l = 1 can the pair be merged.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: Of the first convolution, as of `nn.Conv2d`; likewise stride, padding and dilation.
        stride: See above.
        padding: See above; with zeros.
        dilation: See above.
        mid_channels: Channels between the two; None takes O.
        bias: Whether the second has a bias. The merged convolution has one in any case: the BatchNorm's.

    Shape:
        (N, I, H, W) to (N, O, H', W'), as `nn.Conv2d` of the same numbers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        mid_channels: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        middle = out_channels if mid_channels is None else mid_channels
        self.conv1 = nn.Conv2d(in_channels, middle, kernel_size, stride, padding, dilation)
        self.bn = nn.BatchNorm2d(middle, eps=BN_EPS)
        self.conv2 = nn.Conv2d(middle, out_channels, 1, bias=bias)
        self.register_buffer("slope", torch.tensor(1.0))
        self.slope: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(leaky(self.bn(self.conv1(x)), self.slope))  # type: ignore[no-any-return]

    def merged_weights(self) -> ConvWeights:
        """Weight (O, I, K, K) and bias (O,) of the one convolution, float64.

        Raises:
            FusionError: the slope is below 1, or a BatchNorm cannot be folded.
        """
        if float(self.slope) != 1.0:
            raise FusionError(
                f"the activation slope is {float(self.slope):.6g}: the two convolutions are not yet linear",
                hint="merge after deep training, when the slope is 1",
            )
        first = fold_batchnorm(_weights(self.conv1), _statistics(self.bn))
        return compose(first, _weights(self.conv2))

    def deployed_shape(self) -> nn.Conv2d:
        """A fresh convolution of the shape that this pair merges into."""
        first = self.conv1
        return nn.Conv2d(
            first.in_channels,
            self.conv2.out_channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            first.dilation,  # type: ignore[arg-type]
        )

    def merged(self) -> nn.Conv2d:
        """The one convolution that gives the same answers in evaluation mode; float64, apart from this module.

        Raises:
            FusionError: as `merged_weights`.
        """
        weights = self.merged_weights()
        with torch.device("meta"):
            conv = self.deployed_shape()
        conv.weight = nn.Parameter(weights.weight, requires_grad=False)
        conv.bias = nn.Parameter(weights.bias, requires_grad=False)
        return conv.eval()


def merge_series_activation(act: SeriesActivation) -> SeriesActivation:
    """A series activation in deployed form: its BatchNorm folded into weight and bias; float64, apart from `act`."""
    if act.bias is not None:
        return act
    folded = fuse_series_activation(act.weight.detach(), _statistics(act.bn))
    with torch.device("meta"):
        deployed = SeriesActivation(act.weight.shape[0], act.act_num, deploy=True)
    deployed.weight = nn.Parameter(folded.weight, requires_grad=False)
    deployed.bias = nn.Parameter(folded.bias, requires_grad=False)
    return deployed.eval()


def apply_techniques(
    network: nn.Module, input_size: tuple[int, int, int], *, deep: bool = True, act_num: int | None = 3
) -> nn.Module:
    """Put deep training and series activations into a network, in place.

    Each `nn.Conv2d` that is not grouped becomes a `DeepConv2d` whose first convolution has its weights; a BatchNorm
    behind it stays where it is. Each `nn.ReLU` of feature maps becomes a `SeriesActivation`; those of vectors stay.
    What is new starts afresh: apply before training. A frozen convolution becomes a frozen pair.

    Not replaced, and not reported: ReLUs that are functions (`F.relu`, `torch.relu`, `x.relu()`), other activations
    such as `nn.ReLU6`, and subclasses of `nn.Conv2d` and `nn.ReLU`, which may compute something else.

    Args:
        network: Any with parameters; it runs once on a random image.
        input_size: C, H and W of that image.
        deep: Whether to double the convolutions.
        act_num: n of the series activations, 0 for a scale per channel; None leaves the ReLUs.

    Returns:
        The same network.

    Raises:
        InputError: it has no parameters, no convolution or no ReLU to replace, it has techniques already, it cannot run
            on such an image, `act_num` is negative, a module stands or serves in several places, or a padding is not of
            zeros; nothing has been changed then.
    """
    if act_num is not None and act_num < 0:
        raise InputError(f"act_num {act_num} is negative", hint="3 as in the paper, 0 for a scale per channel")
    weight = next(network.parameters(), None)
    if weight is None:
        raise InputError("the network has no parameters", hint="give one with convolutions")
    if any(isinstance(module, DeepConv2d | SeriesActivation) for module in network.modules()):
        raise InputError("the network has techniques already", hint="apply both in one call, to a fresh network")
    new: dict[str, nn.Module] = {}
    if deep:
        convs = [(name, m) for name, m in network.named_modules() if type(m) is nn.Conv2d and m.groups == 1]
        if not convs:
            raise InputError("the network has no convolution to train deeply", hint="grouped ones cannot be doubled")
        new |= {name: _deepened(name, conv) for name, conv in convs}
    if act_num is not None:
        for name, channels in _relu_channels(network, input_size, weight).items():
            new[name] = SeriesActivation(channels, act_num).to(weight.device, weight.dtype)
    _require_own_places(network, new)
    for name, module in new.items():
        _replace(network, name, module)
    return network


def merge_techniques(network: nn.Module) -> nn.Module:
    """Merge every technique within a network, in place, in float64; the network itself is then float64 too.

    Args:
        network: Trained, with every slope at 1.

    Raises:
        FusionError: a slope is below 1, or a BatchNorm cannot be folded; nothing has been changed then.
    """
    merged = {name: merge_module(module) for name, module in technique_modules(network)}
    for name, module in merged.items():
        _replace(network, name, module)
    return network.double().eval()


def technique_modules(network: nn.Module) -> Iterator[tuple[str, DeepConv2d | SeriesActivation]]:
    """Name and module of every technique that is still in training form, in the order of the network's modules."""
    for name, module in network.named_modules():
        if isinstance(module, DeepConv2d) or (isinstance(module, SeriesActivation) and module.bias is None):
            yield name, module


def merge_module(module: DeepConv2d | SeriesActivation) -> nn.Conv2d | SeriesActivation:
    """The deployed form of one technique, float64."""
    return module.merged() if isinstance(module, DeepConv2d) else merge_series_activation(module)


def reshape_to_deployed(network: nn.Module) -> nn.Module:
    """Give a network the shape that it has once merged, in place; its weights are fresh and mean nothing yet."""
    for name, module in list(technique_modules(network)):
        if isinstance(module, DeepConv2d):
            _replace(network, name, module.deployed_shape())
        else:
            _replace(network, name, SeriesActivation(module.weight.shape[0], module.act_num, deploy=True))
    return network


def set_slope(network: nn.Module, slope: float) -> None:
    """Set the slope of every `DeepConv2d` of a network.

    Raises:
        InputError: it is not within 0 and 1.
    """
    if not 0.0 <= slope <= 1.0:
        raise InputError(f"slope {slope} is not within 0 and 1", hint="0 is a ReLU, 1 is the identity")
    for module in network.modules():
        if isinstance(module, DeepConv2d):
            module.slope.fill_(slope)


def _weights(conv: nn.Conv2d) -> ConvWeights:
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
    return ConvWeights(conv.weight.detach(), bias.detach())


def _statistics(bn: nn.Module) -> BatchNormStats:
    assert isinstance(bn, nn.BatchNorm2d)
    if bn.running_mean is None or bn.running_var is None:
        raise FusionError("a BatchNorm keeps no running statistics", hint="train with track_running_stats=True")
    mean, var = bn.running_mean, bn.running_var
    weight, bias = (p.detach() if p is not None else None for p in (bn.weight, bn.bias))
    return BatchNormStats(
        torch.ones_like(mean) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
        mean,
        var,
        bn.eps,
    )


def _deepened(name: str, conv: nn.Conv2d) -> DeepConv2d:
    if conv.padding_mode != "zeros":
        # The first BatchNorm's shift would have to be padded along.
        raise InputError(f"{name} pads with {conv.padding_mode}, not zeros", hint="only padding with zeros is known")
    pair = DeepConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    # As the network's author initialised it; the new 1x1 convolution has PyTorch's own start.
    with torch.no_grad():
        pair.to(conv.weight.device, conv.weight.dtype).conv1.weight.copy_(conv.weight)
    if pair.conv2.bias is not None and conv.bias is not None:
        pair.conv2.bias.requires_grad_(conv.bias.requires_grad)
    for parameter in (pair.conv1.weight, pair.conv1.bias, *pair.bn.parameters(), pair.conv2.weight):
        if parameter is not None:
            parameter.requires_grad_(conv.weight.requires_grad)
    return pair


def _require_own_places(network: nn.Module, names: Container[str]) -> None:
    """Refuse a module that stands in two places: replaced in one, its weights would no longer be shared."""
    places: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    shared = [found for found in places.values() if len(found) > 1 and any(name in names for name in found)]
    if shared:
        raise InputError(
            "a module stands in several places of the network",
            details=[", ".join(found) for found in shared],
            hint="give each place its own module",
        )


def _relu_channels(network: nn.Module, input_size: tuple[int, int, int], like: Tensor) -> dict[str, int]:
    """The channels that every ReLU of feature maps sees, on an image of the device and type of `like`."""
    calls: Counter[str] = Counter()
    channels: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
            calls[name] += 1
            if args[0].ndim == 4:
                channels[name] = args[0].shape[1]

        return hook

    relus = [(name, module) for name, module in network.named_modules() if type(module) is nn.ReLU]
    handles = [module.register_forward_hook(watch(name)) for name, module in relus]
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(torch.rand(1, *input_size, device=like.device, dtype=like.dtype))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:  # as timm checks its sizes
        raise InputError(
            f"the network cannot run on an image of {' x '.join(map(str, input_size))}",
            details=str(error).splitlines()[:1],
            hint="give input_size as channels, height and width of the images that it is for",
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    if shared := [name for name, count in calls.items() if count > 1 and name in channels]:
        raise InputError(
            "one ReLU module serves several places: each needs a series activation of its own",
            details=[f"{name} is called {calls[name]} times" for name in shared],
            hint="give each place its own nn.ReLU, as timm's ResNet does",
        )
    if not channels:
        raise InputError("the network has no ReLU of feature maps to replace", hint="only nn.ReLU is replaced")
    return channels


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    if not name:
        raise InputError("the network is the layer itself", hint="put it into a network: nn.Sequential(layer)")
    parent, _, own = name.rpartition(".")
    module.train(network.get_submodule(name).training)
    setattr(network.get_submodule(parent), own, module)
