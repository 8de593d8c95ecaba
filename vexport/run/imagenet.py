"""ImageNet's class folders and its reassessed labels, both as timm ships them.

ReaL ("Are we done with ImageNet?", 2020): each validation image has the set of classes that people see in it; some have
none. An answer is right if it is in the set; images without any are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vexport.errors import InputError
from vexport.run.accuracy import percent

CLASSES = 1000
VALIDATION_IMAGES = 50_000
_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_LISTED = 5


def read_synsets() -> tuple[str, ...]:
    """The names of ImageNet's class folders, `n01440764` and so on, in the order of its classes."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_label_name(number) for number in range(CLASSES))


def read_real_labels() -> Mapping[str, Sequence[int]]:
    """File name to classes."""
    from timm.data.real_labels import RealLabelsImagenet

    # The class wants one file per label and reads its answers in their order; some of them may be damaged or left out
    # here, so only its table is used.
    real: Any = RealLabelsImagenet
    labels: Mapping[str, Sequence[int]] = real(range(VALIDATION_IMAGES)).real_labels
    return labels


def require_real_names(files: Iterable[str], known: Mapping[str, Sequence[int]]) -> None:
    """Refuse files that are not ImageNet's validation images.

    Raises:
        InputError: some have other names.
    """
    other = [file for file in files if not _NAME.fullmatch(base := PurePosixPath(file).name) or base not in known]
    if other:
        raise InputError(
            f"{len(other)} image(s) have no ReaL labels: they are not named as ImageNet's validation images",
            details=[*other[:_LISTED], *(["..."] if len(other) > _LISTED else ())],
            hint="--real takes ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG, under these names",
        )


@dataclass(frozen=True)
class RealScore:
    """ReaL accuracy.

    Args:
        images: Images with ReaL labels.
        right: Images whose answer is among them.
        left_out: Images without ReaL labels.
    """

    images: int
    right: int
    left_out: int

    @property
    def real_percent(self) -> float | None:
        return percent(self.right, self.images)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "right": self.right,
            "left_out": self.left_out,
            "real_percent": self.real_percent,
        }


class RealTally:
    """Counts answers against the ReaL labels.

    Args:
        labels: As `read_real_labels` gives them.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]]) -> None:
        self._labels = labels
        self._images = self._right = self._left_out = 0

    def add(self, answers: Iterable[int], files: Iterable[str]) -> None:
        """Count the answers to these files."""
        for answer, file in zip(answers, files, strict=True):
            labels = self._labels[PurePosixPath(file).name]
            self._left_out += not labels
            self._images += bool(labels)
            self._right += answer in labels

    def score(self) -> RealScore:
        """What was counted so far."""
        return RealScore(self._images, self._right, self._left_out)
