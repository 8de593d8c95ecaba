"""The FP32 graph's answers to images that were held out, and how far another graph's answers are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vexport.run.runner import Array, Runner


@dataclass(frozen=True)
class HeldOut:
    """How far the answers to held-out images are apart.

    What all answers have in common says nothing of the images: the noise and `centred_cosine` are taken without it,
    after the mean of FP32's answers, class by class, has been taken off both.

    Args:
        images: How many.
        max_abs: Largest difference of two logits.
        max_rel: The same, relative to the largest logit of FP32.
        noise: Root mean square of the differences, relative to that of FP32's logits without their mean.
        cosine: Of all logits as one vector.
        centred_cosine: The same without the mean.
        top1_agreement: Share of the images to which both give the same class.
        finite: Whether no answer is NaN or infinite; where one is, the figures are NaN.
    """

    images: int
    max_abs: float
    max_rel: float
    noise: float
    cosine: float
    centred_cosine: float
    top1_agreement: float
    finite: bool

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantisation-noise ratio of the logits; infinite where there is no noise."""
        return sqnr_db(self.noise)

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a finite number, which JSON does not know."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def sqnr_db(noise: float) -> float:
    """Decibels of a signal of 1 over noise, both as root mean squares."""
    return -20 * math.log10(noise) if noise else math.inf


class Recorded:
    """The FP32 graph's answers to held-out batches, computed once.

    Args:
        runner: The FP32 graph.
        batches: What it will be asked for; (N, C, H, W) each.
    """

    def __init__(self, runner: Runner, batches: Sequence[Array]) -> None:
        from vexport.run.runner import answer

        self.batches = list(batches)
        self._answers = [answer(runner, batch).astype(np.float64) for batch in self.batches]

    @property
    def finite(self) -> bool:
        """Whether no answer is NaN or infinite."""
        return all(bool(np.isfinite(part).all()) for part in self._answers)

    @property
    def varies(self) -> bool:
        """Whether the answers to different images differ; of one image that cannot be told."""
        logits = np.concatenate(self._answers)
        return len(logits) < 2 or bool((logits != logits[:1]).any())

    @property
    def classes(self) -> set[int]:
        """The classes that are answered."""
        return {int(label) for part in self._answers for label in part.argmax(axis=1)}

    def compare(self, runner: Runner, limit: int | None = None) -> HeldOut:
        """How far another network's answers are apart, on all batches or on the first ones."""
        from vexport.run.runner import answer

        a = np.concatenate(self._answers[:limit])
        b = np.concatenate([answer(runner, batch) for batch in self.batches[:limit]]).astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            nan = math.nan
            return HeldOut(len(a), nan, nan, nan, nan, nan, nan, finite=False)
        # Of a single image nothing would be left.
        mean = a.mean(axis=0) if len(a) > 1 else np.zeros(a.shape[1])
        error, signal = a - b, a - mean
        return HeldOut(
            images=len(a),
            max_abs=float(np.abs(error).max()),
            max_rel=_ratio(float(np.abs(error).max()), float(np.abs(a).max())),
            noise=_ratio(float(np.linalg.norm(error)), float(np.linalg.norm(signal))),
            cosine=_cosine(a, b),
            centred_cosine=_cosine(signal, b - mean),
            top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
            finite=True,
        )


def damage(found: HeldOut) -> float:
    """One figure to rank by: the noise, which says more on few images than the largest error does."""
    return found.noise if found.finite else math.inf


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def _cosine(a: Array, b: Array) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float((a * b).sum()) / length if length else float(np.array_equal(a, b))
    return min(1.0, max(-1.0, cosine))
