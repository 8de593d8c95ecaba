"""Cross-layer equalisation: scales per channel, moved between neighbouring convolutions, exact in real arithmetic.

For a pair of convolutions (see `blocks`) with s_c != 0, and s_c > 0 where a Relu or max-pool lies between (Nagel et
al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721, section 4.1):

    W1'[c] = W1[c] / s_c        b1'[c] = b1[c] / s_c        x'[c] = x[c] / s_c        W2'[:, c] = W2[:, c] * s_c

A depthwise second convolution takes s_c on its kernel c instead of its column c. The function stays; the ranges change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from vexport.errors import ExportError, InputError
from vexport.graph.blocks import Pair, find_pairs
from vexport.graph.reference import Array, Float64, run_float64

Scales = Mapping[str, Float64]
LARGEST_SCALE = 1e6
ROUNDS = 20
SETTLED = 1e-3  # the rounds end when no scale changes by more than this
EXPONENTS = tuple(float(share) for share in np.linspace(0, 1, 21))  # tried for a dense second convolution
# Root mean square of a channel's activations over their largest. Measured between 0.14 and 0.44, the most after a
# pool; of 0.05 to 0.6 this gave the best INT8 answers, also because images that nobody measured go beyond the ranges.
RMS_SHARE = 0.4


def equalize_weights(model: onnx.ModelProto, scales: Scales) -> dict[str, Float64]:
    """The changed weights in float64, before any rounding.

    Args:
        model: An FP32 graph; not changed.
        scales: One array per pair, by its key; a pair that is not named stays as it is.

    Returns:
        Weights and biases by their names.

    Raises:
        InputError: scales of a pair that the graph does not have, of another shape, zero, not finite, or negative where
            a Relu or max-pool lies between.
    """
    pairs = {pair.key: pair for pair in find_pairs(model)}
    _require_scales(pairs, scales)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    changed: dict[str, Float64] = {}
    for key, given in scales.items():
        pair, scale = pairs[key], np.asarray(given, np.float64)
        for name in filter(None, (pair.first_weight, pair.first_bias, pair.second_weight)):
            if name not in changed:
                changed[name] = numpy_helper.to_array(tensors[name]).astype(np.float64)
        with np.errstate(over="ignore"):
            changed[pair.first_weight] /= _along(scale, changed[pair.first_weight], 0)
            if pair.first_bias:
                changed[pair.first_bias] /= scale
            changed[pair.second_weight] *= _along(scale, changed[pair.second_weight], 0 if pair.depthwise else 1)
    return changed


def equalize(model: onnx.ModelProto, scales: Scales) -> onnx.ModelProto:
    """The same function with rescaled channels: computed in float64, stored in FP32.

    Args:
        model: An FP32 graph; not changed.
        scales: As `equalize_weights` takes them.

    Returns:
        A graph with the same names, structure and metadata.

    Raises:
        InputError: as `equalize_weights` does.
        ExportError: a weight would leave FP32.
    """
    changed = equalize_weights(model, scales)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name not in changed:
            continue
        with np.errstate(over="ignore"):
            rounded = changed[tensor.name].astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ExportError(
                f"{tensor.name} does not fit into FP32 after equalisation",
                hint="the scales are too far from 1, or the weight is not finite before",
            )
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return result


def equalization_error(model: onnx.ModelProto, scales: Scales, images: Array) -> float:
    """What the scales change in float64, which is rounding alone when they are exact.

    Args:
        model: An FP32 graph with one input.
        scales: As `equalize_weights` takes them.
        images: (N, C, H, W).

    Returns:
        The largest max|f' - f| / max|f| among the outputs; infinite where one is not finite.
    """
    before = run_float64(model, images)
    after = run_float64(model, images, equalize_weights(model, scales))
    errors = [
        float(np.abs(after[name] - values).max() / max(np.abs(values).max(), np.finfo(np.float64).tiny))
        for name, values in before.items()
    ]
    return max((error if np.isfinite(error) else float("inf") for error in errors), default=0.0)


def choose_scales(model: onnx.ModelProto, act_ranges: Mapping[str, Float64] | None = None) -> dict[str, Float64]:
    """Scales that make the graph lose least when it is quantised.

    Without activation ranges: the square-root rule s_c = sqrt(r1_c / r2_c) on the largest weights r1_c of row c and
    r2_c of column (or kernel) c, which gives both the range sqrt(r1_c * r2_c) (Nagel et al.). Pairs share weights, so
    it goes round all of them until nothing changes. This is the rule for one weight grid per tensor; with a grid per
    row it can cost more than it gains, because it spreads the activations.

    With activation ranges a_c, for INT8 activations on one grid per tensor and INT8 weights on one grid per output
    channel (the axis of the first convolution's rows, and of depthwise kernels):

    - Dividing a row of the first convolution by s_c divides its grid too: it costs nothing.
    - A depthwise second convolution has a grid per kernel, so that this costs nothing either. With a step of
      D = max_c(a_c / s_c) / 127, channel c gets noise of D * s_c in its old units; for a given D the least s_c is
      a_c / (127 D). So s_c ~ a_c is best whatever the weights are: each channel has its own grid in effect.
    - A dense second convolution shares a grid among the columns of a row, so that what the activations gain the weights
      lose. s_c = a_c^p / w_c^(1-p), with w_c the largest weight of column c (SmoothQuant, Xiao et al.,
      arXiv 2211.10438, equation 4); here w_c is taken relative to each row's signal and p is the one of 21 exponents
      with the least estimated noise, see `_noise`.

    Measured as the signal-to-noise ratio of INT8 answers, in dB, on a VanillaNet-5 trained on digits and on a full-size
    one with random weights, with the largest activations of 512 and 96 images: not equalised 37.6 and 20.1; square-root
    rule 34.9 and 20.3; p of 0.5 everywhere 38.4 and 23.1, of 0.75 39.1 and 23.4, of 1 38.5 and 21.7; p chosen by the
    estimate 38.9 and 23.7.

    The pairs do not depend on each other here, so that one round is enough. The scales of a pair, of which a common
    factor changes nothing, have the geometric mean 1. All lie within [1e-6, 1e6]; channels that are always zero keep 1.

    Args:
        model: An FP32 graph; not changed.
        act_ranges: Magnitude of each channel, by tensor: of what the second convolution of each pair takes. The
            largest on some images, or something steadier: scales fitted to the largest leave no room in any channel
            for other images.

    Returns:
        Positive scales by the pairs' keys.

    Raises:
        InputError: ranges are missing, have another shape or are not finite, or a weight is not.
    """
    pairs = find_pairs(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if act_ranges is None:
        return _balance_weights(pairs, tensors)
    scales = {}
    for pair in pairs:
        ranges = _require_ranges(pair, act_ranges)
        wanted = ranges if pair.depthwise else _compromise(ranges, _kernels(tensors[pair.second_weight]))
        scales[pair.key] = _centred(wanted)
    return scales


def scale_ranges(model: onnx.ModelProto, scales: Scales, act_ranges: Mapping[str, Float64]) -> dict[str, Float64]:
    """Activation ranges after equalisation, by tensor: those between pairs divided by |s|, the others as they were."""
    after = dict(act_ranges)
    for pair in find_pairs(model):
        for tensor in pair.tensors:
            if tensor in after and pair.key in scales:
                after[tensor] = after[tensor] / np.abs(scales[pair.key])
    return after


def _balance_weights(pairs: Sequence[Pair], tensors: Mapping[str, onnx.TensorProto]) -> dict[str, Float64]:
    names = dict.fromkeys(name for pair in pairs for name in (pair.first_weight, pair.second_weight))
    matrices = {name: _kernels(tensors[name]).max(axis=2) for name in names}
    scales = {pair.key: np.ones(pair.channels) for pair in pairs}
    for _ in range(ROUNDS):
        change = 0.0
        for pair in pairs:
            first, second = matrices[pair.first_weight], matrices[pair.second_weight]
            r1, r2 = first.max(axis=1), second[:, 0] if pair.depthwise else second.max(axis=0)
            alive = (r1 > 0) & (r2 > 0)
            wanted = scales[pair.key] * np.sqrt(np.where(alive, r1, 1) / np.where(alive, r2, 1))
            wanted = np.clip(wanted, 1 / LARGEST_SCALE, LARGEST_SCALE)
            step, scales[pair.key] = wanted / scales[pair.key], wanted
            first /= step[:, None]
            second *= step[:, None] if pair.depthwise else step
            change = max(change, float(np.abs(step - 1).max()))
        if change < SETTLED:
            break
    return scales


def _compromise(ranges: Float64, kernels: Float64) -> Float64:
    """Scales between activations on one grid and a dense convolution's rows on one grid each; 0 for dead channels."""
    # Rows in units of their own signal: a row's scale is the next pair's affair.
    squares = np.einsum("oik,oik->oi", kernels, kernels)
    signal = squares @ ranges**2
    rows = signal > 0
    largest = kernels.max(axis=2)[rows] / np.sqrt(signal[rows])[:, None]
    gains = (squares[rows] / signal[rows][:, None]).sum(axis=0)
    columns = largest.max(axis=0, initial=0)
    alive = (ranges > 0) & (columns > 0)
    if not alive.any():
        return ranges.copy()
    a, w, largest, gains = ranges[alive], columns[alive], largest[:, alive], gains[alive]
    candidates = [a**share / w ** (1 - share) for share in EXPONENTS]
    best = min(candidates, key=lambda scale: _noise(scale, a, largest, gains))
    # A channel that nobody weighs costs nothing but the range that it takes up.
    scales: Float64 = ranges / (a / best).max()
    scales[alive] = best
    return scales


def _noise(scale: Float64, ranges: Float64, largest: Float64, gains: Float64) -> float:
    """Estimated noise power of a dense convolution's outputs in INT8, each relative to its signal, times 12 * 127^2.

    Rounding to a grid of step D adds noise of power D^2 / 12. The activations' step is max_c(a_c / s_c) / 127 and meets
    the weights W_oc s_c; the step of row o is max_c |W_oc s_c| / 127 and meets the activations x_c / s_c, whose power
    is estimated as (RMS_SHARE * a_c / s_c)^2. `gains` are the sums over o of W_oc^2; `largest` is (O, C).
    """
    scaled = ranges / scale
    of_activations = scaled.max() ** 2 * float(gains @ scale**2)
    of_weights = RMS_SHARE**2 * float((scaled**2).sum()) * float(((largest * scale).max(axis=1) ** 2).sum())
    return float(of_activations) + of_weights


def _centred(scale: Float64) -> Float64:
    """With the geometric mean 1 over the channels that are not zero, within the bounds; 1 for those that are."""
    alive = scale > 0
    logarithms = np.log(np.where(alive, scale, 1))
    logarithms -= logarithms[alive].mean() if alive.any() else 0
    limit = np.log(LARGEST_SCALE)
    return np.where(alive, np.exp(np.clip(logarithms, -limit, limit)), 1.0)


def _kernels(tensor: onnx.TensorProto) -> Float64:
    """Magnitudes (O, I, K) of a convolution's weights."""
    values = np.abs(numpy_helper.to_array(tensor).astype(np.float64))
    if not np.isfinite(values).all():
        raise InputError(f"{tensor.name} holds NaN or infinite weights", hint="export the graph again")
    return values.reshape(*values.shape[:2], -1)


def _require_ranges(pair: Pair, act_ranges: Mapping[str, Float64]) -> Float64:
    tensor = pair.tensors[-1]
    if tensor not in act_ranges:
        raise InputError(f"there are no activation ranges of {tensor}", hint="measure them on this graph")
    ranges = np.asarray(act_ranges[tensor], np.float64)
    if ranges.shape != (pair.channels,):
        raise InputError(
            f"the activation ranges of {tensor} are {ranges.shape}, not ({pair.channels},)",
            hint="measure them on this graph",
        )
    wrong = ~(np.isfinite(ranges) & (ranges >= 0))
    if wrong.any():
        raise InputError(
            f"{int(wrong.sum())} of {ranges.size} activation ranges of {tensor} are NaN, infinite or negative",
            details=[f"channel {index}: {ranges[index]:g}" for index in np.flatnonzero(wrong)[:3]],
            hint="look for NaN or huge values in the images and in the graph's own answers",
        )
    return ranges


def _require_scales(pairs: Mapping[str, Pair], scales: Scales) -> None:
    for key, given in scales.items():
        values = np.asarray(given)
        if key not in pairs:
            raise InputError(f"{key} is no pair of this graph", hint=f"pairs: {', '.join(pairs) or 'none'}")
        pair = pairs[key]
        if values.shape != (pair.channels,):
            raise InputError(f"the scales of {key} are {values.shape}, not ({pair.channels},)", hint="one per channel")
        if not (np.isfinite(values) & (values != 0)).all():
            raise InputError(f"the scales of {key} are zero or not finite", hint="a channel that stays has the scale 1")
        if not pair.signed and (values < 0).any():
            raise InputError(
                f"the scales of {key} are negative, and a Relu or max-pool lies behind it", hint="give positive scales"
            )


def _along(scale: Float64, weight: Float64, axis: int) -> Float64:
    return scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
