"""Data sets: what a recipe's `data` names, as arrays and loaders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vexport.artifacts import Preprocessing
from vexport.deps import needs
from vexport.recipe import DataSection

# Of the digits' 8x8 pixels in [0, 1], over the whole set.
DIGITS_MEAN, DIGITS_STD = 0.305, 0.376


@dataclass(frozen=True)
class ImageData:
    """Images ready for the network, split once and for all.

    Args:
        train_images, held_out_images: (N, C, H, W), float32, normalised.
        train_labels, held_out_labels: (N,), int64.
        class_names: In the order of the labels.
        preprocessing: What was done to the images.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def held_out_arrays(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The held-out images (N, C, H, W) and labels (N,)."""
        return self.held_out_images.numpy(), self.held_out_labels.numpy()


def load_data(section: DataSection) -> ImageData:
    """Load and split a data set.

    Raises:
        MissingDependencyError: the package that ships it is not installed.
    """
    with needs("train"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    digits = load_digits()
    small = torch.from_numpy(np.asarray(digits.images, dtype=np.float32) / 16.0)[:, None]
    large = F.interpolate(small, (section.size, section.size), mode="bilinear", align_corners=False)
    images = (large - DIGITS_MEAN) / DIGITS_STD
    labels = torch.from_numpy(np.asarray(digits.target, dtype=np.int64))
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=section.held_out, random_state=section.split_seed, stratify=labels.numpy()
    )
    return ImageData(
        images[train],
        labels[train],
        images[held_out],
        labels[held_out],
        tuple(str(name) for name in digits.target_names),
        Preprocessing((1, section.size, section.size), (DIGITS_MEAN,), (DIGITS_STD,), 1.0, "bilinear"),
    )


class _Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images moved by up to `shift` pixels each way, black where nothing comes in."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int, black: float) -> None:
        self._padded = F.pad(images, (shift,) * 4, value=black)
        self._labels, self._shift, self._side = labels, shift, images.shape[-1]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = torch.randint(0, 2 * self._shift + 1, (2,)).tolist()
        image = self._padded[index, :, top : top + self._side, left : left + self._side]
        return image, self._labels[index]


def train_loader(
    data: ImageData, section: DataSection, batch_size: int, seed: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled, augmented training batches; the order depends on the seed alone."""
    black = -data.preprocessing.mean[0] / data.preprocessing.std[0]
    dataset = _Shifted(data.train_images, data.train_labels, section.shift, black)
    order = torch.Generator().manual_seed(seed)
    # The last batch is dropped: a BatchNorm over 1x1 maps cannot train on a single image.
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=order)


def held_out_loader(data: ImageData, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """The held-out images in order."""
    return DataLoader(TensorDataset(data.held_out_images, data.held_out_labels), batch_size)
