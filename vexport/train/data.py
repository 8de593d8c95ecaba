"""Training and held-out images of a recipe, already preprocessed, and the random moves of the training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from vexport.artifacts import Preprocessing
from vexport.deps import needs
from vexport.errors import RecipeError
from vexport.recipe import DataSection, Recipe

Loader = DataLoader[tuple[Tensor, ...]]

# Of all pixels of the 1797 digits, in the scale of [0, 1].
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3760


@dataclass(frozen=True)
class Data:
    """Images and labels in memory.

    Args:
        train_images: Preprocessed training images (N, C, H, W), float32.
        train_labels: Their classes, int64.
        held_out_images: Preprocessed held-out images (N, C, H, W), float32.
        held_out_labels: Their classes, int64.
        class_names: One per class.
        preprocessing: How an image becomes what stands above.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing


def load_data(section: DataSection) -> Data:
    """Load the data that a recipe names; the same section gives the same split everywhere.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        RecipeError: the split leaves one side without images.
    """
    with needs("train"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    held_out = split_by_class(digits.target, section.held_out, section.split_seed)
    if held_out.all() or not held_out.any():
        raise RecipeError(
            f"data.held_out {section.held_out:g} leaves no images on one side", hint="0.2 holds out a fifth"
        )
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # the digits have 17 levels, 0 to 16
    size = section.image_size
    images = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    images = (images - DIGITS_MEAN) / DIGITS_STD
    labels, mask = torch.from_numpy(digits.target).long(), torch.from_numpy(held_out)
    return Data(
        train_images=images[~mask],
        train_labels=labels[~mask],
        held_out_images=images[mask],
        held_out_labels=labels[mask],
        class_names=tuple(str(name) for name in digits.target_names),
        preprocessing=Preprocessing((1, size, size), (DIGITS_MEAN,), (DIGITS_STD,), 1.0, "bilinear"),
    )


def split_by_class(labels: npt.NDArray[np.int64], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark about `share` of each class as held out.

    numpy's RandomState is frozen: unlike a library's splitting function it draws the same numbers in every version.
    """
    draw, held_out = np.random.RandomState(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[draw.permutation(members)[: round(len(members) * share)]] = True
    return held_out


def held_out_arrays(recipe: Recipe) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The held-out images of a recipe, preprocessed (N, C, H, W), and their classes (N,).

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    data = load_data(recipe.data)
    return data.held_out_images.numpy(), data.held_out_labels.numpy()


class EpochShuffle(Sampler[int]):
    """An order that depends on the seed and the epoch alone, so that a resumed run sees what it would have seen.

    Args:
        count: Number of images.
        seed: Of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._epoch))
        return iter(torch.randperm(self._count, generator=generator).tolist())

    def __len__(self) -> int:
        return self._count


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch of a run."""
    return seed * 1_000_003 + epoch


def make_loaders(data: Data, batch_size: int, seed: int) -> tuple[Loader, Loader]:
    """Loaders of the training images, shuffled anew in each epoch, and of the held-out images.

    Raises:
        RecipeError: there are fewer training images than one batch.
    """
    if len(data.train_labels) < batch_size:
        raise RecipeError(
            f"batch_size {batch_size} is more than the {len(data.train_labels)} training images",
            hint="choose a smaller batch_size",
        )
    train = TensorDataset(data.train_images, data.train_labels)
    held_out = TensorDataset(data.held_out_images, data.held_out_labels)
    sampler = EpochShuffle(len(data.train_labels), seed)
    # With generators of their own: a loader draws a number when it starts, and a resumed run starts it at another time.
    return (
        DataLoader(train, batch_size, sampler=sampler, drop_last=True, generator=torch.Generator()),
        DataLoader(held_out, max(batch_size, 256), generator=torch.Generator()),
    )


class RandomAffine(nn.Module):
    """Turn, scale and shift each image of a batch at random.

    Args:
        rotate_deg: Largest angle either way.
        scale: Largest change of size, as a share.
        shift: Largest shift along each axis, as a share of the side.
        fill: Value of what comes into view: a black pixel, preprocessed.

    Shape:
        (N, C, H, W) to the same.
    """

    def __init__(self, *, rotate_deg: float, scale: float, shift: float, fill: float) -> None:
        super().__init__()
        self._angle, self._scale, self._shift, self._fill = np.deg2rad(rotate_deg).item(), scale, shift, fill

    def forward(self, x: Tensor) -> Tensor:
        angle, scale, dx, dy = (2 * torch.rand(4, len(x), device=x.device) - 1).unbind()
        angle, scale = angle * self._angle, 1 + scale * self._scale
        cos, sin = scale * angle.cos(), scale * angle.sin()
        # grid_sample's coordinates run from -1 to 1, so a side is 2 long.
        rows = (torch.stack([cos, -sin, 2 * self._shift * dx], 1), torch.stack([sin, cos, 2 * self._shift * dy], 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x - self._fill, grid, align_corners=False) + self._fill
