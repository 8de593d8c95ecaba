"""Which images a graph is calibrated on, and which are held out to compare the ways of doing so."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vexport.errors import InputError
from vexport.run.calibrate import ImageBatch
from vexport.run.image_sets import ImageSet
from vexport.run.runner import Array
from vexport.run.stream import load_ahead

HELD_OUT_SHARE = 8
MOST_HELD_OUT = 128
MAX_DAMAGED = 10
WORKERS = 2


@dataclass(frozen=True)
class Split:
    """Chosen images, by name.

    Args:
        calibration: Those whose activations are measured.
        held_out: Those on which answers are compared.
        unused: The others.
    """

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    unused: tuple[str, ...]


def split_images(names: Sequence[str], count: int, seed: int) -> Split:
    """Choose images, spread over the sorted names, so that class folders all get their share.

    The names are cut into as many stretches of the same length as images are wanted, and one of each is drawn. Of every
    eight of those one is drawn and held out, but no more than 128 in all.

    Args:
        names: Sorted.
        count: How many to choose; all where there are fewer.
        seed: The same seed chooses the same images.

    Raises:
        InputError: there are fewer than two, or `count` is below two.
    """
    if count < 2:
        raise InputError(f"--images {count} is too few", hint="one image is measured and one held out at the least")
    if len(names) < 2:
        raise InputError(
            f"there is {len(names)} image to calibrate on", hint="give at least two: one of them is held out"
        )
    count = min(count, len(names))
    draw = random.Random(seed)
    edges = [index * len(names) // count for index in range(count + 1)]
    chosen = [names[draw.randrange(first, last)] for first, last in pairwise(edges)]
    held = min(MOST_HELD_OUT, max(1, count // HELD_OUT_SHARE))
    # Drawn as well: where all images are taken, it is here that seeds differ.
    places = {draw.randrange(index * count // held, (index + 1) * count // held) for index in range(held)}
    taken = set(chosen)
    return Split(
        calibration=tuple(name for place, name in enumerate(chosen) if place not in places),
        held_out=tuple(name for place, name in enumerate(chosen) if place in places),
        unused=tuple(name for name in names if name not in taken),
    )


def describe_images(images: ImageSet, split: Split) -> list[dict[str, Any]]:
    """Name, hash and part of every chosen image, for the manifest; the hash is None where it cannot be read."""
    parts = (("calibration", split.calibration), ("held out", split.held_out))
    return [{"name": name, "sha256": images.sha256(name), "part": part} for part, names in parts for name in names]


def digest(entries: Sequence[dict[str, Any]]) -> str:
    """One hash of all that `describe_images` says."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


class Loader:
    """Loads images in batches, skips a few damaged ones, and looks whether there is anything to see on them.

    Args:
        images: Where they come from.
        batch: Images per batch.
        max_damaged: How many may be damaged.
    """

    def __init__(self, images: ImageSet, batch: int, max_damaged: int = MAX_DAMAGED) -> None:
        self._images, self._batch, self._max_damaged = images, batch, max_damaged
        self.skipped: dict[str, str] = {}

    def batches(self, names: Sequence[str], *, varied: bool = True) -> Iterator[ImageBatch]:
        """The images, read no further ahead than one batch.

        Args:
            names: Which ones.
            varied: Refuse images that are all the same or of one colour, once all have been read.

        Raises:
            InputError: too many are damaged, none is left, or they are not varied.
        """
        kept: list[str] = []
        loaded: list[Array] = []
        view = _View()
        for name, image in load_ahead(names, self._images.load, ahead=self._batch + WORKERS, workers=WORKERS):
            if isinstance(image, InputError):
                self._skip(name, image)
                continue
            view.look(image)
            kept.append(name)
            loaded.append(image)
            if len(kept) == self._batch:
                yield ImageBatch(tuple(kept), np.stack(loaded))
                kept, loaded = [], []
        if kept:
            yield ImageBatch(tuple(kept), np.stack(loaded))
        if not view.images:
            raise self._damaged("none of the images can be read")
        if varied:
            view.require_varied()

    def note_damaged(self, names: Sequence[str]) -> None:
        """Look again at images that could not be read before, and note in `skipped` those that still cannot.

        Raises:
            InputError: too many are damaged.
        """
        for name in names:
            try:
                self._images.load(name)
            except InputError as error:
                self._skip(name, error)

    def _skip(self, name: str, error: InputError) -> None:
        self.skipped[name] = "; ".join(error.details) or error.message
        if len(self.skipped) > self._max_damaged:
            raise self._damaged(f"more than {self._max_damaged} calibration images cannot be read")

    def _damaged(self, message: str) -> InputError:
        return InputError(
            message,
            details=[f"{name}: {reason}" for name, reason in self.skipped.items()],
            hint="copy them again or remove them",
        )


class _View:
    """Whether images differ, from each other and within themselves."""

    def __init__(self) -> None:
        self.images = 0
        self._first: Array | None = None
        self._same = self._plain = True

    def look(self, image: Array) -> None:
        self.images += 1
        if self._first is None:
            self._first = image.copy()
        elif self._same:
            self._same = bool(np.array_equal(image, self._first))
        if self._plain:
            flat = image.reshape(len(image), -1)
            self._plain = bool((flat == flat[:, :1]).all())

    def require_varied(self) -> None:
        """Raises: InputError: there is nothing to calibrate on."""
        if self._plain:
            raise InputError(
                f"each of the {self.images} images is of one colour: there is nothing to calibrate on",
                hint="give images as the network will see them",
            )
        if self._same and self.images > 1:
            raise InputError(
                f"all {self.images} images are the same: there is nothing to calibrate on",
                hint="give images as the network will see them",
            )
