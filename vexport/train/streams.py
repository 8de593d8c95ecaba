"""WebDataset shards: images in the order of the shards, shuffled in a buffer, by timm's reader.

What a stream cannot do: go on in the middle of an epoch, and show the same images on another number of devices or
workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_reader  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vexport.artifacts import Preprocessing
from vexport.errors import MissingDependencyError, RecipeError
from vexport.recipe import ImagesSection, Recipe
from vexport.run.images import prepare
from vexport.train.data import UNREADABLE, Refusal, TrainingData
from vexport.train.images import Sample, is_mixed, make_mix, make_transform
from vexport.train.readers import BROKEN
from vexport.train.seeding import derive_seed, seed_cpu


class ImageStream(IterableDataset[Sample]):
    """The images of a reader, one after the other.

    Args:
        reader: timm's.
        transform: From a Pillow image to a tensor.
        classes: How many there are.
        size: C, H and W of an image.
        seed: Of the random moves; None for held-out images, which are not moved.
    """

    def __init__(
        self,
        reader: Any,
        transform: Callable[[Image.Image], Tensor],
        classes: int,
        size: tuple[int, int, int],
        seed: int | None = None,
    ) -> None:
        self.reader, self._transform, self._classes, self._seed = reader, transform, classes, seed
        self._size = size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Before the workers of an epoch start."""
        self._epoch = epoch
        self.reader.set_epoch(epoch)

    def share(self, rank: int, world: int, workers: int) -> None:
        """Tell the reader which part of the shards is this device's.

        Raises:
            RecipeError: there are fewer shards than processes that read them.
        """
        shards = len(self.reader.split_info.filenames)
        if shards < world * workers:
            raise RecipeError(
                f"{shards} shard{'s' if shards > 1 else ''} cannot be shared by {world} devices with {workers} "
                f"worker{'s' if workers > 1 else ''} each",
                hint="write more shards, or train on fewer devices",
            )
        self.reader.dist_rank, self.reader.dist_num_replicas = rank, world
        self.reader.set_loader_cfg(num_workers=workers)

    def __len__(self) -> int:
        return int(self.reader.num_samples)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        place = (self.reader.dist_rank, worker.id if worker else 0)
        broken = name_damaged(self.reader)
        moved = self._seed is not None
        found: list[str | Refusal] = []
        owed, good = 0, None  # a damaged training image is replaced by the last good one, moved anew
        for index, (image, label) in enumerate(self.reader):
            found, broken[:] = [*found, *broken], []
            if image is None:
                found.append(str(label))
                if not moved:
                    yield torch.zeros(self._size), UNREADABLE, found
                    found = []
                    continue
                owed += 1
                if good is None:
                    continue
                image, label = good
            else:
                owed += 1
                if not 0 <= label < self._classes:
                    message = f"an image has the class {label}, data.classes says {self._classes}"
                    hint = f"classes are numbers from 0 to {self._classes - 1}: correct data.classes"
                    # A class that there is: other processes may take a few steps more before the refusal is heard.
                    found, label = [*found, Refusal(message, hint)], 0
                good = image, label
            for turn in range(owed):
                if moved:
                    seed_cpu(derive_seed(str(self._seed), "stream", self._epoch, *place, index, turn))
                yield self._transform(image), int(label), found
                found = []
            owed = 0
        if not moved and (found or broken):  # a shard that breaks off at its end
            yield torch.zeros(self._size), UNREADABLE, [*found, *broken]


