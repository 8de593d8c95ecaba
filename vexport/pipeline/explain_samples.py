"""The images to explain: those that are named, or some that a network answers rightly and some that it does not."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vexport.errors import InputError
from vexport.pipeline.explain_network import Network
from vexport.pipeline.subject import label_folders

if TYPE_CHECKING:
    from vexport.run.labels import Sample
    from vexport.run.runner import Array

Group = Literal["given", "correct", "misclassified"]
BATCH = 32
MAX_DAMAGED = 10
MOST_DECODERS = 4


@dataclass(frozen=True)
class Chosen:
    """An image to explain.

    Args:
        path: The file.
        shown: What it is called in pictures: relative to the data folder, or as it was named.
        label: Its true class, where known.
        group: `given` by name, or what the first network makes of it.
    """

    path: Path
    shown: str
    label: int | None
    group: Group


@dataclass(frozen=True)
class Choice:
    """Images, and what is known of them.

    Args:
        images: In order: those that are right before those that are wrong.
        class_names: One per class, for people.
        looked_at: How many images the first network answered to find them; 0 for images given by name.
        labelling: How folders became classes, in words.
        notes: What the reader should know.
    """

    images: tuple[Chosen, ...]
    class_names: tuple[str, ...]
    looked_at: int
    labelling: str
    notes: tuple[str, ...] = ()


def take_given(images: Sequence[Path], networks: Sequence[Network]) -> Choice:
    """Images by name; a folder that is called as a class says what is true.

    Raises:
        InputError: one is no file.
    """
    from vexport.workspace import require_file

    for path in images:
        require_file(path, "picture")
    folders, shown = _known_names(networks)
    numbers = {name: number for number, name in enumerate(folders) if folders.count(name) == 1}
    # Only the folder itself: one further up, as `cat/photos/1.png`, may mean something else.
    found = tuple(Chosen(path, str(path), numbers.get(path.absolute().parent.name), "given") for path in images)
    return Choice(found, shown, 0, "the true class is the image's folder, where that is called as a class")


def take_samples(
    data: Path,
    networks: Sequence[Network],
    count: int,
    seed: int,
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> Choice:
    """Go through images in a random order until enough are right and enough are wrong by the first network.

    Args:
        data: Class folders, as `vexport eval` takes them.
        networks: The first decides; all have the same classes.
        count: How many of each.
        seed: Of the order.
        on_step: Told what is going on, and the share that is done.

    Raises:
        InputError: the folders do not fit the classes, or too many images are damaged.
    """
    import numpy as np

    from vexport.run.labels import read_class_folders

    on_step("listing images", None)
    folders = read_class_folders(data)
    labelling = label_folders(folders, [network.subject for network in networks])
    every = list(labelling.samples(folders))
    order = np.random.default_rng(seed).permutation(len(every))
    found: dict[Group, list[Chosen]] = {"correct": [], "misclassified": []}
    skipped: list[str] = []
    looked_at = 0
    for sample, answer in _answers(folders.root, (every[index] for index in order), networks[0], skipped):
        looked_at += 1
        group: Group = "correct" if answer == sample.label else "misclassified"
        if len(found[group]) < count:
            found[group].append(Chosen(folders.root / sample.path, sample.path, sample.label, group))
        missing = sum(count - len(one) for one in found.values())
        on_step(f"looking for samples: {looked_at} of {len(every)} images", 1 - missing / (2 * count))
        if not missing:
            break
    notes = [*folders.notes, *(f"skipped: {one}" for one in skipped)]
    for group, what in (("correct", "correctly"), ("misclassified", "wrongly")):
        there = len(found[group])
        if there < count:
            share = f"{there} image(s)" if there else "no image"
            notes.append(f"{networks[0].name} answers {share} {what} of all {looked_at}: {count} were wanted")
    _, shown = _known_names(networks, labelling.class_names)
    images = (*found["correct"], *found["misclassified"])
    return Choice(images, shown, looked_at, labelling.how, tuple(notes))


def resolve_class(text: str, class_names: Sequence[str]) -> int:
    """A class by its name or number.

    Raises:
        InputError: there is none.
    """
    if list(class_names).count(text) == 1:
        return class_names.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(class_names):
        return int(text)
    near = difflib.get_close_matches(text, class_names, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"give a class's name, or a number up to {len(class_names) - 1}"
    )
    raise InputError(f"there is no class {text}", hint=hint)


def _known_names(networks: Sequence[Network], folders: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How class folders are called, and how people call the classes."""
    from vexport.run.imagenet import CLASSES, read_synsets

    known = next((one.subject.facts.class_names for one in networks if one.subject.facts.class_names), None)
    classes = networks[0].subject.classes
    if known is not None:
        return known, known
    if classes == CLASSES and (not folders or tuple(folders) == read_synsets()):
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return read_synsets(), tuple(info.index_to_description(number).split(",")[0] for number in range(CLASSES))
    names = tuple(folders) or tuple(f"class {number}" for number in range(classes))
    return names, names


def _answers(
    root: Path, samples: Iterator[Sample], network: Network, skipped: list[str]
) -> Iterator[tuple[Sample, int]]:
    """Each image that can be read with the class that a network answers."""
    from vexport.run.images import load_image
    from vexport.run.stream import load_ahead

    def load(sample: Sample) -> Array:
        return load_image(root / sample.path, network.preprocessing)

    workers = min(MOST_DECODERS, os.cpu_count() or 1)
    part: list[tuple[Sample, Array]] = []
    for sample, image in load_ahead(samples, load, ahead=BATCH + workers, workers=workers):
        if isinstance(image, InputError):
            skipped.append(f"{sample.path}: {'; '.join(image.details) or image.message}")
            if len(skipped) > MAX_DAMAGED:
                raise InputError(
                    f"more than {MAX_DAMAGED} images cannot be read",
                    details=skipped,
                    hint="copy them again or remove them",
                )
            continue
        part.append((sample, image))
        if len(part) == BATCH:
            yield from _answer(part, network)
            part = []
    yield from _answer(part, network)


def _answer(part: Sequence[tuple[Sample, Array]], network: Network) -> Iterator[tuple[Sample, int]]:
    import numpy as np

    if part:
        logits = network.subject.runner(np.stack([image for _, image in part]))
        yield from zip((sample for sample, _ in part), logits.argmax(axis=1).tolist(), strict=True)
