"""The eleven published variants as a table, and the description of one concrete network.

Source: arXiv 2305.12972, tables 3 and 8 of the paper and its supplement, and the reference repository's model file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from vexport.artifacts import Preprocessing
from vexport.errors import InputError


@dataclass(frozen=True)
class Published:
    """Figures of the paper: somebody else's measurements on one A100 at batch 1, never expectations.

    Args:
        params_m: Parameters of the deployed form, millions.
        gmacs: Multiply-accumulates at 224x224, billions (the paper's column is headed FLOPs).
        top1: ImageNet top-1, per cent.
        real: ImageNet ReaL, per cent.
        a100_pytorch_ms: Latency in PyTorch FP32.
        a100_trt_fp32_ms: Latency in TensorRT FP32.
        a100_trt_fp16_ms: Latency in TensorRT FP16.
    """

    params_m: float
    gmacs: float
    top1: float
    real: float | None
    a100_pytorch_ms: float
    a100_trt_fp32_ms: float | None = None
    a100_trt_fp16_ms: float | None = None


@dataclass(frozen=True)
class Variant:
    """The numbers that make one variant.

    Args:
        dims: Channels after the stem, then after each stage.
        strides: Max-pool kernel and stride of each stage; 1 means no pool.
        published: The paper's figures.
        stem_stride: Stride of the 4x4 stem.
        stem_padding: Its padding.
        pool_sizes: Output size of an adaptive max-pool per stage, 0 for an ordinary pool; None: none at all.
        crop_pct: Share of the image that the published evaluation keeps.
    """

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    published: Published
    stem_stride: int = 4
    stem_padding: int = 0
    pool_sizes: tuple[int, ...] | None = None
    crop_pct: float = 0.875


def _deep(repeats: int, unit: int = 512) -> tuple[int, ...]:
    """Widths of variants 9 to 13: `repeats` stages at four times the base width between the pools."""
    return (unit, unit, 2 * unit, *([4 * unit] * repeats), 8 * unit, 8 * unit)


def _deep_strides(repeats: int) -> tuple[int, ...]:
    return (1, 2, 2, *([1] * (repeats - 1)), 2, 1)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "vanillanet_5": Variant(
            (512, 1024, 2048, 4096), (2, 2, 2), Published(15.5, 5.2, 72.49, 79.66, 1.61, 0.33, 0.27)
        ),
        "vanillanet_6": Variant(
            (512, 1024, 2048, 4096, 4096), (2, 2, 2, 1), Published(32.5, 6.0, 76.36, 82.86, 2.01, 0.40, 0.33)
        ),
        "vanillanet_7": Variant(
            (512, 512, 1024, 2048, 4096, 4096), (1, 2, 2, 2, 1), Published(32.8, 6.9, 77.98, 84.16, 2.27, 0.47, 0.39)
        ),
        "vanillanet_8": Variant(_deep(2), _deep_strides(2), Published(37.1, 7.7, 79.13, 85.14, 2.56, 0.52, 0.45)),
        "vanillanet_9": Variant(_deep(3), _deep_strides(3), Published(41.4, 8.6, 79.87, 85.66, 2.91, 0.58, 0.49)),
        "vanillanet_10": Variant(_deep(4), _deep_strides(4), Published(45.7, 9.4, 80.57, 86.25, 3.24, 0.63, 0.53)),
        "vanillanet_11": Variant(_deep(5), _deep_strides(5), Published(50.0, 10.3, 81.08, 86.54, 3.59, 0.69, 0.58)),
        "vanillanet_12": Variant(
            _deep(6), _deep_strides(6), Published(54.3, 11.1, 81.55, 86.81, 3.82, 0.75, 0.62), crop_pct=0.95
        ),
        "vanillanet_13": Variant(
            _deep(7), _deep_strides(7), Published(58.6, 11.9, 82.05, 87.15, 4.26, 0.82, 0.67), crop_pct=0.95
        ),
        "vanillanet_13_x1_5": Variant(
            _deep(7, 768), _deep_strides(7), Published(127.8, 26.5, 82.53, 87.48, 7.83), crop_pct=0.95
        ),
        "vanillanet_13_x1_5_ada_pool": Variant(
            _deep(7, 768),
            _deep_strides(7),
            Published(127.8, 48.9, 83.11, 87.85, 9.72),
            stem_stride=3,
            stem_padding=1,
            pool_sizes=(0, 38, 19, 0, 0, 0, 0, 0, 0, 10, 0),
            crop_pct=0.95,
        ),
    }
)


@dataclass(frozen=True)
class NetworkSpec:
    """What one concrete network is: enough to build it and to say which tensors it has.

    Args:
        variant: Name in VARIANTS.
        dims: Channels after the stem, then after each stage (the variant's, times the width multiplier).
        act_num: n of the series activation, a (2n+1)x(2n+1) depthwise convolution.
        num_classes: Classes of the head.
        in_chans: Channels of the input.
        stem_stride: Stride of the stem, where it differs from the variant's.
    """

    variant: str
    dims: tuple[int, ...]
    act_num: int = 3
    num_classes: int = 1000
    in_chans: int = 3
    stem_stride: int = 4

    @property
    def width(self) -> float:
        """Width multiplier relative to the variant."""
        return self.dims[-1] / VARIANTS[self.variant].dims[-1]

    @property
    def fixed_size(self) -> bool:
        """Whether it takes images of one size only."""
        return VARIANTS[self.variant].pool_sizes is not None

    @property
    def label(self) -> str:
        """For people."""
        return self.variant

    def network_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of `VanillaNet`."""
        variant = VARIANTS[self.variant]
        return {
            "dims": self.dims,
            "strides": variant.strides,
            "act_num": self.act_num,
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "stem_stride": self.stem_stride,
            "stem_padding": variant.stem_padding,
            "pool_sizes": variant.pool_sizes,
        }

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dims": list(self.dims)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkSpec:
        return cls(**{**data, "dims": tuple(data["dims"])})


def get_variant(name: str) -> Variant:
    """Look a variant up.

    Raises:
        InputError: there is none of that name; the hint names the nearest.
    """
    if name not in VARIANTS:
        raise unknown_model(name, VARIANTS)
    return VARIANTS[name]


def unknown_model(name: str, known: Mapping[str, object] | list[str]) -> InputError:
    """The error for a name that is not in a table, with a did-you-mean."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`vexport models` lists the names"
    return InputError(f"unknown model '{name}'", hint=hint)


def scale_width(dims: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Multiply channel counts by a width multiplier, rounded to multiples of 8 (at least 8).

    Raises:
        InputError: `width` is not a positive number.
    """
    if not width > 0:
        raise InputError(f"width multiplier {width} is not positive", hint="1.0 is the published width")
    return tuple(max(8, round(dim * width / 8) * 8) for dim in dims)


def make_spec(name: str, *, width: float = 1.0, stem_stride: int | None = None, **changes: Any) -> NetworkSpec:
    """Describe a variant's network, at another width, n, class count or channel count where asked.

    Raises:
        InputError: the name is unknown or the width not positive.
    """
    variant = get_variant(name)
    spec = NetworkSpec(name, scale_width(variant.dims, width), stem_stride=stem_stride or variant.stem_stride)
    return replace(spec, **changes)


def published_preprocessing(name: str) -> Preprocessing:
    """Preprocessing of the published evaluation: ImageNet mean and std, bicubic, the variant's crop."""
    return Preprocessing(crop_pct=get_variant(name).crop_pct)
