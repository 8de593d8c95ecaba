"""Parity: how far two networks' answers are apart.

The error is relative to the reference's largest logit, max|a - b| / max|a|: a bound that means the same whatever the
scale of the logits, and that a logit near zero cannot blow up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from vexport.errors import InputError
from vexport.run.runner import Array, times

TOLERANCES = MappingProxyType({"float64": 1e-9, "stored": 1e-6, "fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2})


@dataclass(frozen=True)
class Agreement:
    """How far the answers to some images are apart.

    Args:
        images: How many.
        max_abs: Largest difference of two logits.
        max_rel: The same, relative to the reference's largest logit.
        cosine: Of all logits as one vector.
        top1_agreement: Share of the images to which both give the same class.
        finite: Whether neither answer has a NaN or infinity; where one has, the figures above are NaN.
    """

    images: int
    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float
    finite: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a finite number, which JSON does not know."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Parity(Agreement):
    """An agreement and whether it is close enough.

    Args:
        tolerance: Bound of max_rel.
        least_top1: Bound of top1_agreement.
        passed: Whether both hold; never where a NaN or infinity occurs.
        batches: The same figures batch by batch.
    """

    tolerance: float
    least_top1: float
    passed: bool
    batches: tuple[Agreement, ...]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare(
    a: Callable[[Array], Array],
    b: Callable[[Array], Array],
    batches: Sequence[Array],
    tolerance: float,
    *,
    least_top1: float = 0.0,
) -> Parity:
    """Compare two networks on the same images, in float64.

    Args:
        a: The reference.
        b: What must agree with it.
        batches: Images (N, C, H, W), batch by batch.
        tolerance: Bound of max|a - b| / max|a|.
        least_top1: Bound of the share of images to which both give the same class. 0 asks nothing: within the
            tolerance only classes that are nearly tied can swap.

    Raises:
        InputError: there are no images, the bounds are no bounds, or the answers have different shapes.
    """
    if not batches:
        raise InputError("there are no images to compare on", hint="give at least one batch")
    if not (tolerance >= 0 and 0 <= least_top1 <= 1):
        raise InputError(
            f"tolerance {tolerance} with top-1 agreement {least_top1} is no bound",
            hint="the tolerance is 0 or more, the agreement a share",
        )
    sums = [
        _sums(_logits(a, batch, "first"), _logits(b, batch, "second"), index) for index, batch in enumerate(batches)
    ]
    total = _Sums.joined(sums).agreement()
    passed = total.finite and total.max_rel <= tolerance and total.top1_agreement >= least_top1
    return Parity(
        **asdict(total),
        tolerance=tolerance,
        least_top1=least_top1,
        passed=passed,
        batches=tuple(part.agreement() for part in sums),
    )


@dataclass(frozen=True)
class _Sums:
    """What adds up over batches, so that no logits need be kept."""

    images: int
    same_class: int
    max_abs: float
    max_reference: float
    dot: float
    norm_a: float
    norm_b: float
    finite: bool

    @classmethod
    def joined(cls, parts: Sequence[_Sums]) -> _Sums:
        return cls(
            images=sum(part.images for part in parts),
            same_class=sum(part.same_class for part in parts),
            max_abs=max(part.max_abs for part in parts),
            max_reference=max(part.max_reference for part in parts),
            dot=sum(part.dot for part in parts),
            norm_a=sum(part.norm_a for part in parts),
            norm_b=sum(part.norm_b for part in parts),
            finite=all(part.finite for part in parts),
        )

    def agreement(self) -> Agreement:
        if not self.finite:
            return Agreement(self.images, math.nan, math.nan, math.nan, math.nan, finite=False)
        rel = self.max_abs / self.max_reference if self.max_reference else (math.inf if self.max_abs else 0.0)
        length = math.sqrt(self.norm_a) * math.sqrt(self.norm_b)
        cosine = self.dot / length if length else float(self.max_abs == 0)
        share = self.same_class / self.images
        return Agreement(self.images, self.max_abs, rel, min(1.0, max(-1.0, cosine)), share, finite=True)


def _logits(network: Callable[[Array], Array], batch: Array, which: str) -> Array:
    logits = np.asarray(network(batch), dtype=np.float64)
    if logits.ndim != 2 or len(logits) != len(batch) or not logits.size:
        raise InputError(
            f"the {which} network answers {len(batch)} images with an output of {times(logits.shape)}",
            hint="parity needs class scores (images, classes)",
        )
    return logits


def _sums(a: Array, b: Array, index: int) -> _Sums:
    if a.shape != b.shape:
        raise InputError(
            f"the two networks answer with different shapes: {times(a.shape)} and {times(b.shape)} (batch {index})",
            hint="compare networks with the same classes",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        nan = math.nan
        return _Sums(len(a), 0, nan, nan, nan, nan, nan, finite=False)
    return _Sums(
        images=len(a),
        same_class=int((a.argmax(axis=1) == b.argmax(axis=1)).sum()),
        max_abs=float(np.abs(a - b).max()),
        max_reference=float(np.abs(a).max()),
        dot=float((a * b).sum()),
        norm_a=float((a * a).sum()),
        norm_b=float((b * b).sum()),
        finite=True,
    )


def random_batches(input_size: tuple[int, int, int], sizes: Sequence[int] = (1, 2, 5), seed: int = 0) -> list[Array]:
    """Seeded random images that differ as wholes, in several batch sizes.

    Args:
        input_size: C, H and W.
        sizes: N of each batch.
        seed: The same seed gives the same images.

    Returns:
        One float32 array (N, C, H, W) per size; no image occurs twice.
    """
    from vexport.model.randomize import image_like

    return [image_like(size, input_size, seed * 1000 + index).numpy() for index, size in enumerate(sizes)]
