"""VanillaNet, in the form that is trained and in the form that is deployed.

Source: arXiv 2305.12972, section 3 (deep training, series activation) and table 8 (architectures). Tensor names are
those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexport.errors import CheckpointError, InputError

BN_EPS = 1e-6
STEM_KERNEL = 4


class SeriesActivation(nn.Module):
    """ReLU followed by a depthwise (2n+1)x(2n+1) convolution: the series activation (paper, section 3.2, equation 6).

    Args:
        channels: C.
        act_num: n, the number of neighbours on each side that a series sums over.
        deploy: False gives a BatchNorm after the convolution, True the bias it folds into.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int, act_num: int = 3, *, deploy: bool = False) -> None:
        super().__init__()
        kernel = 2 * act_num + 1
        self.act_num = act_num
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(channels)) if deploy else None
        if not deploy:
            self.bn = nn.BatchNorm2d(channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.relu(x), self.weight, self.bias, padding=self.act_num, groups=self.weight.shape[0])
        return y if self.bias is not None else self.bn(y)


class Stage(nn.Module):
    """1x1 convolution, max-pool, series activation; two 1x1 convolutions around A' in training form.

    Args:
        dim: Channels in.
        dim_out: Channels out.
        stride: Max-pool kernel and stride; 1 means no pool.
        act_num: n of the series activation.
        pool_size: Output size of an adaptive max-pool in place of the ordinary one, 0 for the ordinary one.
        deploy: Which form.

    Shape:
        (N, dim, H, W) to (N, dim_out, H / stride, W / stride), or to pool_size.
    """

    def __init__(
        self, dim: int, dim_out: int, stride: int, *, act_num: int = 3, pool_size: int = 0, deploy: bool = False
    ) -> None:
        super().__init__()
        if deploy:
            self.conv = nn.Conv2d(dim, dim_out, 1)
        else:
            self.conv1 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim, eps=BN_EPS))
            self.conv2 = nn.Sequential(nn.Conv2d(dim, dim_out, 1), nn.BatchNorm2d(dim_out, eps=BN_EPS))
        if stride == 1:
            self.pool: nn.Module = nn.Identity()
        elif pool_size:
            self.pool = nn.AdaptiveMaxPool2d(pool_size)
        else:
            self.pool = nn.MaxPool2d(stride)
        self.act = SeriesActivation(dim_out, act_num, deploy=deploy)
        self.deploy = deploy

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        x = self.conv(x) if self.deploy else self.conv2(leaky(self.conv1(x), slope))
        return self.act(self.pool(x))  # type: ignore[no-any-return]


def leaky(x: Tensor, slope: Tensor) -> Tensor:
    """A'(x): x where positive, slope * x elsewhere. The slope is a tensor, so a compiled model follows its changes."""
    return F.prelu(x, slope.to(x.dtype).reshape(1))


