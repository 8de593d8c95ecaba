"""timm's readers of image folders, tar files and Hugging Face data sets, and what they must hold."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from timm.data import create_reader, get_img_extensions, set_img_extensions  # type: ignore[attr-defined]
from timm.utils.misc import natural_key

from vexport.errors import MissingDependencyError, RecipeError
from vexport.recipe import ImagesSection
from vexport.run.images import DAMAGED, SUFFIXES

# timm's name of a source begins with one of these where it is neither a folder nor a tar file.
STREAMS = ("wds",)
KINDS = (*STREAMS, "hfds")
# The class that timm gives to an image that is in no folder, and to one that is in no folder of a tar file.
OUTSIDE = ("", ".")
# What reading one image raises: a tar file that ends too early, a row of a Hugging Face data set without an image.
BROKEN = (*DAMAGED, tarfile.TarError, AssertionError, TypeError)


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
        unknown = ["images in no folder" if name in OUTSIDE else name for name in found if name not in classes]
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
        with _every_kind_of_image():
            # In a folder timm would take the names in the map for those of the innermost folders.
            reader = create_reader("", root=str(place), class_map=None if place.is_dir() else class_map)
        if place.is_dir():
            _label_by_first_folder(reader, place, class_map)
        return reader
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise RecipeError(
            f"there are no labelled images in {place}",
            details=[str(error).splitlines()[0]] if str(error) and not isinstance(error, ValueError) else (),
            hint="a folder per class, with images in it",
        ) from error


@contextmanager
def _every_kind_of_image() -> Iterator[None]:
    """timm takes .png and .jpg alone, and leaves others out in silence; what `eval` counts is trained on too."""
    before = get_img_extensions()  # type: ignore[no-untyped-call]
    set_img_extensions(sorted(SUFFIXES))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        set_img_extensions(before)  # type: ignore[no-untyped-call]


def _label_by_first_folder(reader: Any, place: Path, class_map: Mapping[str, int] | None) -> None:
    """Classes are the folders right below, in place, as `eval` has it; hidden ones and what NAS boxes add are none.

    timm takes the innermost folder: `cat/indoor` and `dog/indoor` would be one class.
    """
    start = len(str(place).rstrip(os.sep)) + 1
    found = []
    for path, _ in reader.samples:
        *folders, _file = PurePath(path[start:]).parts
        if not any(folder.startswith((".", "@")) for folder in folders):
            found.append((path, folders[0] if folders else OUTSIDE[0]))
    if not found:
        raise RuntimeError("every folder is hidden")
    numbers = class_map or {name: at for at, name in enumerate(sorted({name for _, name in found}, key=natural_key))}
    reader.samples = [(path, numbers[name]) for path, name in sorted(found) if name in numbers]
    reader.class_to_idx = dict(numbers)


def _require_folders(place: Path, reader: Any, classes: Sequence[str]) -> None:
    """Every training image is in a folder, and every folder has one: else there are other classes than one sees."""
    outside = next((name for name in OUTSIDE if name in classes), None)
    if outside is not None:
        labels = [label for _, label in reader.samples] if place.is_dir() else reader.targets.tolist()
        stray = labels.index(classes.index(outside))
        raise RecipeError(
            f"{place} has images that are in no class's folder",
            details=[f"as {name_of(reader, stray)}"],
            hint="a folder per class, and nothing beside them",
        )
    if not place.is_dir():
        return
    start = len(str(place)) + 1
    used = {path[start:].partition(os.sep)[0] for path, _ in reader.samples}
    folders = {entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith((".", "@"))}
    empty = sorted(folders - used)
    if empty:
        raise RecipeError(
            f"{place} has folders without images: {_listed(empty)}",
            hint="remove them, or put images there",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _open_hugging_face(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("the package 'datasets' is not installed", hint="pip install datasets") from error
    try:
        with _no_bars(datasets):
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


@contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Progress bars are for terminals."""
    shown = not datasets.are_progress_bars_disabled()
    if shown and not (sys.stderr and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def require_labels(section: ImagesSection, split: str, reader: Any, classes: Sequence[str]) -> None:
    """The labels of a Hugging Face data set are numbers of its classes; those of a test split are often -1.

    Raises:
        RecipeError: they are not, or nobody says how many classes there are.
    """
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


def require_classes(section: ImagesSection, classes: Sequence[str]) -> None:
    """There is something to tell apart, and as much as the recipe says.

    Raises:
        RecipeError: there is not.
    """
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


def name_of(reader: Any, index: int) -> str:
    """The file of a sample, within its tar file where it is in one; the number where no file is known."""
    try:
        name = reader.filename(index, absolute=True)
    except BROKEN:
        name = None
    if hasattr(reader, "split"):  # a Hugging Face data set: its files are named by chance, if at all
        return f"image {index} of {reader.split}" + (f", {name}" if name else "")
    return os.path.join(reader.root, str(name))  # noqa: PTH118 - as it is where the name has the root already
