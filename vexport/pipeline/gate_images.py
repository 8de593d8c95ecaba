"""Labelled images for the gate of INT8: none of them was calibrated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.errors import InputError
from vexport.pipeline.subject import Subject, label_folders
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.image_sets import ImageSet
    from vexport.run.labels import Sample

# With 64 a single image is 1.6 points.
MOST_GATE_IMAGES = 1024


@dataclass(frozen=True)
class Labelled:
    """Labelled images for the gate.

    Args:
        root: The folder that holds the class folders; None where there are no labelled images.
        samples: Images and labels, of at least two classes.
        how: How folders became classes, in words; where there are none, why.
        left_out: Images that were left out because they were calibrated on.
    """

    root: Path | None
    samples: tuple[Sample, ...]
    how: str
    left_out: int = 0

    def digest(self) -> str | None:
        """A hash of the images by name, label, size and time: a whole validation set would take long to read."""
        if self.root is None:
            return None
        rows: list[list[Any]] = []
        for sample in self.samples:
            told = (self.root / sample.path).stat()
            rows.append([sample.path, sample.label, told.st_size, told.st_mtime_ns])
        return hashlib.sha256(json.dumps([str(self.root.resolve()), rows]).encode()).hexdigest()


def find_labels(calib: Path, unmeasured: Sequence[str], subject: Subject) -> Labelled:
    """The labels of a calibration folder, where its subfolders are classes that the artifact knows by name.

    Args:
        calib: What was given to calibrate on.
        unmeasured: Its images, relative to it, that were not calibrated on.
        subject: The FP32 graph.
    """
    from vexport.run.imagenet import CLASSES, read_synsets
    from vexport.run.labels import Sample, label_by_name, read_class_folders, require_classes

    known = subject.facts.class_names or (read_synsets() if subject.classes == CLASSES else None)
    if not calib.is_dir():
        return _none(f"{calib} is no folder with one subfolder per class")
    if known is None or len(known) != subject.classes:
        return _none(f"{subject.path.name} does not say what its classes are called")
    try:
        folders = read_class_folders(calib)
        require_classes(folders)
        labelling = label_by_name(folders, known, artifact=subject.path.name)
    except InputError as error:  # images without labels will do
        return _none("; ".join((error.message, *error.details[:2])))
    if folders.root != calib:
        return _none(f"the class folders are in {folders.root}, not in {calib} itself")
    samples = [
        Sample(name, labelling.numbers[name.partition("/")[0]])
        for name in unmeasured
        if name.partition("/")[0] in labelling.numbers and "/" in name
    ]
    if len({sample.label for sample in samples}) < 2:
        return _none("too few images are left that were not calibrated on")
    count = min(MOST_GATE_IMAGES, len(samples))
    spread = tuple(samples[index * len(samples) // count] for index in range(count))
    return Labelled(calib, spread, labelling.how)


def read_labels(folder: Path, measured: dict[str, int | None], subject: Subject) -> Labelled:
    """Labelled images of a folder of their own, all but those that were calibrated on.

    Args:
        folder: With one folder of images per class.
        measured: SHA-256 of what was calibrated on, with the size in bytes where it is known.
        subject: The FP32 graph.

    Raises:
        InputError: there are no class folders, they do not fit, all are of one class, or every image was calibrated on.
    """
    from vexport.run.labels import read_class_folders, require_classes

    folders = read_class_folders(folder)
    require_classes(folders)
    labelling = label_folders(folders, [subject])
    known = _matcher(measured)
    samples = tuple(sample for sample in labelling.samples(folders) if not known(folders.root / sample.path))
    left_out = folders.images - len(samples)
    if len({sample.label for sample in samples}) < 2:
        raise InputError(
            f"nearly every image of {folder} was calibrated on: {len(samples)} of {folders.images} are left"
            if samples
            else f"every image of {folder} was calibrated on",
            hint="give --eval other images, or calibrate on fewer",
        )
    return Labelled(folders.root, samples, labelling.how, left_out)


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


def _none(why: str) -> Labelled:
    return Labelled(None, (), why)
