"""WebDataset shards: images in the order of the shards, shuffled in a buffer, by timm's reader.

What a stream cannot do: go on in the middle of an epoch, and show the same images on another number of devices or
workers. timm skips damaged images by itself and logs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from vexport.train.data import TrainingData
from vexport.train.images import Sample, is_mixed, make_mix, make_transform
from vexport.train.seeding import derive_seed, seed_cpu


class ImageStream(IterableDataset[Sample]):
    """The images of a reader, one after the other.

    Args:
        reader: timm's.
        transform: From a Pillow image to a tensor.
        seed: Of the random moves; None for images that are not moved.
    """

    def __init__(self, reader: Any, transform: Callable[[Image.Image], Tensor], seed: int | None) -> None:
        self.reader, self._transform, self._seed = reader, transform, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Before the workers of an epoch start."""
        self._epoch = epoch
        self.reader.set_epoch(epoch)

    def share(self, rank: int, world: int, workers: int) -> None:
        """Tell the reader which part of the shards is this device's."""
        self.reader.dist_rank, self.reader.dist_num_replicas = rank, world
        self.reader.set_loader_cfg(num_workers=workers)

    def __len__(self) -> int:
        return int(self.reader.num_samples)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        place = (self.reader.dist_rank, worker.id if worker else 0)
        for index, (image, label) in enumerate(self.reader):
            if self._seed is not None:
                seed_cpu(derive_seed(self._seed, "stream", self._epoch, *place, index))
            yield self._transform(image), int(label), []


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
        train=ImageStream(train, make_transform(section), recipe.seed),
        held_out=ImageStream(held_out, lambda image: torch.from_numpy(prepare(image, preprocessing)), None),
        class_names=tuple(str(number) for number in range(section.classes)),
        preprocessing=preprocessing,
        mix=make_mix(recipe, section.classes),
        mixes_labels=is_mixed(section),
        # timm seeds its shuffle buffer when a worker starts: without one it would go on from epoch to epoch.
        workers=max(1, section.workers),
        max_damaged=section.max_damaged,
        streamed=True,
    )


def _open(section: ImagesSection, split: str, recipe: Recipe, *, training: bool) -> Any:
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the package 'webdataset' is not installed", hint="pip install webdataset"
        ) from error
    root = str(section.source).partition("/")[2]
    try:
        return create_reader(
            "wds/", root=root, split=split, is_training=training, seed=recipe.seed, batch_size=recipe.batch_size
        )
    except (RuntimeError, OSError, KeyError, ValueError, TypeError) as error:
        raise RecipeError(
            f"the WebDataset shards in {root} cannot be read, split {split}",
            details=[str(error).splitlines()[0][:200]] if str(error) else (),
            hint="name the shards and the count, as in --set 'data.train_split=train-{0000..0099}.tar|100000', or put "
            "timm's _info.json beside them",
        ) from error
