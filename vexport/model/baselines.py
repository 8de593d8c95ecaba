"""The networks that VanillaNet is measured against, from timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from vexport.artifacts import Preprocessing
from vexport.errors import DownloadError
from vexport.model.variants import Published


@dataclass(frozen=True)
class Baseline:
    """A baseline: its name in timm and the figures of the same published table as VanillaNet's."""

    timm_name: str
    published: Published


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "resnet50": Baseline("resnet50", Published(25.6, 4.1, 79.8, 85.7, 7.64, 0.80, 0.54)),
        "swin_tiny": Baseline("swin_tiny_patch4_window7_224", Published(28.3, 4.5, 81.18, 86.64, 10.51, 1.41, 0.98)),
        "swin_small": Baseline("swin_small_patch4_window7_224", Published(49.6, 8.7, 83.21, 87.60, 20.25)),
    }
)


def create_baseline(name: str, *, pretrained: bool = False) -> nn.Module:
    """A baseline from timm, in evaluation mode.

    Args:
        name: Key of BASELINES.
        pretrained: Download timm's weights; otherwise they are freshly initialised.

    Raises:
        DownloadError: the weights cannot be fetched.
    """
    import timm

    timm_name = BASELINES[name].timm_name
    try:
        module: nn.Module = timm.create_model(timm_name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(
            f"timm's weights of {timm_name} cannot be downloaded", details=[first[:200]], hint="use --weights random"
        ) from error
    return module.eval()


def baseline_preprocessing(module: nn.Module) -> Preprocessing:
    """How timm prepares images for a network."""
    import timm.data

    config = timm.data.resolve_model_data_config(module)  # type: ignore[attr-defined, no-untyped-call]
    channels, height, width = config["input_size"]
    return Preprocessing(
        input_size=(channels, height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
    )