class _Named:
    """A decoding step that names what it cannot decode, where timm's own drops it.

    Args:
        decode: timm's: a sample of a shard to image and class.
    """

    def __init__(self, decode: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self._decode = decode

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._decode(sample)
        except (*BROKEN, LookupError):
            # An image and a class as timm's next step expects them.
            return {"jpg": None, "target": f"{sample.get('__url__', 'a shard')}: {sample.get('__key__', '?')}"}


def name_damaged(reader: Any) -> list[str]:
    """Let a reader of shards tell of what it cannot read, which timm skips: images as (None, name), shards by a list.

    Returns:
        Where broken shards are named as they are met.
    """
    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(": ".join(str(part) for part in (error.args[-1:] or ("a shard",))) + f" ({type(error).__name__})")
        return True

    if reader.ds is None:
        reader._lazy_init()
    for at, step in enumerate(reader.ds.pipeline):
        kw = getattr(step, "kw", {})
        if "handler" not in kw:
            continue
        decodes = step.args and isinstance(step.args[0], partial)
        args = (_Named(step.args[0]), *step.args[1:]) if decodes else step.args
        reader.ds.pipeline[at] = type(step)(step.f, *args, **{**kw, "handler": note})
    return broken


def open_streams(recipe: Recipe, section: ImagesSection, preprocessing: Preprocessing) -> TrainingData:
    """Open the shards of both splits.

    Raises:
        MissingDependencyError: webdataset is not installed.
        RecipeError: the shards are not there, or the recipe asks for what streams cannot do.
    """
    if section.classes is None:
        raise RecipeError(
            f"data.source {section.source} does not name its classes", hint="say how many: --set data.classes=1000"
        )
    if recipe.checkpoint.every_steps is not None:
        raise RecipeError(
            "checkpoint.every_steps needs images that can be found again; shards are read in one go",
            hint="leave it out: a checkpoint is written after each epoch",
        )
    train = _open(section, section.train_split, recipe, training=True)
    held_out = _open(section, section.held_out_split, recipe, training=False)
    return TrainingData(
        train=ImageStream(train, make_transform(section), section.classes, preprocessing.input_size, recipe.seed),
        held_out=ImageStream(
            held_out, partial(_prepare, preprocessing=preprocessing), section.classes, preprocessing.input_size
        ),
        class_names=tuple(str(number) for number in range(section.classes)),
        preprocessing=preprocessing,
        mix=make_mix(recipe, section.classes),
        mixes_labels=is_mixed(section),
        # timm seeds its shuffle buffer when a worker starts: without one it would go on from epoch to epoch.
        # A worker without a shard would leave its part of the epoch out.
        workers=max(1, min(section.workers, len(train.split_info.filenames))),
        max_damaged=section.max_damaged,
        streamed=True,
    )


def _prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    return torch.from_numpy(prepare(image, preprocessing))


def _open(section: ImagesSection, split: str, recipe: Recipe, *, training: bool) -> Any:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the package 'webdataset' is not installed", hint="pip install webdataset"
        ) from error
    root = str(section.source).partition("/")[2]
    try:
        reader = create_reader(
            "wds/", root=root, split=split, is_training=training, seed=recipe.seed, batch_size=recipe.batch_size
        )
    except (RuntimeError, OSError, KeyError, ValueError, TypeError) as error:
        raise RecipeError(
            f"the WebDataset shards in {root} cannot be read, split {split}",
            details=[str(error).splitlines()[0][:200]] if str(error) else (),
            hint="name the shards and the count, as in --set 'data.train_split=train-{0000..0099}.tar|100000', or put "
            "timm's _info.json beside them",
        ) from error
    missing = [name for name in reader.split_info.filenames if not _may_exist(root, name)]
    if missing:
        raise RecipeError(
            f"{len(missing)} of the WebDataset shards of split {split} are not in {root}",
            details=[f"missing: {', '.join(missing[:8])}"],
            hint="check the folder and the numbers of the shards",
        )
    if not reader.num_samples:
        raise RecipeError(
            f"how many images there are in split {split} is not said",
            hint="put the count behind the shards' names, as in 'val-{0000..0009}.tar|5000'",
        )
    return reader


def _may_exist(root: str, name: str) -> bool:
    """Whether a shard is on disk, or elsewhere: an address (https://...) or a command (pipe:...)."""
    place = os.path.join(root, name)  # noqa: PTH118 - the root may be an address
    return ":" in place or Path(place).is_file()
