"""What a recipe's data are: training images with their random moves, held-out images, and the preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from vexport.artifacts import Preprocessing
from vexport.recipe import Recipe


class Refusal(NamedTuple):
    """Why a run cannot go on, found while images are read.

    It travels beside the names of damaged files: an error raised in a worker process comes out as a bare traceback.
    """

    message: str
    hint: str


# Images float32 (N, C, H, W), classes int64 (N,), and the names of damaged files that were met on the way.
Batch = tuple[Tensor, Tensor, list[str | Refusal]]
# The class number of a held-out image that cannot be read.
UNREADABLE = -1


@dataclass(frozen=True)
class TrainingData:
    """The data of one run.

    Args:
        train: Asked for with lists of `Pick`s, or a stream of batches (`streams.py`).
        held_out: Asked for with numbers.
        class_names: One per class.
        preprocessing: How an image becomes what the network is given when it is held out, or deployed.
        mix: Random moves of a whole batch: images and classes to images and classes or soft targets.
        mixes_labels: Whether `mix` gives soft targets (N, classes), smoothed already.
        workers: Processes that read images.
        max_damaged: How many damaged images are skipped before it is an error.
        streamed: Whether the training images come as a stream.
    """

    train: Dataset[Any]
    held_out: Dataset[Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    mixes_labels: bool = False
    workers: int = 0
    max_damaged: int = 0
    streamed: bool = False


def load_data(recipe: Recipe) -> TrainingData:
    """Open the data that a recipe names; the same recipe gives the same split everywhere.

    Raises:
        MissingDependencyError: a package that reads them is not installed.
        RecipeError: they are not there, or there is nothing to learn from them.
    """
    if recipe.data.name == "digits":
        from vexport.train.digits import open_digits

        return open_digits(recipe.data)
    from vexport.train.images import open_images

    return open_images(recipe)
