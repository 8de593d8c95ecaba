"""The networks that VanillaNet is measured against, from timm and torchvision, and what people call them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import nn

from vexport.artifacts import Preprocessing
from vexport.errors import DownloadError
from vexport.model.variants import VARIANTS, Published

Family = Literal["VanillaNet", "ResNet", "Swin", "ConvNeXtV2", "MobileNetV3", "ShuffleNetV2", "RepVGG", "ViTAE"]


@dataclass(frozen=True)
class Baseline:
    """A baseline and the figures of the same published table as VanillaNet's.

    Args:
        name: In its library.
        label: For people.
        family: For people.
        published: The paper's figures.
        package: Where the network comes from; None: no kept library has it, so it is known by its figures only.
        merged: Whether its branches are merged after training, as the published figures have it.
    """

    name: str
    label: str
    family: Family
    published: Published
    package: Literal["timm", "torchvision"] | None = "timm"
    merged: bool = False


def _resnet(depth: int, *figures: float | None) -> Baseline:
    return Baseline(f"resnet{depth}", f"ResNet-{depth}", "ResNet", _published(*figures))


def _swin(size: str, *figures: float | None) -> Baseline:
    name = f"swin_{size}_patch4_window7_224"
    return Baseline(name, f"Swin-{size[0].upper()}", "Swin", _published(*figures))


def _convnext(size: str, letter: str, *figures: float | None) -> Baseline:
    return Baseline(f"convnextv2_{size}", f"ConvNeXtV2-{letter}", "ConvNeXtV2", _published(*figures))


def _mobile(size: str, *figures: float | None) -> Baseline:
    return Baseline(f"mobilenetv3_{size}_100", f"MobileNetV3-{size[0].upper()}", "MobileNetV3", _published(*figures))


def _shuffle(width: str, *figures: float | None) -> Baseline:
    label = f"ShuffleNetV2 x{width.removesuffix('_0').replace('_', '.')}"
    return Baseline(f"shufflenet_v2_x{width}", label, "ShuffleNetV2", _published(*figures), "torchvision")


def _repvgg(letter: str, *figures: float | None) -> Baseline:
    return Baseline(f"repvgg_{letter}", f"RepVGG-{letter.upper()}", "RepVGG", _published(*figures), merged=True)


def _published(*figures: float | None) -> Published:
    """Parameters, GMACs, top-1, ReaL, and A100 latency in PyTorch, TensorRT FP32 and FP16."""
    params_m, gmacs, top1, real, a100_ms, *trt = figures
    assert params_m is not None
    assert gmacs is not None
    assert top1 is not None
    assert a100_ms is not None
    return Published(params_m, gmacs, top1, real, a100_ms, *trt)


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "resnet18": _resnet(18, 11.7, 1.8, 70.6, 79.4, 3.12, 0.41, 0.28),
        "resnet34": _resnet(34, 21.8, 3.7, 75.5, 83.4, 5.57, 0.77, 0.49),
        "resnet50": _resnet(50, 25.6, 4.1, 79.8, 85.7, 7.64, 0.80, 0.54),
        "resnet101": _resnet(101, 45.0, 8.0, 81.3, None, 15.35, 1.58, 1.04),
        "resnet152": _resnet(152, 60.2, 11.5, 81.8, None, 22.19, 2.30, 1.49),
        "swin_tiny": _swin("tiny", 28.3, 4.5, 81.18, 86.64, 10.51, 1.41, 0.98),
        "swin_small": _swin("small", 49.6, 8.7, 83.21, 87.60, 20.25),
        "convnextv2_atto": _convnext("atto", "A", 3.7, 0.55, 76.2, 82.79, 6.07),
        "convnextv2_femto": _convnext("femto", "F", 5.2, 0.78, 78.0, 84.08, 6.17),
        "convnextv2_pico": _convnext("pico", "P", 9.1, 1.37, 79.7, 85.60, 6.29),
        "convnextv2_nano": _convnext("nano", "N", 15.6, 2.45, 81.2, None, 6.85),
        "convnextv2_tiny": _convnext("tiny", "T", 28.6, 4.47, 82.5, None, 8.40),
        "convnextv2_base": _convnext("base", "B", 88.7, 15.4, 84.3, None, 15.41),
        "mobilenetv3_small": _mobile("small", 2.5, 0.06, 67.67, 74.33, 6.65),
        "mobilenetv3_large": _mobile("large", 5.5, 0.22, 74.04, 80.01, 7.83),
        "shufflenetv2_x1_5": _shuffle("1_5", 3.5, 0.30, 73.00, 80.19, 7.23),
        "shufflenetv2_x2": _shuffle("2_0", 7.4, 0.58, 76.23, 82.72, 7.84),
        "repvgg_a0": _repvgg("a0", 8.1, 1.36, 72.41, 79.33, 3.22),
        "repvgg_a1": _repvgg("a1", 12.8, 2.37, 74.46, 81.02, 3.24),
        "repvgg_b0": _repvgg("b0", 14.3, 3.1, 75.14, 81.74, 3.88),
        "repvgg_b3": _repvgg("b3", 110.9, 26.2, 80.50, 86.44, 4.21),
    }
)
# In the published table, and in no kept library.
FIGURES_ONLY: Mapping[str, Baseline] = MappingProxyType(
    {
        "vitae_tiny": Baseline("vitae_tiny", "ViTAE-T", "ViTAE", _published(4.8, 1.5, 75.3, 82.9, 13.37), None),
        "vitae_small": Baseline("vitae_small", "ViTAE-S", "ViTAE", _published(23.6, 5.6, 82.0, 87.0, 22.13), None),
    }
)


def published_figures(name: str) -> Published | None:
    """The paper's figures of a variant or baseline; None where it has none."""
    if name in VARIANTS:
        return VARIANTS[name].published
    found = BASELINES.get(name) or FIGURES_ONLY.get(name)
    return found.published if found else None


