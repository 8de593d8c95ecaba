"""Image folders, tar files, WebDataset shards and Hugging Face data sets, read by timm."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_reader, create_transform  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import Dataset

from vexport.artifacts import Preprocessing
from vexport.errors import MissingDependencyError, RecipeError
from vexport.recipe import ImagesSection, Recipe
from vexport.run.images import DAMAGED, prepare
from vexport.train.data import UNREADABLE, Batch, Refusal, TrainingData
from vexport.train.sampling import Pick
from vexport.train.seeding import derive_seed, seed_cpu

# timm's name of a source begins with one of these where it is neither a folder nor a tar file.
STREAMS = ("wds",)
KINDS = (*STREAMS, "hfds")
# How many readable neighbours are tried in place of a damaged image.
NEIGHBOURS = 64
# A tar file that ends too early; a row of a Hugging Face data set without an image.
BROKEN = (*DAMAGED, tarfile.TarError, AssertionError, TypeError)

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
        return self._transform(Image.new("RGB", (NEIGHBOURS, NEIGHBOURS))), UNREADABLE, [*damaged, refusal]


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
        return image.convert("RGB"), int(label)


def name_of(reader: Any, index: int) -> str:
    """The file of a sample, within its tar file where it is in one; the number where no file is known."""
    try:
        name = reader.filename(index, absolute=True)
    except BROKEN:
        name = None
    if hasattr(reader, "split"):  # a Hugging Face data set: its files are named by chance, if at all
        return f"image {index} of {reader.split}" + (f", {name}" if name else "")
    return os.path.join(reader.root, str(name))  # noqa: PTH118 - as it is where the name has the root already


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
        _require_labels(section, section.train_split, train, classes)
    _require_classes(section, classes)
    held_out = open_reader(section, section.held_out_split, classes)
    if kind == "hfds":
        _require_labels(section, section.held_out_split, held_out, classes)
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
    reader = _read(place)
    found = classes_of(reader)
    if classes is None:
        _require_folders(place, reader, found)
    elif found != list(classes):
        unknown = [name or "images in no folder" for name in found if name not in classes]
        if unknown:
            raise RecipeError(
                f"{place} has classes that the training images have not: {', '.join(unknown[:8])}",
                details=[f"{len(classes)} classes in training: {_listed(classes)}"],
                hint="both splits need the same classes",
            )
        # An index for every class that the training images have, so that one without held-out images is no shift.
        reader = _read(place, {name: at for at, name in enumerate(classes)})
    return reader


def _read(place: Path, class_map: Mapping[str, int] | None = None) -> Any:
    """timm's reader of a folder or a tar file."""
    try:
        return create_reader("", root=str(place), class_map=class_map)
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise RecipeError(
            f"there are no labelled images in {place}",
            details=[str(error).splitlines()[0]] if str(error) and not isinstance(error, ValueError) else (),
            hint="a folder per class, with images in it: .png, .jpg or .jpeg",
        ) from error


def _require_folders(place: Path, reader: Any, classes: Sequence[str]) -> None:
    """Every training image is in a folder, and every folder has one: else there are other classes than one sees."""
    if "" in classes:
        labels = [label for _, label in reader.samples] if place.is_dir() else reader.targets.tolist()
        stray = labels.index(classes.index(""))
        raise RecipeError(
            f"{place} has images that are in no class's folder",
            details=[f"as {name_of(reader, stray)}"],
            hint="a folder per class, and nothing beside them",
        )
    if not place.is_dir():
        return
    start = len(str(place)) + 1
    used = {path[start:].partition(os.sep)[0] for path, _ in reader.samples}
    folders = {entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(folders - used)
    if empty:
        raise RecipeError(
            f"{place} has folders without images: {_listed(empty)}",
            hint="remove them, or put .png, .jpg or .jpeg files there",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _open_hugging_face(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("the package 'datasets' is not installed", hint="pip install datasets") from error
    try:
        reader = create_reader(f"hfds/{name}", root=None, split=split)
    except (OSError, ValueError, LookupError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise RecipeError(
            f"the Hugging Face data set {name} cannot be read, split {split}",
            details=[str(error).splitlines()[0][:200]] if str(error) else (),
            hint="check its name, its split and the connection; a folder on disk works too: hfds//data/folder",
        ) from error
    # timm adds the column of images where there is none, without any.
    data = reader.dataset.data
    columns = [name for name in data.column_names if name != "image" or data.column(name).null_count < len(data)]
    missing = [column for column in ("image", "label") if column not in columns]
    if missing:
        raise RecipeError(
            f"the Hugging Face data set {name} has no column {' and no column '.join(missing)}, split {split}",
            details=[f"there is: {', '.join(columns)}"],
            hint="rename its columns: the images in `image`, their class numbers in `label`",
        )
    return reader


def _require_labels(section: ImagesSection, split: str, reader: Any, classes: Sequence[str]) -> None:
    """The class numbers of a Hugging Face data set are numbers of its classes: test splits often have -1 throughout."""
    if not classes:
        raise RecipeError(
            f"data.source {section.source} does not name its classes", hint="say how many: --set data.classes=1000"
        )
    odd = [label for label in reader.dataset.unique("label") if label not in range(len(classes))]
    if odd:
        raise RecipeError(
            f"data.source {section.source} has images without one of its {len(classes)} classes, split {split}",
            details=[f"labels: {_listed([str(label) for label in odd])}"],
            hint=f"labels are numbers from 0 to {len(classes) - 1}: choose another split, or correct data.classes",
        )


def classes_of(reader: Any) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    found: Mapping[Any, int] = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return [str(name) for name, _ in sorted(found.items(), key=lambda item: item[1])]


def _require_classes(section: ImagesSection, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise RecipeError(
            f"data.source {section.source} has one class, {classes[0]}",
            hint="there is nothing to tell apart: each class has a folder of its own",
        )
    if section.classes not in (None, len(classes)):
        raise RecipeError(
            f"data.source {section.source} has {len(classes)} classes, data.classes says {section.classes}",
            details=[f"classes: {_listed(classes)}"],
            hint="leave data.classes out where the data name their classes",
        )
