"""The networks of the paper's ablations: VanillaNet, AlexNet and ResNet-50 with and without its two techniques.

Source: the ablation study of arXiv 2305.12972 (series terms, techniques, shortcuts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexport.errors import InputError
from vexport.model.alexnet import AlexNet
from vexport.model.techniques import DeepConv2d, apply_techniques, reshape_to_deployed, set_slope
from vexport.model.vanillanet import BN_EPS, STEM_KERNEL, SeriesActivation, init_weights
from vexport.model.variants import VARIANTS, scale_width, unknown_model

Techniques = Literal["none", "deep", "series", "both"]
Shortcut = Literal["none", "before", "after"]
OTHERS = ("alexnet", "resnet50")
TECHNIQUES: Mapping[Techniques, str] = {
    "none": "neither technique",
    "deep": "deep training",
    "series": "series activation",
    "both": "deep training and series activation",
}


@dataclass(frozen=True)
class AblationSpec:
    """What one network of an ablation is.

    Args:
        network: A VanillaNet variant, `alexnet` or `resnet50`.
        techniques: Which of the two it has.
        shortcut: VanillaNet only: whether each stage's input is added before or after its activation.
        width: Multiplier of the channels.
        act_num: n of the series activations.
        num_classes: Classes of the head.
        in_chans: Channels of the input.
        image_size: Height and width; AlexNet's first linear layer depends on it.
        stem_stride: Of the first convolution; None takes the network's own (4, 4 and 2).
    """

    network: str
    techniques: Techniques = "both"
    shortcut: Shortcut = "none"
    width: float = 1.0
    act_num: int = 3
    num_classes: int = 1000
    in_chans: int = 3
    image_size: int = 224
    stem_stride: int | None = None

    @property
    def variant(self) -> str:
        """What it is called."""
        return self.network

    @property
    def fixed_size(self) -> bool:
        """Whether it takes images of one size only."""
        return self.network == "alexnet" or (self.network in VARIANTS and VARIANTS[self.network].pool_sizes is not None)

    @property
    def label(self) -> str:
        """For people."""
        shortcut = "" if self.shortcut == "none" else f", shortcuts {self.shortcut} the activation"
        return f"{self.network} with {TECHNIQUES[self.techniques]}{shortcut}"

    @property
    def deep(self) -> bool:
        """Whether its convolutions are trained as pairs."""
        return self.techniques in ("deep", "both")

    @property
    def series(self) -> int | None:
        """n of its series activations; None where it has plain ReLUs."""
        return self.act_num if self.techniques in ("series", "both") else None

    def to_json(self) -> dict[str, Any]:
        return {"ablation": 1, **asdict(self)}


class AblationNetwork(nn.Module):
    """A network of an ablation, with the slope of all its `DeepConv2d` in one place.

    Args:
        spec: Which.
        drop_rate: Dropout before the classifier (AlexNet: before both of its hidden layers).

    Shape:
        (N, in_chans, H, W) to logits (N, num_classes).

    Raises:
        InputError: there is no such network, or the image is too small for it.
    """

    def __init__(self, spec: AblationSpec, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, spec.num_classes
        self.body = _body(spec, drop_rate)
        self._require_room()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    @property
    def slope(self) -> Tensor:
        """Slope of A', shape (): 1 where nothing is trained deeply."""
        found: Tensor | None = next((m.slope for m in self.modules() if isinstance(m, DeepConv2d)), None)
        return torch.tensor(1.0) if found is None else found

    def set_slope(self, slope: float) -> None:
        """Set the slope of A' everywhere.

        Raises:
            InputError: it is not within 0 and 1.
        """
        set_slope(self, slope)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates, which timm asks for: there are none.

        Raises:
            InputError: always.
        """
        raise InputError("the ablation networks have no layer groups", hint="leave optimizer.layer_decay out")

    def _require_room(self) -> None:
        side = self.spec.image_size
        image = torch.rand(1, self.spec.in_chans, side, side, device=next(self.parameters()).device)
        mode = self.training
        try:
            with torch.no_grad():
                self.eval()(image)
        except RuntimeError as error:
            raise InputError(
                f"an image of {side}x{side} is too small for {self.spec.network}",
                details=str(error).splitlines()[:1],
                hint="take larger images, or a smaller network.stem_stride",
            ) from error
        finally:
            self.train(mode)


class VanillaBody(nn.Module):
    """VanillaNet with each of its techniques to be left out, and with shortcuts.

    With both techniques and no shortcut it is `VanillaNet`'s training form, module for module.

    Args:
        dims: Channels after the stem, then after each stage.
        strides: Max-pool kernel and stride of each stage; 1 means no pool.
        deep: Whether convolutions are pairs.
        act_num: n of the series activations; None for plain ReLUs.
        shortcut: Whether a stage's input is added to what its activation takes (`before`) or gives (`after`).
        num_classes: Classes.
        in_chans: Channels of the input.
        drop_rate: Dropout before the head.
        stem_stride: Stride of the 4x4 stem.
        stem_padding: Its padding.
        pool_sizes: As of `VanillaNet`.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        deep: bool,
        act_num: int | None,
        shortcut: Shortcut = "none",
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stem_stride: int = 4,
        stem_padding: int = 0,
        pool_sizes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        stem = _conv(in_chans, dims[0], STEM_KERNEL, deep=deep, stride=stem_stride, padding=stem_padding)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(dims[0], eps=BN_EPS), _activation(dims[0], act_num))
        self.stages = nn.ModuleList(
            VanillaStage(dims[i], dims[i + 1], stride, size, deep=deep, act_num=act_num, shortcut=shortcut)
            for i, (stride, size) in enumerate(zip(strides, pool_sizes or (0,) * len(strides), strict=True))
        )
        head = _conv(dims[-1], num_classes, 1, deep=deep)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(drop_rate), head, nn.Flatten())
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)  # type: ignore[no-any-return]


