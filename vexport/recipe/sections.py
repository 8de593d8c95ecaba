"""What a recipe can say: one class per section, with the bounds of each field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: object) -> object:
    # Python counts True as 1, and YAML reads `yes` and `on` as True.
    if isinstance(value, bool):
        raise ValueError(f"should be a number, not {str(value).lower()}")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Share = Annotated[Float, Field(ge=0, le=1)]
Range = tuple[Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)]]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Section(BaseModel):
    """Fields that must be named right and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkSection(Section):
    """Which network: a variant, at another width, n or stem stride where wanted; the data give classes and channels.

    For ablations, each of the paper's `techniques` can be left out, `shortcut` adds each stage's input before or after
    its activation, and `model` may also be `alexnet` or `resnet50`.

    `init` draws the convolutions' first weights: as the training code does (truncated normal of 0.02, which suits wide
    layers), or by fan-in, which suits narrow ones too.

    `init_from` names a checkpoint in training form to start from, as a path, or as another recipe whose best
    checkpoint is in the workspace.
    """

    model: str
    width: Annotated[Float, Field(gt=0)] = 1.0
    act_num: Annotated[Int, Field(ge=0)] = 3
    drop_rate: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    stem_stride: Annotated[Int, Field(ge=1, le=8)] | None = None
    techniques: Literal["none", "deep", "series", "both"] = "both"
    shortcut: Literal["none", "before", "after"] = "none"
    init: Literal["published", "lecun_normal"] = "published"
    init_from: str | None = None


class DeepTrainingSection(Section):
    """The slope's ramp from 0 to 1 over `decay_epochs` (0: none, the slope is 1 throughout), then held."""

    decay_epochs: Annotated[Float, Field(ge=0)] = 100.0
    decay: Literal["linear", "cosine"] = "linear"
    per: Literal["step", "epoch"] = "epoch"


