"""Labelled images for the gate of INT8: none of them was calibrated on.

They come from a folder with one subfolder per class, or from a .npz of prepared `images` and their `labels`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.pipeline.subject import Subject, label_folders
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.image_sets import ImageSet
    from vexport.run.labels import ClassFolders, Labelling, Sample
    from vexport.run.runner import Array

# With 64 a single image is 1.6 points.
MOST_GATE_IMAGES = 1024


@dataclass(frozen=True)
class Labelled:
    """Labelled images for the gate.

    Args:
        source: The folder that holds the class folders, or the .npz; None where there are no labelled images.
        samples: Images and labels, of at least two classes.
        how: How folders became classes, in words; where there are none, why.
        load: Reads one, prepared, float32 (C, H, W).
        left_out: Images that were left out because they were calibrated on.
    """

    source: Path | None
    samples: tuple[Sample, ...]
    how: str
    load: Callable[[Sample], Array]
    left_out: int = 0

    def digest(self) -> str | None:
        """A hash of the images by name, label, size and time: a whole validation set would take long to read."""
        if self.source is None:
            return None
        rows: list[list[Any]] = []
        for sample in self.samples:
            try:
                told = (self.source / sample.path if self.source.is_dir() else self.source).stat()
                rows.append([sample.path, sample.label, told.st_size, told.st_mtime_ns])
            except OSError:  # a broken link, say: skipped where it is read
                rows.append([sample.path, sample.label, None, None])
        return hashlib.sha256(json.dumps([str(self.source.resolve()), rows]).encode()).hexdigest()


def find_labels(
    calib: Path, images: ImageSet, unmeasured: Sequence[str], subject: Subject, how: Preprocessing
) -> Labelled:
    """The labels of what is calibrated on, where it has any.

    Args:
        calib: What was given to calibrate on.
        images: What is in it.
        unmeasured: Those that were not calibrated on.
        subject: The FP32 graph.
        how: How images are prepared.
    """
    if calib.suffix.lower() == ".npz":
        return _of_array(calib, images, unmeasured, subject.classes)
    if not calib.is_dir():
        return _none(f"{calib} is no folder with one subfolder per class")
    try:
        folders, labelling = _known_folders(calib, subject)
    except InputError as error:  # images without labels will do
        return _none("; ".join((error.message, *error.details[:2])))
    if folders.root != calib:
        return _none(f"the class folders are in {folders.root}, not in {calib} itself")
    from vexport.run.labels import Sample

    samples = [
        Sample(name, labelling.numbers[name.partition("/")[0]])
        for name in unmeasured
        if name.partition("/")[0] in labelling.numbers and "/" in name
    ]
    return _spread(samples, calib, labelling.how, _reader(calib, how))


def _known_folders(folder: Path, subject: Subject) -> tuple[ClassFolders, Labelling]:
    """Class folders by the names that the artifact knows: by order would be a guess."""
    from vexport.run.imagenet import CLASSES, read_synsets
    from vexport.run.labels import label_by_name, read_class_folders, require_classes

    known = subject.facts.class_names or (read_synsets() if subject.classes == CLASSES else None)
    if known is None or len(known) != subject.classes:
        raise InputError(f"{subject.path.name} does not say what its classes are called", hint="give --eval")
    folders = read_class_folders(folder)
    require_classes(folders)
    return folders, label_by_name(folders, known, artifact=subject.path.name)


def _of_array(path: Path, images: ImageSet, names: Sequence[str], classes: int) -> Labelled:
    from vexport.run.labels import Sample

    try:
        labels = read_array_labels(path, len(images.names), classes)
    except InputError as error:
        return _none(error.message)
    numbers = dict(zip(images.names, labels, strict=True))
    samples = [Sample(name, numbers[name]) for name in names]
    return _spread(samples, path, "labels as they are in the array", _array_reader(images))


def _spread(
    samples: Sequence[Sample], source: Path, how: str, load: Callable[[Sample], Array], left_out: int = 0
) -> Labelled:
    """Of many samples some, spread over all."""
    if len({sample.label for sample in samples}) < 2:
        return _none("too few labelled images are left that were not calibrated on")
    count = min(MOST_GATE_IMAGES, len(samples))
    chosen = tuple(samples[index * len(samples) // count] for index in range(count))
    return Labelled(source, chosen, how, load, left_out)


def read_labels(
    source: Path, measured: dict[str, int | None], subject: Subject, how: Preprocessing, stack: ExitStack
) -> Labelled:
    """Labelled images of their own, all but those that were calibrated on.

    Args:
        source: A folder with one folder of images per class, or a .npz of `images` and `labels`.
        measured: SHA-256 of what was calibrated on, with the size in bytes where it is known.
        subject: The FP32 graph.
        how: How images are prepared.
        stack: Closes what is opened.

    Raises:
        InputError: there are no labels, they do not fit, all are of one class, or every image was calibrated on.
    """
    from vexport.run.labels import Sample, read_class_folders, require_classes

    samples: tuple[Sample, ...]
    if source.suffix.lower() == ".npz":
        from vexport.run.image_sets import open_images

        images = stack.enter_context(open_images(source, how))
        labels = read_array_labels(source, len(images.names), subject.classes)
        samples = tuple(
            Sample(name, label)
            for name, label in zip(images.names, labels, strict=True)
            if images.sha256(name) not in measured
        )
        root, words, total = source, "labels as they are in the array", len(images.names)
        load = _array_reader(images)
    else:
        folders = read_class_folders(source)
        require_classes(folders)
        labelling = label_folders(folders, [subject])
        known = _matcher(measured)
        samples = tuple(sample for sample in labelling.samples(folders) if not known(folders.root / sample.path))
        root, words, total, load = folders.root, labelling.how, folders.images, _reader(folders.root, how)
    if len({sample.label for sample in samples}) < 2:
        raise InputError(
            f"the {len(samples)} of {total} images of {source} that were not calibrated on are of one class"
            if samples
            else f"every image of {source} was calibrated on",
            hint="give --eval other images, or calibrate on fewer",
        )
    return Labelled(root, samples, words, load, total - len(samples))


def read_array_labels(path: Path, images: int, classes: int) -> list[int]:
    """The array `labels` (N,) of a .npz.

    Raises:
        InputError: there is none, or it is not one class number per image.
    """
    from vexport.run.image_sets import DAMAGED_ARRAY

    try:
        with np.load(path, allow_pickle=False) as stored:
            labels = stored.get("labels")
    except DAMAGED_ARRAY as error:
        raise InputError(f"{path} is not a whole .npz", details=[str(error)[:200]], hint="save it again") from error
    if labels is None:
        raise InputError(f"{path} holds no `labels`", hint="np.savez(file, images=..., labels=...)")
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"the labels of {path} are {labels.dtype} {labels.shape}, not {images} class numbers",
            hint="save one integer for each image",
        )
    if images and (labels.min() < 0 or labels.max() >= classes):
        raise InputError(
            f"the labels of {path} go from {labels.min()} to {labels.max()}, "
            f"the network has classes 0 to {classes - 1}",
            hint="save the class numbers that the network was trained with",
        )
    return [int(label) for label in labels]


def measured_images(calib: Path, images: ImageSet, entries: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """SHA-256 and, in a folder, size of the images that are calibrated on."""
    found: dict[str, int | None] = {}
    for entry in entries:
        if entry["part"] == "calibration" and entry["sha256"] is not None:
            in_folder = images.kind == "folder"
            found[entry["sha256"]] = (calib / entry["name"]).stat().st_size if in_folder else None
    return found


def _matcher(measured: dict[str, int | None]) -> Callable[[Path], bool]:
    """Whether a file is one of these, by its content; only files of such a size are read."""
    sizes = set(measured.values())

    def is_known(path: Path) -> bool:
        try:
            return (None in sizes or path.stat().st_size in sizes) and hash_file(path) in measured
        except OSError:  # unreadable ones are counted where they are read
            return False

    return is_known


def _reader(root: Path, how: Preprocessing) -> Callable[[Sample], Array]:
    from vexport.run.images import load_image

    return lambda sample: load_image(root / sample.path, how)


def _array_reader(images: ImageSet) -> Callable[[Sample], Array]:
    return lambda sample: images.load(sample.path)


def _none(why: str) -> Labelled:
    def load(sample: Sample) -> Array:
        raise AssertionError("there are no samples")

    return Labelled(None, (), why, load)
