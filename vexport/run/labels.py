"""Class folders: which images there are, and which class of the network each folder is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vexport.errors import InputError
from vexport.run.images import is_image, list_images, require_folder

# Parts of a data set, in the order in which they are taken: none of them is a class.
HELD_OUT = ("val", "validation", "test")
SPLITS = frozenset({*HELD_OUT, "train", "training"})
LISTED = 20
LAYOUT = "the layout is DIR/<class>/<image>, one folder per class"


class Sample(NamedTuple):
    """One labelled image.

    Args:
        path: Relative to the folder that holds the class folders.
        label: Its class number.
    """

    path: str
    label: int


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a data set.

    Args:
        root: The folder that holds them.
        names: Their names, sorted; empty folders count.
        files: For each, its images relative to it, sorted: names only, so that a million of them fit.
        notes: What the reader should know of how they were found.
    """

    root: Path
    names: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(map(len, self.files))

    @property
    def filled(self) -> tuple[str, ...]:
        """Folders with images."""
        return tuple(name for name, files in zip(self.names, self.files, strict=True) if files)

    def choose(self, limit: int | None = None) -> Iterator[tuple[str, str]]:
        """Folder and image, in order; at most `limit`, spread evenly over them all, so that classes get their share."""
        count = min(limit or self.images, self.images)
        wanted = (index * self.images // count for index in range(count))
        following = next(wanted, None)
        every = ((name, file) for name, files in zip(self.names, self.files, strict=True) for file in files)
        for position, pair in enumerate(every):
            if position == following:
                yield pair
                following = next(wanted, None)


@dataclass(frozen=True)
class Labelling:
    """Which class each folder is.

    Args:
        class_names: One per class of the network.
        numbers: Folder to class number.
        how: How the two were brought together, in words.
    """

    class_names: tuple[str, ...]
    numbers: dict[str, int]
    how: str

    def samples(self, folders: ClassFolders, limit: int | None = None) -> Iterator[Sample]:
        """The chosen images with their labels."""
        for name, file in folders.choose(limit):
            yield Sample(f"{name}/{file}", self.numbers[name])


def read_class_folders(folder: Path) -> ClassFolders:
    """Find the class folders of a data set.

    Args:
        folder: The one that holds them, or one with `val`, `validation` or `test` that does. A class folder has images
            in it; those in its subfolders count too.

    Raises:
        InputError: there is no such folder, no class folder with images in it, or it cannot be read.
    """
    require_folder(folder)
    if _holds_classes(folder):
        return _read(folder)
    for part in HELD_OUT:
        if (folder / part).is_dir() and _holds_classes(folder / part):
            return _read(folder / part, f"images: {folder / part} (in {folder} itself there are no class folders)")
    loose = len(list_images(folder))
    if not loose:
        raise InputError(f"there is no image in {folder}", hint=LAYOUT)
    there = [f"folder: {name}" for name in _subfolders(folder)[:LISTED]]
    raise InputError(
        f"{folder} has no class folders with images in them",
        details=[f"{loose} image(s) lie elsewhere in it", *there],
        hint=LAYOUT,
    )


def label_by_name(
    folders: ClassFolders, class_names: Sequence[str], *, artifact: str, how: str = "folders are classes by name"
) -> Labelling:
    """Map folders to classes of the same name; classes without a folder have no images.

    Args:
        folders: What there is.
        class_names: The network's, in its order.
        artifact: What knows these names, for messages.
        how: In words.

    Raises:
        InputError: a folder is no class, or two classes have its name.
    """
    counted = Counter(class_names)
    unknown = [name for name in folders.names if name not in counted]
    if unknown:
        raise InputError(
            f"{len(unknown)} folder(s) of {folders.root} are no class of {artifact}",
            details=[f"no class: {shorten(unknown)}", f"its classes: {shorten(class_names)}"],
            hint="rename the folders, or move those away",
        )
    twice = [name for name in folders.names if counted[name] > 1]
    if twice:
        raise InputError(
            f"several classes of {artifact} have the same name",
            details=[f"the name of several: {shorten(twice)}"],
            hint="give the classes names of their own in the checkpoint",
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    return Labelling(tuple(class_names), {name: numbers[name] for name in folders.names}, how)


def label_by_order(folders: ClassFolders, classes: int, *, artifact: str) -> Labelling:
    """Take the sorted folders as classes 0 to N-1.

    Args:
        folders: What there is.
        classes: How many the network tells apart.
        artifact: Its name, for messages.

    Raises:
        InputError: their number is not the network's.
    """
    if len(folders.names) != classes:
        empty = [name for name in folders.names if name not in folders.filled]
        raise InputError(
            f"{folders.root} has {len(folders.names)} class folder(s), {artifact} tells {classes} classes apart",
            details=[f"folders: {shorten(folders.names)}", *([f"without images: {shorten(empty)}"] if empty else ())],
            hint=f"{artifact} does not say what its classes are called: give one folder for each, an empty one too, "
            "whose sorted names are in its order",
        )
    return Labelling(
        folders.names, {name: number for number, name in enumerate(folders.names)}, "sorted folders are the classes"
    )


def require_classes(folders: ClassFolders) -> None:
    """Refuse images of a single class.

    Raises:
        InputError: there is one class only.
    """
    if len(folders.filled) < 2:
        raise InputError(
            f"all images of {folders.root} are of one class: accuracy over one class says nothing",
            details=[f"with images: {shorten(folders.filled)}"],
            hint=LAYOUT,
        )


def shorten(names: Sequence[str]) -> str:
    """Names for one line."""
    more = f" ... ({len(names)} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _holds_classes(folder: Path) -> bool:
    """Whether a subfolder that is no part of a data set has images in it."""
    return any(name not in SPLITS and _has_images(folder / name) for name in _subfolders(folder))


def _has_images(folder: Path) -> bool:
    with _reading(folder), os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _subfolders(folder: Path) -> list[str]:
    with _reading(folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn a folder that may not be read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", hint="check its permissions") from error


def _read(root: Path, *notes: str) -> ClassFolders:
    names = _subfolders(root)
    files = []
    for name in names:
        paths = list_images(root / name)
        files.append(tuple(path.relative_to(root / name).as_posix() for path in paths))
    with _reading(root), os.scandir(root) as entries:
        loose = sum(is_image(entry.name) for entry in entries)
    if loose:
        notes = (*notes, f"{loose} image(s) lie beside the class folders of {root}: they belong to no class")
    return ClassFolders(root, tuple(names), tuple(files), notes)