class VanillaStage(nn.Module):
    """1x1 convolution, max-pool, activation, and the shortcut around them where there is one.

    The shortcut has no weights (He et al., arXiv 1512.03385, option A): it pools as the stage does, and zeros stand
    for the channels that the input does not have.

    Shape:
        (N, dim, H, W) to (N, dim_out, H / stride, W / stride), or to pool_size.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        stride: int,
        pool_size: int,
        *,
        deep: bool,
        act_num: int | None,
        shortcut: Shortcut = "none",
    ) -> None:
        super().__init__()
        self.conv = _conv(dim, dim_out, 1, deep=deep, mid_channels=dim)
        self.bn = nn.BatchNorm2d(dim_out, eps=BN_EPS)
        if stride == 1:
            self.pool: nn.Module = nn.Identity()
        else:
            self.pool = nn.AdaptiveMaxPool2d(pool_size) if pool_size else nn.MaxPool2d(stride)
        self.act = _activation(dim_out, act_num)
        self.shortcut, self.more_channels = shortcut, dim_out - dim

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.bn(self.conv(x)))
        if self.shortcut == "none":
            return self.act(y)  # type: ignore[no-any-return]
        around = F.pad(self.pool(x), (0, 0, 0, 0, 0, self.more_channels)) if self.more_channels else self.pool(x)
        out: Tensor = self.act(y + around) if self.shortcut == "before" else self.act(y) + around
        return out


def make_ablation_spec(network: str, **changes: Any) -> AblationSpec:
    """Describe a network of an ablation.

    Raises:
        InputError: there is none of that name, or it cannot have shortcuts.
    """
    if network not in (*VARIANTS, *OTHERS):
        raise unknown_model(network, [*VARIANTS, *OTHERS])
    spec = AblationSpec(network, **changes)
    if spec.shortcut != "none" and network not in VARIANTS:
        raise InputError(
            f"{network} cannot have shortcuts {spec.shortcut} the activation", hint="they are for VanillaNet's stages"
        )
    return spec


def build_ablation(
    spec: AblationSpec, *, form: Literal["training", "deployed"] = "training", drop_rate: float = 0.0
) -> AblationNetwork:
    """Build the network that a spec describes, freshly initialised, in evaluation mode.

    Raises:
        InputError: its numbers do not make a network.
    """
    network = AblationNetwork(spec, drop_rate=drop_rate)
    if form == "deployed":
        reshape_to_deployed(network.body)
    return network.eval()


def _body(spec: AblationSpec, drop_rate: float) -> nn.Module:
    if spec.network in VARIANTS:
        variant = VARIANTS[spec.network]
        return VanillaBody(
            scale_width(variant.dims, spec.width),
            variant.strides,
            deep=spec.deep,
            act_num=spec.series,
            shortcut=spec.shortcut,
            num_classes=spec.num_classes,
            in_chans=spec.in_chans,
            drop_rate=drop_rate,
            stem_stride=spec.stem_stride or variant.stem_stride,
            stem_padding=variant.stem_padding,
            pool_sizes=variant.pool_sizes,
        )
    if spec.network == "alexnet":
        body: nn.Module = AlexNet(
            spec.image_size,
            width=spec.width,
            num_classes=spec.num_classes,
            in_chans=spec.in_chans,
            drop_rate=drop_rate,
            stem_stride=spec.stem_stride or 4,
            norm=True,  # both techniques bring BatchNorm: its effect would pass for theirs
        )
    else:
        body = _resnet50(spec, drop_rate)
    if spec.techniques == "none":
        return body
    size = (spec.in_chans, spec.image_size, spec.image_size)
    return apply_techniques(body, size, deep=spec.deep, act_num=spec.series)


def _resnet50(spec: AblationSpec, drop_rate: float) -> nn.Module:
    """timm's ResNet-50; its stem keeps 64 channels at every width."""
    import timm

    network: nn.Module = timm.create_model(
        "resnet50",
        num_classes=spec.num_classes,
        in_chans=spec.in_chans,
        drop_rate=drop_rate,
        channels=scale_width((64, 128, 256, 512), spec.width),
    )
    if spec.stem_stride is not None:
        stem = network.conv1
        assert isinstance(stem, nn.Conv2d)
        stem.stride = (spec.stem_stride, spec.stem_stride)
    return network


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    deep: bool,
    stride: int = 1,
    padding: int = 0,
    mid_channels: int | None = None,
) -> nn.Module:
    if deep:
        return DeepConv2d(inputs, outputs, kernel, stride=stride, padding=padding, mid_channels=mid_channels)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding)


def _activation(channels: int, act_num: int | None) -> nn.Module:
    return nn.ReLU() if act_num is None else SeriesActivation(channels, act_num)