class AffineSection(Section):
    """Random affine moves of the training images: degrees, and shares of the size and of the side."""

    rotate_deg: Annotated[Float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    shift: Share = 0.0


class DigitsSection(Section):
    """scikit-learn's digits: which share is held out, from which seed, and the side they are enlarged to."""

    name: Literal["digits"]
    held_out: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    image_size: Annotated[Int, Field(ge=8, le=256)] = 32
    augment: AffineSection = AffineSection()


class AugmentSection(Section):
    """What happens to training images, by timm.

    `scale` and `ratio` bound the area and the shape of a random crop; `auto_augment` is timm's policy string; mixup
    and cutmix are the parameters of their beta distributions (0: none).
    """

    scale: Range = (0.08, 1.0)
    ratio: Range = (0.75, 1.3333333)
    flip: Share = 0.5
    color_jitter: Annotated[Float, Field(ge=0)] = 0.0
    auto_augment: str | None = None
    random_erasing: Share = 0.0
    mixup: Annotated[Float, Field(ge=0)] = 0.0
    cutmix: Annotated[Float, Field(ge=0)] = 0.0
    mix_prob: Share = 1.0
    mix_switch: Share = 0.5


class ImagesSection(Section):
    """Labelled images that timm can read: a folder of class folders, tar files, WebDataset shards, Hugging Face sets.

    `source` is a folder that holds the two splits, or timm's name with the kind in front (`wds//data/shards`,
    `hfds/owner/name`); `classes` counts them where the source does not name them; mean, std, crop_pct and
    interpolation make the preprocessing that the checkpoint carries.
    """

    name: Literal["images"]
    source: str | None = None
    train_split: str = "train"
    held_out_split: str = "val"
    image_size: Annotated[Int, Field(ge=8, le=2048)] = 224
    mean: tuple[Share, Share, Share] = IMAGENET_MEAN
    std: tuple[Share, Share, Share] = IMAGENET_STD
    crop_pct: Annotated[Float, Field(gt=0, le=1)] = 0.875
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    classes: Annotated[Int, Field(ge=2)] | None = None
    workers: Annotated[Int, Field(ge=0)] = 4
    max_damaged: Annotated[Int, Field(ge=0)] = 10
    augment: AugmentSection = AugmentSection()


class QatSection(Section):
    """Quantisation-aware training: the deployed form, with INT8 rounding in every step.

    `start_from` names a deployed checkpoint, as a path, or as another recipe whose best checkpoint was fused into the
    workspace. `images` training images are measured before the first step; by `method` their activations give the
    ranges that INT8 holds from then on.
    """

    start_from: str
    images: Annotated[Int, Field(ge=1)] = 512
    method: Literal["minmax", "percentile", "entropy", "mse"] = "mse"


class OptimizerSection(Section):
    """Optimiser; one-dimensional tensors and biases get no weight decay.

    `eps` None is timm's own; `layer_decay` lowers the learning rate by this factor from each stage to the one before
    it; `clip_norm` bounds the gradient's norm.
    """

    name: Literal["adamw", "lamb", "sgd"] = "lamb"
    lr: Annotated[Float, Field(gt=0)]
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Annotated[Float, Field(gt=0)] | None = None
    layer_decay: Annotated[Float, Field(gt=0, le=1)] | None = None
    clip_norm: Annotated[Float, Field(gt=0)] | None = None


class ScheduleSection(Section):
    """Learning rate: linear warm-up, then half a cosine down to `min_lr`."""

    warmup_epochs: Annotated[Float, Field(ge=0)] = 5.0
    min_lr: Annotated[Float, Field(ge=0)] = 0.0


class LossSection(Section):
    """Cross-entropy, or the paper's binary cross-entropy per class."""

    name: Literal["bce", "ce"] = "bce"
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.1


class EmaSection(Section):
    """Moving average of the weights; with `warmup` its decay grows from 0, so that a short run averages its end."""

    decay: Annotated[Float, Field(ge=0, lt=1)] = 0.9999
    warmup: bool = True


class DistillSection(Section):
    """Soft targets of a teacher (Hinton et al., arXiv 1503.02531), mixed into the loss with `weight`.

    `teacher` is a timm model's name, with its pretrained weights unless `checkpoint` names a file of them; or the path
    of a VanillaNet checkpoint.
    """

    teacher: str
    checkpoint: str | None = None
    weight: Annotated[Float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[Float, Field(gt=0)] = 1.0


class ComputeSection(Section):
    """How the machine is used; the results depend on `micro_batch` and on precision, not on the number of devices.

    At most `micro_batch` images go through the network at once on a device: BatchNorm sees so many. Gradients are
    accumulated until `batch_size` images are through. None: all that fall to a device.
    """

    devices: Annotated[Int, Field(ge=1)] | Literal["auto"] = "auto"
    micro_batch: Annotated[Int, Field(ge=2)] | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    sync_bn: bool = False


class CheckpointSection(Section):
    """When the last checkpoint is written: after each epoch, and every so many steps where a number is given."""

    every_steps: Annotated[Int, Field(ge=1)] | None = None


class Recipe(Section):
    """Everything that a training run depends on.

    Args:
        name: Stem of the files that it writes; the recipe file's stem unless given.
        batch_size: Images per step of the optimiser, on all devices together.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    epochs: Annotated[Int, Field(ge=1)]
    batch_size: Annotated[Int, Field(ge=2)]  # BatchNorm after the head's pool needs two values per channel
    device: Literal["auto", "cpu", "cuda"] = "auto"
    network: NetworkSection
    deep_training: DeepTrainingSection = DeepTrainingSection()
    data: Annotated[DigitsSection | ImagesSection, Field(discriminator="name")]
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    loss: LossSection = LossSection()
    ema: EmaSection = EmaSection()
    distill: DistillSection | None = None
    qat: QatSection | None = None
    compute: ComputeSection = ComputeSection()
    checkpoint: CheckpointSection = CheckpointSection()

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain types, defaults included."""
        return self.model_dump(mode="json")
