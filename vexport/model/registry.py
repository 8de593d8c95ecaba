"""The variants in timm's registry: `timm.create_model("vanillanet_9", deploy=True)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from vexport.model.published import published_url
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import VARIANTS, make_spec, published_preprocessing


def _pretrained_cfg(name: str) -> dict[str, Any]:
    """timm's description of the published weights; `VanillaNet.load_pretrained` reads them."""
    preprocessing = published_preprocessing(name)
    adaptive = VARIANTS[name].pool_sizes is not None
    return {
        "url": published_url(name),
        "custom_load": True,
        "num_classes": 1000,
        "input_size": preprocessing.input_size,
        "fixed_input_size": adaptive,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "crop_pct": preprocessing.crop_pct,
        "interpolation": preprocessing.interpolation,
        "first_conv": ("stem.0", "stem1.0"),
        "classifier": ("cls.2", "cls1.2", "cls2.0"),
        "license": "mit",
        "paper_ids": "arXiv:2305.12972",
        "paper_name": "VanillaNet: the Power of Minimalism in Deep Learning",
    }


default_cfgs = generate_default_cfgs({name: _pretrained_cfg(name) for name in VARIANTS})


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False, *, width: float = 1.0, stem_stride: int | None = None, **kwargs: Any
    ) -> nn.Module:
        numbers = make_spec(name, width=width, stem_stride=stem_stride).network_kwargs()
        stages = tuple(range(len(numbers["strides"])))
        feature_cfg = {"feature_cls": "getter", "out_indices": stages}
        return build_model_with_cfg(
            VanillaNet, name, pretrained, feature_cfg=feature_cfg, kwargs_filter=("img_size",), **{**numbers, **kwargs}
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}; takes VanillaNet's keyword arguments, `width` and `stem_stride`."
    return create


for _name in VARIANTS:
    register_model(_entrypoint(_name))
