"""scikit-learn's digits: 1797 images in memory, moved at random batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from vexport.artifacts import Preprocessing
from vexport.deps import needs
from vexport.errors import RecipeError
from vexport.recipe import DigitsSection
from vexport.train.data import Batch, TrainingData
from vexport.train.sampling import Pick

# Of all pixels of the 1797 digits, in the scale of [0, 1].
DIGITS_MEAN, DIGITS_STD = 0.3053, 0.3760


class InMemory(Dataset[Batch]):
    """Preprocessed images and their classes, handed out by the batch.

    Args:
        images: float32 (N, C, H, W).
        labels: int64 (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pick: Pick | int) -> Batch:
        return self.__getitems__([pick])

    def __getitems__(self, picks: Sequence[Pick | int]) -> Batch:
        numbers = torch.tensor([pick.number if isinstance(pick, Pick) else pick for pick in picks])
        return self.images[numbers], self.labels[numbers], []


def open_digits(section: DigitsSection) -> TrainingData:
    """Load and split the digits.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        RecipeError: the split leaves one side without images.
    """
    with needs("train"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    mask = split_by_class(digits.target, section.held_out, section.split_seed)
    if mask.all() or not mask.any():
        raise RecipeError(
            f"data.held_out {section.held_out:g} leaves no images on one side", hint="0.2 holds out a fifth"
        )
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # the digits have 17 levels, 0 to 16
    size, moves = section.image_size, section.augment
    images = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    images = (images - DIGITS_MEAN) / DIGITS_STD
    labels, held_out = torch.from_numpy(digits.target).long(), torch.from_numpy(mask)
    affine = RandomAffine(
        rotate_deg=moves.rotate_deg, scale=moves.scale, shift=moves.shift, fill=-DIGITS_MEAN / DIGITS_STD
    )
    return TrainingData(
        train=InMemory(images[~held_out], labels[~held_out]),
        held_out=InMemory(images[held_out], labels[held_out]),
        class_names=tuple(str(name) for name in digits.target_names),
        preprocessing=Preprocessing((1, size, size), (DIGITS_MEAN,), (DIGITS_STD,), 1.0, "bilinear"),
        mix=lambda images, labels: (affine(images), labels),
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


def held_out_arrays(section: DigitsSection) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The held-out digits, preprocessed (N, C, H, W), and their classes (N,).

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    held_out = open_digits(section).held_out
    assert isinstance(held_out, InMemory)
    return held_out.images.numpy(), held_out.labels.numpy()


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