def network_label(name: str) -> str:
    """What people call a variant or baseline; the name itself where it is neither."""
    if name in VARIANTS:
        return f"VanillaNet-{name.removeprefix('vanillanet_').replace('x1_5', '1.5x').replace('_', '-')}"
    found = BASELINES.get(name) or FIGURES_ONLY.get(name)
    return found.label if found else name


def network_family(name: str) -> str:
    """The family of a variant or baseline; empty where it is neither."""
    if name in VARIANTS:
        return "VanillaNet"
    found = BASELINES.get(name) or FIGURES_ONLY.get(name)
    return found.family if found else ""


def create_baseline(name: str, *, pretrained: bool = False) -> nn.Module:
    """A baseline in evaluation mode, in the form in which it is deployed.

    Args:
        name: Key of BASELINES.
        pretrained: Download its library's weights; otherwise they are freshly initialised.

    Raises:
        DownloadError: the weights cannot be fetched.
    """
    baseline = BASELINES[name]
    try:
        module = _create(baseline, pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(
            f"{baseline.package}'s weights of {baseline.name} cannot be downloaded",
            details=[first[:200]],
            hint="use --weights random",
        ) from error
    module.eval()
    if baseline.merged:
        from timm.utils.model import reparameterize_model

        module = reparameterize_model(module)
    return module


def _create(baseline: Baseline, pretrained: bool) -> nn.Module:
    if baseline.package == "torchvision":
        import torchvision

        module: nn.Module = torchvision.models.get_model(baseline.name, weights="DEFAULT" if pretrained else None)
        return module
    import timm

    created: nn.Module = timm.create_model(baseline.name, pretrained=pretrained)
    return created


def baseline_preprocessing(module: nn.Module) -> Preprocessing:
    """How its library prepares images for a network."""
    import timm.data

    if not hasattr(module, "pretrained_cfg"):  # torchvision's: 232 pixels, bilinear, for its newer weights
        return Preprocessing(crop_pct=224 / 232, interpolation="bilinear")
    config = timm.data.resolve_model_data_config(module)  # type: ignore[attr-defined, no-untyped-call]
    channels, height, width = config["input_size"]
    return Preprocessing(
        input_size=(channels, height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
    )
