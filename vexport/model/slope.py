"""The slope of deep training: how far the activation between two mergeable convolutions has become linear.

A'(x) = (1 - l) * relu(x) + l * x is a leaky ReLU of slope l (paper, section 3.1, equation 1). Only at l = 1 do the two
convolutions around it compose exactly.
"""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["linear", "cosine"]


def slope_at(progress: float, decay_epochs: float, decay: Decay = "linear") -> float:
    """Slope after `progress` epochs of a ramp that reaches 1 at `decay_epochs`.

    Args:
        progress: Epochs since the start; fractions for a ramp per step.
        decay_epochs: Length of the ramp in epochs; 0 means that there is none and the slope is 1.
        decay: `linear`, or half a cosine period.

    Returns:
        Slope in [0, 1].
    """
    if decay_epochs <= 0 or progress >= decay_epochs:
        return 1.0
    share = max(0.0, progress / decay_epochs)
    return share if decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * share))
