"""From a histogram of magnitudes to the largest magnitude that INT8 shall hold.

What is larger is clipped: fewer images with clipped values against finer steps for the rest. Three ways to choose,
besides the maximum itself:

- percentile: all but 0.01 % of the values fit.
- entropy: the least Kullback-Leibler divergence of what INT8 tells apart from what there was, as S. Migacz, "8-bit
  Inference with TensorRT" (GTC 2017) has it. As NVIDIA's pytorch-quantization does, the first bin counts as the
  second one: zeros, which every scale holds exactly and of which a Relu gives many, would outweigh all else. At most
  1 % of the values are clipped: where few lie near 0, all the others together in the last bin would be no divergence.
- mse: the least mean squared error of rounding and clipping, each bin at its centre (pytorch-quantization likewise).

All three choose among the edges of bins, and a bin is 1/4096 to 1/2048 of the largest value. So a single value of 1e5
standard deviations raises the percentile of normal ones from 3.9 to 32 of them. Entropy and MSE keep 128 bins at the
least, one for each magnitude that INT8 tells apart: no less than 1/32 of the largest value. Magnitudes below 1e-34 fill
fewer bins than that, so there these two are min-max; near 1e-38 there is one bin, and the percentile is min-max too.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from vexport.run.runner import Array

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
LEAST_KEPT = 0.99  # by entropy
LEVELS = 128  # magnitudes that INT8 tells apart, 0 among them
_BLOCK = 64


@dataclass(frozen=True)
class Histogram:
    """Magnitudes of one tensor.

    Args:
        counts: int64 (bins,), values with `width * i <= |x| < width * (i + 1)`; the last bin holds the largest one.
        width: Of a bin; 0 where all values are 0.
        largest: The largest magnitude, exactly.
    """

    counts: Array
    width: float
    largest: float

    @property
    def values(self) -> int:
        """How many there are."""
        return int(self.counts.sum())


def choose_threshold(histogram: Histogram, method: Method) -> float:
    """The largest magnitude that INT8 shall hold; never more than the largest that there was."""
    if not histogram.width:
        return histogram.largest
    return min(histogram.largest, float(_CHOOSE[method](histogram)))


def _minmax(histogram: Histogram) -> float:
    return histogram.largest


def _percentile(histogram: Histogram) -> float:
    """The upper edge of the bin that holds the percentile."""
    reached = np.cumsum(histogram.counts) >= histogram.values * (PERCENTILE / 100)
    return histogram.width * (int(reached.argmax()) + 1)


def _entropy(histogram: Histogram) -> float:
    bins = len(histogram.counts)
    if bins <= LEVELS:
        return histogram.largest
    divergences = entropy_divergences(histogram.counts)
    divergences[np.cumsum(histogram.counts)[LEVELS - 1 :] < LEAST_KEPT * histogram.values] = np.inf
    best = len(divergences) - 1 - int(divergences[::-1].argmin())  # of equal ones that which clips least
    kept = LEVELS + best
    return histogram.largest if kept == bins else histogram.width * kept


def entropy_divergences(counts: Array) -> Array:
    """KL(P || Q) for every number i of bins that are kept, from LEVELS to all.

    P is the first i bins, what is beyond counted to the last of them; Q spreads the sum of each of LEVELS groups of
    those i bins evenly over its non-empty bins. With c the counts, T = sum P, C = sum Q, and S_g, N_g the sum and the
    number of non-empty bins of group g, q_j = (S_g / N_g) / C, so

        KL = 1/T (sum_j P_j log P_j - sum_j P_j log(S_g(j) / N_g(j))) - log T + log C

    and the sums over j are differences of running sums: 128 terms for each i instead of i.

    Args:
        counts: (bins,).

    Returns:
        (bins - LEVELS + 1,); infinite where P has values in a bin in which Q has none.
    """
    c = np.array(counts, dtype=np.float64)
    c[0] = c[1]
    total = c.sum()
    sums, filled = (np.concatenate([[0.0], np.cumsum(part)]) for part in (c, c > 0))
    self_information = np.concatenate([[0.0], np.cumsum(_xlogx(c))])
    found = np.empty(len(c) - LEVELS + 1)
    groups = np.arange(LEVELS + 1)
    for index in range(len(found)):
        kept = LEVELS + index
        beyond = total - sums[kept]
        if total == 0 or (c[kept - 1] == 0 and beyond > 0):
            found[index] = np.inf
            continue
        edges = -(-groups * kept // LEVELS)  # group g holds the bins j with j * LEVELS // kept == g
        group_sums, group_filled = np.diff(sums[edges]), np.diff(filled[edges])
        # Differences of running sums of integers are exact; an empty group has no term.
        means = np.log(np.where(group_filled > 0, group_sums / np.maximum(group_filled, 1), 1.0))
        own = self_information[kept - 1] + _xlogx(np.array(c[kept - 1] + beyond))
        cross = (group_sums * means).sum() + beyond * means[-1]
        found[index] = (own - cross) / total - np.log(total) + np.log(sums[kept])
    return found


def _xlogx(values: Array) -> Array:
    result: Array = values * np.log(np.where(values > 0, values, 1.0))
    return result


def _mse(histogram: Histogram) -> float:
    bins = len(histogram.counts)
    if bins <= LEVELS:
        return histogram.largest
    edges = histogram.width * np.arange(LEVELS, bins + 1)
    edges[-1] = histogram.largest
    return float(edges[int(mse_errors(histogram, edges).argmin())])


def mse_errors(histogram: Histogram, thresholds: Array) -> Array:
    """Mean squared error of rounding to 127 steps up to each threshold and clipping what is beyond.

    Args:
        histogram: Each bin counts at its centre; the first one at 0 and the last one no further than the largest value.
        thresholds: (T,), positive.
    """
    centres = np.minimum((np.arange(len(histogram.counts)) + 0.5) * histogram.width, histogram.largest)
    centres[0] = 0.0  # zeros, which are exact, and what any scale rounds to 0
    weights = histogram.counts / max(1, histogram.values)
    errors = []
    for start in range(0, len(thresholds), _BLOCK):
        steps = (thresholds[start : start + _BLOCK] / (LEVELS - 1))[:, None]
        rounded = np.minimum(np.rint(centres / steps), LEVELS - 1) * steps
        errors.append(((rounded - centres) ** 2) @ weights)
    return np.concatenate(errors)


_CHOOSE = MappingProxyType({"minmax": _minmax, "percentile": _percentile, "entropy": _entropy, "mse": _mse})
