"""Image folders, tar files, WebDataset shards and Hugging Face data sets, read by timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_reader, create_transform  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import Dataset

from vexport.artifacts import Preprocessing
from vexport.errors import InputError, MissingDependencyError, RecipeError
from vexport.recipe import ImagesSection, Recipe
from vexport.run.images import DAMAGED, prepare
from vexport.train.data import UNREADABLE, Batch, TrainingData
from vexport.train.sampling import Pick
from vexport.train.seeding import derive_seed, seed_cpu

# timm's name of a source begins with one of these where it is neither a folder nor a tar file.
STREAMS = ("wds",)
KINDS = (*STREAMS, "hfds")
# How many readable neighbours are tried in place of a damaged image.
NEIGHBOURS = 64

Sample = tuple[Tensor, int, list[str]]


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
        damaged: list[str] = []
        for offset in range(NEIGHBOURS):
            index = (pick.number + offset) % len(self)
            try:
                image, label = _decode(self._reader, index)
            except DAMAGED:
                damaged.append(name_of(self._reader, index))
                continue
            seed_cpu(derive_seed(self._seed, "image", pick.epoch, pick.number))
            return self._transform(image), label, damaged
        raise InputError(
            f"{NEIGHBOURS} images in a row cannot be read", details=damaged[:8], hint="copy the data set again"
        )


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
        except DAMAGED:
            return torch.zeros(self._preprocessing.input_size), UNREADABLE, [name_of(self._reader, index)]
        return torch.from_numpy(prepare(image, self._preprocessing)), label, []


def _decode(reader: Any, index: int) -> tuple[Image.Image, int]:
    stream, label = reader[index]
    with stream, Image.open(stream) as image:
        return image.convert("RGB"), int(label)


def name_of(reader: Any, index: int) -> str:
    """The file of a sample, or its number where the reader knows no files."""
    try:
        return str(reader.filename(index, absolute=True))
    except (AssertionError, NotImplementedError, TypeError, KeyError):
        return f"image {index}"


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
    held_out = open_reader(section, section.held_out_split, classes)
    _require_classes(section, classes, train)
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
    """timm's random moves of one training image."""
    augment = section.augment
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


def open_reader(section: ImagesSection, split: str, classes: Sequence[str] | None = None) -> Any:
    """timm's reader of one split.

    Args:
        section: The data.
        split: Its name.
        classes: Names of the classes in their order, for every split but the first.

    Raises:
        MissingDependencyError: a Hugging Face data set without the package that reads it.
        RecipeError: it is not there, or cannot be read.
    """
    source = str(section.source)
    kind, _, rest = source.partition("/")
    if kind == "hfds":
        return _open_hugging_face(rest, split)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise RecipeError(
            f"data.source {source} {what}",
            hint=f"give a folder with {section.train_split}/ and {section.held_out_split}/, or timm's name of a data "
            f"set: {', '.join(f'{kind}/...' for kind in KINDS)}",
        )
    place = next((place for place in (folder / split, folder / f"{split}.tar") if place.exists()), None)
    if place is None:
        there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        raise RecipeError(
            f"there is no split '{split}' in {folder}",
            details=[f"there is: {', '.join(there[:12]) or 'nothing'}"],
            hint="name it with --set data.train_split=... or --set data.held_out_split=...",
        )
    if place.is_dir():
        _require_known_folders(place, classes)
    try:
        # An index for every class that the training images have, so that a class without held-out images is no shift.
        return create_reader("", root=str(place), class_map={name: at for at, name in enumerate(classes or ())} or None)
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError) as error:
        raise RecipeError(
            f"there are no labelled images in {place}",
            details=[str(error).splitlines()[0]] if str(error) else (),
            hint="a folder per class, with images in it",
        ) from error


def _require_known_folders(place: Path, classes: Sequence[str] | None) -> None:
    """timm leaves out folders that no class is called after; that would be images lost in silence."""
    if classes is None:
        return
    folders = {entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    unknown = sorted(folders - set(classes))
    if unknown:
        raise RecipeError(
            f"{place} has classes that the training images have not: {', '.join(unknown[:8])}",
            details=[f"{len(classes)} classes in training: {', '.join(list(classes)[:8])} ..."],
            hint="both splits need the same classes",
        )


def _open_hugging_face(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("the package 'datasets' is not installed", hint="pip install datasets") from error
    try:
        return create_reader(f"hfds/{name}", root=None, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RecipeError(
            f"the Hugging Face data set {name} cannot be read, split {split}",
            details=[str(error).splitlines()[0][:200]] if str(error) else (),
            hint="check its name, its split and the connection; a folder on disk works too: hfds//data/folder",
        ) from error


def classes_of(reader: Any) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    found: Mapping[Any, int] = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return [str(name) for name, _ in sorted(found.items(), key=lambda item: item[1])]


def _require_classes(section: ImagesSection, classes: Sequence[str], reader: Any) -> None:
    if len(classes) < 2:
        raise RecipeError(
            f"data.source {section.source} has {len(classes)} class{'es' if len(classes) != 1 else ''}"
            + (f", {classes[0]}" if classes else ""),
            hint="there is nothing to tell apart: each class has a folder of its own",
        )
    if len(reader) == 0:
        raise RecipeError(f"data.source {section.source} has no training images", hint="check the folder")