class VanillaNet(nn.Module):
    """VanillaNet in training form, or in deployed form with `deploy=True`.

    The slope l of A' is a property of the network. While it is below 1 the state dict carries it as `slope`; at 1,
    where the network can be merged, it has exactly the published names, and a state dict without `slope` means 1.

    Args:
        dims: Channels after the stem, then after each stage.
        strides: Max-pool kernel and stride of each stage; 1 means no pool.
        act_num: n of the series activation.
        num_classes: Classes.
        in_chans: Channels of the input.
        drop_rate: Dropout before the head.
        stem_stride: Stride of the 4x4 stem.
        stem_padding: Its padding.
        pool_sizes: Adaptive max-pool output size per stage, 0 for an ordinary pool; None for none at all.
        deploy: Which form.

    Shape:
        (N, in_chans, H, W) to logits (N, num_classes).

    Raises:
        InputError: the numbers do not make a network, or (in forward) the image is too small for it.
    """

    def __init__(
        self,
        dims: Sequence[int],
        strides: Sequence[int],
        *,
        act_num: int = 3,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        stem_stride: int = 4,
        stem_padding: int = 0,
        pool_sizes: Sequence[int] | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        pool_sizes = tuple(pool_sizes) if pool_sizes is not None else (0,) * len(strides)
        _check_numbers(dims, strides, pool_sizes, act_num, num_classes, in_chans)
        self.dims, self.strides, self.pool_sizes = tuple(dims), tuple(strides), pool_sizes
        self.num_classes, self.in_chans, self.act_num, self.deploy = num_classes, in_chans, act_num, deploy
        self.stem_stride, self.stem_padding = stem_stride, stem_padding
        self.num_features = self.head_hidden_size = dims[-1]
        self.drop_rate = drop_rate
        stem = nn.Conv2d(in_chans, dims[0], STEM_KERNEL, stem_stride, stem_padding)
        if deploy:
            self.stem = nn.Sequential(stem, SeriesActivation(dims[0], act_num, deploy=True))
        else:
            self.stem1 = nn.Sequential(stem, nn.BatchNorm2d(dims[0], eps=BN_EPS))
            self.stem2 = nn.Sequential(
                nn.Conv2d(dims[0], dims[0], 1), nn.BatchNorm2d(dims[0], eps=BN_EPS), SeriesActivation(dims[0], act_num)
            )
        self.stages = nn.ModuleList(
            Stage(dims[i], dims[i + 1], stride, act_num=act_num, pool_size=pool_sizes[i], deploy=deploy)
            for i, stride in enumerate(strides)
        )
        self._make_head(num_classes)
        self.feature_info = self._describe_features()
        self.register_buffer("slope", torch.tensor(1.0), persistent=False)
        self.slope: Tensor
        self.apply(init_weights)

    def _make_head(self, num_classes: int) -> None:
        pool, drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(self.drop_rate)
        if self.deploy:
            self.cls = nn.Sequential(pool, drop, nn.Conv2d(self.dims[-1], num_classes, 1))
        else:
            first = nn.Conv2d(self.dims[-1], num_classes, 1)
            self.cls1 = nn.Sequential(pool, drop, first, nn.BatchNorm2d(num_classes, eps=BN_EPS))
            self.cls2 = nn.Sequential(nn.Conv2d(num_classes, num_classes, 1))

    def _describe_features(self) -> list[dict[str, Any]]:
        info, reduction = [], self.stem_stride
        for index, stride in enumerate(self.strides):
            reduction *= stride
            info.append({"num_chs": self.dims[index + 1], "reduction": reduction, "module": f"stages.{index}"})
        return info

    def set_slope(self, slope: float) -> None:
        """Set the slope of A' everywhere.

        Raises:
            InputError: it is not within 0 and 1.
        """
        if not 0.0 <= slope <= 1.0:
            raise InputError(f"slope {slope} is not within 0 and 1", hint="0 is a ReLU, 1 is the identity")
        self.slope.fill_(slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Input (N, in_chans, H, W) to the first feature map (N, dims[0], H', W')."""
        if self.deploy:
            return self.stem(x)  # type: ignore[no-any-return]
        return self.stem2(leaky(self.stem1(x), self.slope))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """Input to the last feature map (N, dims[-1], H', W')."""
        self.feature_sizes(x.shape[-2], x.shape[-1])
        x = self.forward_stem(x)
        for stage in self.stages:
            x = stage(x, self.slope)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last feature map to logits (N, num_classes), or to the pooled features (N, dims[-1])."""
        if pre_logits or self.num_classes == 0:
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.cls(x) if self.deploy else self.cls2(leaky(self.cls1(x), self.slope))
        return x.flatten(1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Feature maps by stage, with timm's signature.

        Args:
            x: (N, in_chans, H, W).
            indices: Stages to return: the last so many, or a list; None for all.
            norm: Ignored: there is no norm after the features.
            stop_early: Stop after the last stage asked for.
            output_fmt: Only `NCHW`.
            intermediates_only: Return only the list.

        Returns:
            The last feature map and the list of maps, or only the list.

        Raises:
            InputError: another format, or a stage that does not exist.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output format {output_fmt} is not known", hint="VanillaNet's feature maps are NCHW")
        depth = len(self.stages)
        wanted = (
            range(depth) if indices is None else range(depth - indices, depth) if isinstance(indices, int) else indices
        )
        if any(not -depth <= index < depth for index in wanted):
            raise InputError(f"no such stage in {list(wanted)}", hint=f"the stages are 0 to {depth - 1}")
        take = {index % depth for index in wanted}
        self.feature_sizes(x.shape[-2], x.shape[-1])
        maps, x = [], self.forward_stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > max(take):
                break
            x = stage(x, self.slope)
            if index in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def feature_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width after the stem, then after each stage.

        Raises:
            InputError: the image shrinks to nothing, or an adaptive pool would have to enlarge it.
        """
        sizes = [
            tuple((side + 2 * self.stem_padding - STEM_KERNEL) // self.stem_stride + 1 for side in (height, width))
        ]
        for index, (stride, target) in enumerate(zip(self.strides, self.pool_sizes, strict=True)):
            before = sizes[-1]
            if stride != 1 and target and min(before) < target:
                raise InputError(
                    f"an image of {height}x{width} is too small: stage {index} would pool "
                    f"{before[0]}x{before[1]} to {target}x{target}",
                    hint="this variant is made for 224x224; the plain vanillanet_13_x1_5 takes other sizes",
                )
            sizes.append((target, target) if stride != 1 and target else tuple(side // stride for side in before))
            if min(sizes[-1]) < 1:
                break
        if min(sizes[-1]) < 1:
            reduction = self.feature_info[-1]["reduction"]
            raise InputError(
                f"an image of {height}x{width} shrinks to nothing in this network",
                hint=f"it divides the sides by {reduction}: give at least {reduction}x{reduction}",
            )
        return [(int(h), int(w)) for h, w in sizes]

    def get_classifier(self) -> nn.Module:
        """The last layer, for timm."""
        return self.cls[2] if self.deploy else self.cls2[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head with another class count, for timm."""
        if global_pool not in (None, "avg"):
            raise InputError(f"global pool {global_pool} is not known", hint="VanillaNet pools by average")
        self.num_classes = num_classes
        if num_classes > 0:
            self._make_head(num_classes)
            for name in ("cls", "cls1", "cls2"):
                if hasattr(self, name):
                    getattr(self, name).apply(init_weights)

    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a published checkpoint, for timm; merges it where this network is in deployed form.

        Raises:
            CheckpointError: the file does not fit this network.
        """
        from pathlib import Path

        from vexport.model.checkpoint import load_checkpoint
        from vexport.model.fuse import merge_blocks, store
        from vexport.model.variants import NetworkSpec

        loaded = load_checkpoint(Path(checkpoint_path))
        if not isinstance(loaded.spec, NetworkSpec):
            raise CheckpointError(
                f"{checkpoint_path} is a {loaded.spec.label}, of an ablation", hint="vexport.load_network opens it"
            )
        tensors = loaded.tensors
        if self.deploy and loaded.form == "training":
            tensors = {k: v for _, part in merge_blocks(loaded.tensors, loaded.spec) for k, v in store(part).items()}
        self.load_state_dict(tensors)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: stem 0, stages.N is N + 1, the head last."""
        return {"stem": r"^stem[12]?\.", "blocks": [(r"^stages\.(\d+)", None), (r"^cls[12]?\.", (99999,))]}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.deploy and not self.slope.is_meta and float(self.slope) != 1.0:
            destination[prefix + "slope"] = self.slope if keep_vars else self.slope.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        slope = state_dict.get(prefix + "slope")
        unexpected: list[str] = args[3]
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.deploy:
            return
        if prefix + "slope" in unexpected:
            unexpected.remove(prefix + "slope")
        if not self.slope.is_meta:
            self.set_slope(float(slope) if slope is not None else 1.0)


def init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 for convolutions, zero biases: the training code's initialisation."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_lecun_normal(module: nn.Module) -> None:
    """Normal of variance 1 / fan-in for convolutions, zero biases (LeCun et al., Efficient BackProp, 1998, eq. 16).

    At the published widths the standard deviation is between 0.013 and 0.044 behind the stem, around the training
    code's 0.02; at an eighth of the width it is up to 0.125, and 0.3 in a head of ten classes.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_numbers(
    dims: Sequence[int],
    strides: Sequence[int],
    pool_sizes: Sequence[int],
    act_num: int,
    num_classes: int,
    in_chans: int,
) -> None:
    problems = []
    if not strides or len(dims) != len(strides) + 1 or len(pool_sizes) != len(strides):
        problems.append(
            f"{len(dims)} widths, {len(strides)} strides and {len(pool_sizes)} pool sizes: widths need one entry more"
        )
    if min(*dims, *strides, in_chans) < 1:
        problems.append("widths, strides and input channels must be at least 1")
    if act_num < 0 or num_classes < 0:
        problems.append("n of the series activation and the class count cannot be negative")
    if problems:
        raise InputError(
            "these numbers do not make a VanillaNet", details=problems, hint="vexport.VARIANTS shows the published ones"
        )
