"""Image folders, tar files, WebDataset shards and Hugging Face data sets, read by timm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_transform  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import Dataset

from vexport.artifacts import Preprocessing
from vexport.errors import RecipeError
from vexport.recipe import ImagesSection, Recipe
from vexport.run.images import prepare
from vexport.train.data import UNREADABLE, Batch, Refusal, TrainingData
from vexport.train.readers import BROKEN, STREAMS, classes_of, name_of, open_reader, require_classes, require_labels
from vexport.train.sampling import Pick
from vexport.train.seeding import derive_seed, seed_cpu

# How many readable neighbours are tried in place of a damaged image.
NEIGHBOURS = 64

Sample = tuple[Tensor, int, list[str | Refusal]]


class TrainImages(Dataset[Sample]):
    """Training images, each moved at random from a state of its own; a damaged one is replaced by the next.

    Args:
        reader: timm's reader: (file, class) by number.
        transform: From a Pillow image to a tensor.
        seed: Of the random moves.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self._reader, self._transform, self._seed = reader, transform, seed

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, pick: Pick) -> Sample:
        damaged: list[str | Refusal] = []
        for offset in range(min(NEIGHBOURS, len(self))):
            index = (pick.number + offset) % len(self)
            try:
                image, label = _decode(self._reader, index)
            except BROKEN:
                damaged.append(name_of(self._reader, index))
                continue
            seed_cpu(derive_seed(self._seed, "image", pick.epoch, pick.number))
            return self._transform(image), label, damaged
        refusal = Refusal(f"{len(damaged)} images in a row cannot be read", "copy the data set again")
        # A class that there is: other processes may take a few steps more before the refusal is heard.
        return self._transform(Image.new("RGB", (NEIGHBOURS, NEIGHBOURS))), 0, [*damaged, refusal]


class HeldOutImages(Dataset[Sample]):
    """Held-out images, prepared as they are for a deployed network; a damaged one has no class.

    Args:
        reader: timm's reader: (file, class) by number.
        preprocessing: How they are prepared.
    """

    def __init__(self, reader: Any, preprocessing: Preprocessing) -> None:
        self._reader, self._preprocessing = reader, preprocessing

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, label = _decode(self._reader, index)
        except BROKEN:
            return torch.zeros(self._preprocessing.input_size), UNREADABLE, [name_of(self._reader, index)]
        return torch.from_numpy(prepare(image, self._preprocessing)), label, []


def _decode(reader: Any, index: int) -> tuple[Image.Image, int]:
    stream, label = reader[index]
    with stream, Image.open(stream) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits per channel: Pillow would clip it to white")
        return image.convert("RGB"), int(label)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch."""
    images, labels, damaged = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), [name for names in damaged for name in names]


def open_images(recipe: Recipe) -> TrainingData:
    """Open both splits.

    Raises:
        MissingDependencyError: the package that reads this kind is not installed.
        RecipeError: a split is not there or cannot be read, or the two have not the same classes.
    """
    section = recipe.data
    assert isinstance(section, ImagesSection)
    if section.source is None:
        raise RecipeError(
            f"the recipe {recipe.name} does not say where its images are",
            hint="--data DIR: a folder with train/ and val/, each with a folder per class",
        )
    size = section.image_size
    preprocessing = Preprocessing((3, size, size), section.mean, section.std, section.crop_pct, section.interpolation)
    kind, _, _ = section.source.partition("/")
    if kind in STREAMS:
        from vexport.train.streams import open_streams

        return open_streams(recipe, section, preprocessing)
    train = open_reader(section, section.train_split)
    classes = classes_of(train)
    if kind == "hfds":
        classes = classes or [str(number) for number in range(section.classes or 0)]
        require_labels(section, section.train_split, train, classes)
    require_classes(section, classes)
    held_out = open_reader(section, section.held_out_split, classes)
    if kind == "hfds":
        require_labels(section, section.held_out_split, held_out, classes)
    return TrainingData(
        train=TrainImages(train, make_transform(section), recipe.seed),
        held_out=HeldOutImages(held_out, preprocessing),
        class_names=tuple(classes),
        preprocessing=preprocessing,
        mix=make_mix(recipe, len(classes)),
        mixes_labels=is_mixed(section),
        workers=section.workers,
        max_damaged=section.max_damaged,
    )


def make_transform(section: ImagesSection) -> Callable[[Image.Image], Tensor]:
    """timm's random moves of one training image.

    Raises:
        RecipeError: timm does not know the policy.
    """
    augment = section.augment
    try:
        made: Callable[[Image.Image], Tensor] = create_transform(
            (3, section.image_size, section.image_size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.flip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=augment.auto_augment,
            interpolation=section.interpolation,
            mean=section.mean,
            std=section.std,
            re_prob=augment.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise RecipeError(
            f"data.augment.auto_augment {augment.auto_augment} is no policy of timm's",
            details=[str(error)] if str(error) else (),
            hint="as in rand-m7-mstd0.5-inc1, augmix-m3 or original",
        ) from error
    return made


def is_mixed(section: ImagesSection) -> bool:
    """Whether images are mixed, and their classes with them."""
    return section.augment.mixup > 0 or section.augment.cutmix > 0


def make_mix(recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """timm's mixup and cutmix of a batch, or nothing."""
    section = recipe.data
    assert isinstance(section, ImagesSection)
    if not is_mixed(section):
        return lambda images, labels: (images, labels)
    augment = section.augment
    made: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch,
        label_smoothing=recipe.loss.label_smoothing,
        num_classes=classes,
    )
    return made
