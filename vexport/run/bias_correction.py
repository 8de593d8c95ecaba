"""Empirical bias correction: what rounding adds to a channel on average is taken off the convolution's bias.

Rounded weights, rounded inputs and cut-off inputs move the mean of a channel, and what follows takes the shift for
signal (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721,
section 4.2; from data, as in its appendix). For each quantised convolution, in the graph's order, over images and
positions:

    b'[c] = b[c] + E[y_fp32[c]] - E[y_int8[c]]        y_int8 with all earlier convolutions corrected

FP32 biases take no part in rounding, so that this costs nothing when the network runs. The means are computed inside
the graph: what leaves it is (N, C) per convolution, and the memory grows neither with the images nor with the layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vexport.errors import InputError
from vexport.graph.quantize import conv_edges
from vexport.run.probe import mapped_errors, open_probe
from vexport.run.runner import Array, require_images, require_threads

Float64 = npt.NDArray[np.float64]
_OTHER_GRAPH = "give the INT8 graph and the FP32 graph that it was made from (equalised where that one was)"


@dataclass(frozen=True)
class BiasCorrection:
    """What was done at one quantised convolution. Shares are of `output_rms`, or absolute where that is 0.

    Args:
        node: Its name.
        correction: What was added to its bias, by channel (C,).
        output_rms: Root mean square of its output in FP32, over all channels.
        shift_before: Largest difference between a channel's means in INT8 and FP32, with no convolution corrected.
        shift_after: The same with all of them corrected, measured on the changed graph.
        noise: Largest standard error of a channel's correction: how far the means of so many other images may be off.
    """

    node: str
    correction: Float64
    output_rms: float
    shift_before: float
    shift_after: float
    noise: float

    @property
    def largest(self) -> float:
        """The largest correction of a channel."""
        return _share(self.correction, self.output_rms)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the corrections themselves."""
        return {
            "node": self.node,
            "channels": len(self.correction),
            # Squares of activations beyond 1e19 leave FP32, and JSON knows no infinity.
            "output_rms": self.output_rms if np.isfinite(self.output_rms) else None,
            "largest": self.largest,
            "shift_before": self.shift_before,
            "shift_after": self.shift_after,
            "noise": self.noise,
        }


@dataclass(frozen=True)
class _Layer:
    """A quantised convolution: its name, and the tensor that it gives in either graph."""

    node: str
    fp32: str
    int8: str


def correct_biases(
    fp32: onnx.ModelProto,
    int8: onnx.ModelProto,
    batches: Sequence[Array],
    *,
    threads: int | None = None,
    on_share: Callable[[float], None] = lambda _share: None,
) -> tuple[onnx.ModelProto, list[BiasCorrection]]:
    """Correct the biases of an INT8 graph, so that its convolutions' outputs have the means of the FP32 graph's.

    Takes one run per quantised convolution, each of the part of the graph up to it, and three of the whole graph.

    Args:
        fp32: The graph that `int8` was made from; weights are initializers. Not changed.
        int8: As `quantize` makes it. Not changed.
        batches: Images float32 (N, C, H, W), read once per run. Where a graph fixes its batch they are cut, and the
            last part is filled up; what was filled up does not count.
        threads: Of ONNX Runtime; None leaves its choice.
        on_share: Told the share that is done, after each batch.

    Returns:
        The changed graph, and what was done, in the graph's order. Convolutions that stayed FP32 keep their bias. A
        convolution without a bias gets one, and one that shares its bias gets a copy of its own.

    Raises:
        InputError: the graphs do not belong together, there are no images or they do not fit, nothing is quantised, a
            bias is not FP32, or an activation is NaN or infinite.
    """
    require_threads(threads)
    if not len(batches):
        raise InputError("there are no images to correct biases on", hint="give some dozens")
    layers = _require_layers(fp32, int8)
    # A run up to the i-th convolution is counted as i steps; those of FP32 and INT8 before, and of INT8 after, as all.
    steps = len(batches) * (3 * len(layers) + len(layers) * (len(layers) + 1) // 2)
    done = 0

    def advance(weight: int) -> None:
        nonlocal done
        done += weight
        on_share(done / steps)

    wanted, gaps, rms = _compare(fp32, int8, layers, batches, threads, lambda: advance(2 * len(layers)))
    result = onnx.ModelProto()
    result.CopyFrom(int8)
    added = []
    for index, layer in enumerate(layers):
        (found,) = _int8_means(result, [layer], batches, threads, partial(advance, index + 1))
        added.append(_add_to_bias(result, layer.node, wanted[index].mean - found))
    after = _int8_means(result, layers, batches, threads, lambda: advance(len(layers)))
    return result, [
        BiasCorrection(
            node=layer.node,
            correction=added[index],
            output_rms=rms[index],
            shift_before=_share(gaps[index].mean, rms[index]),
            shift_after=_share(after[index] - wanted[index].mean, rms[index]),
            noise=_share(gaps[index].standard_error, rms[index]),
        )
        for index, layer in enumerate(layers)
    ]


def _share(values: Float64, rms: float) -> float:
    return float(np.abs(values).max(initial=0)) / (rms or 1.0)


class _Mean:
    """Mean and standard error of rows (N, C), batch by batch."""

    def __init__(self) -> None:
        self._sum: Float64 = np.zeros(())
        self._squares: Float64 = np.zeros(())
        self._rows = 0

    def add(self, rows: Array) -> None:
        """Count a batch."""
        exact = rows.astype(np.float64)
        self._sum = self._sum + exact.sum(axis=0)
        self._squares = self._squares + (exact**2).sum(axis=0)
        self._rows += len(exact)

    @property
    def mean(self) -> Float64:
        """Of each column."""
        return self._sum / self._rows

    @property
    def standard_error(self) -> Float64:
        """Of each column's mean; 0 for a single row, which says nothing about others."""
        spread = np.maximum(self._squares / self._rows - self.mean**2, 0)
        return np.sqrt(spread / max(self._rows - 1, 1))


def _compare(
    fp32: onnx.ModelProto,
    int8: onnx.ModelProto,
    layers: Sequence[_Layer],
    batches: Sequence[Array],
    threads: int | None,
    on_batch: Callable[[], None],
) -> tuple[list[_Mean], list[_Mean], list[float]]:
    """Both graphs as they are, batch by batch: the FP32 means, INT8 minus FP32, and the RMS in FP32, by layer."""
    count = len(layers)
    wanted, gaps, powers = [_Mean() for _ in layers], [_Mean() for _ in layers], [_Mean() for _ in layers]
    reference = _channel_means(fp32, [layer.fp32 for layer in layers], batches, threads, "FP32", squares=True)
    candidate = _channel_means(int8, [layer.int8 for layer in layers], batches, threads, "INT8")
    for theirs, ours in zip(reference, candidate, strict=True):
        for index, layer in enumerate(layers):
            if theirs[index].shape != ours[index].shape:
                raise InputError(f"{layer.node} has other channels in the two graphs", hint=_OTHER_GRAPH)
            wanted[index].add(theirs[index])
            gaps[index].add(ours[index].astype(np.float64) - theirs[index])
            powers[index].add(theirs[count + index])
        on_batch()
    return wanted, gaps, [float(np.sqrt(power.mean.mean())) for power in powers]


def _int8_means(
    model: onnx.ModelProto,
    layers: Sequence[_Layer],
    batches: Sequence[Array],
    threads: int | None,
    on_batch: Callable[[], None],
) -> list[Float64]:
    """Channel means of some convolutions' outputs over all images."""
    means = [_Mean() for _ in layers]
    for found in _channel_means(model, [layer.int8 for layer in layers], batches, threads, "INT8"):
        for mean, rows in zip(means, found, strict=True):
            mean.add(rows)
        on_batch()
    return [mean.mean for mean in means]


def _channel_means(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Sequence[Array],
    threads: int | None,
    label: str,
    *,
    squares: bool = False,
) -> Iterator[list[Array]]:
    """Means over the positions of some tensors, (N, C) each, batch by batch; then those of the squares, if asked for.

    Raises:
        InputError: the images do not fit, or a mean is NaN or infinite.
    """
    part = _cut_out(model, tensors, squares=squares)
    with open_probe(part, threads, named=f"the {label} graph", hint=_OTHER_GRAPH, as_written=True) as session:
        if len(session.get_inputs()) != 1:
            raise InputError(f"the {label} graph has {len(session.get_inputs())} inputs", hint="give a classifier")
        (source,) = session.get_inputs()
        shape = [side if isinstance(side, int) else None for side in source.shape]
        for number, batch in enumerate(batches, 1):
            require_images(batch, (None, *shape[1:]))
            size = shape[0] or len(batch)
            parts = [
                _run(session, source.name, batch[start : start + size], size, label)
                for start in range(0, len(batch), size)
            ]
            found = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
            for name, rows in zip(tensors, found, strict=False):  # squares may be too large for FP32
                if not np.isfinite(rows).all():
                    kind = "NaN" if np.isnan(rows).any() else "infinite"
                    raise InputError(
                        f"the activation {name} of the {label} graph is {kind} in image batch {number}",
                        hint="check the weights with `vexport eval`, or remove these images",
                    )
            yield found


def _run(session: Any, source: str, images: Array, size: int, label: str) -> list[Array]:
    """One run, filled up to the batch that the graph asks for; what was filled up is dropped."""
    filled = np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
    with mapped_errors(f"ONNX Runtime cannot run the {label} graph on these images", _OTHER_GRAPH):
        answers = session.run(None, {source: filled})
    return [answer.reshape(answer.shape[:2])[: len(images)] for answer in answers]


def _cut_out(model: onnx.ModelProto, tensors: Sequence[str], *, squares: bool) -> onnx.ModelProto:
    """The part of a graph that gives some tensors, with their means over the positions as its only outputs."""
    part = onnx_ir.from_proto(model)
    values = {value.name: value for node in part.graph for value in node.outputs}
    inner = [values[name] for name in tensors]
    if squares:
        powers = [onnx_ir.node("Mul", [value, value]) for value in inner]
        part.graph.extend(powers)
        inner += [node.outputs[0] for node in powers]
    # Unlike ReduceMean it is the same in every opset, and takes any number of axes behind the channels.
    means = [onnx_ir.node("GlobalAveragePool", [value]) for value in inner]
    part.graph.extend(means)
    part.graph.outputs.clear()
    for index, node in enumerate(means):
        node.outputs[0].name = f"channel_mean.{index}"
        node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        node.outputs[0].shape = onnx_ir.Shape([None] * 4)  # without a rank the checker of large graphs refuses it
        part.graph.outputs.append(node.outputs[0])
    RemoveUnusedNodesPass()(part)
    return onnx_ir.to_proto(part)


def add_corrections(int8: onnx.ModelProto, corrections: Mapping[str, Float64]) -> onnx.ModelProto:
    """The graph with corrections that were found before, say with more of its convolutions in INT8.

    Args:
        int8: The graph; not changed.
        corrections: What is added to the biases, (C,) by the convolution's name.
    """
    result = onnx.ModelProto()
    result.CopyFrom(int8)
    for name, correction in corrections.items():
        _add_to_bias(result, name, correction)
    return result


def _require_layers(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> list[_Layer]:
    """The quantised convolutions, each with its output in both graphs, in the graph's order."""
    convs = {node.name: node for node in int8.graph.node if node.op_type == "Conv"}
    quantised = [edge.node for edge in conv_edges(int8) if edge.quantised]
    if not quantised:
        raise InputError("no convolution of the INT8 graph is quantised", hint=_OTHER_GRAPH)
    twice = [name for name, count in Counter(quantised).items() if count > 1]
    if twice:
        raise InputError(f"several convolutions of the INT8 graph are named {twice[0]!r}", hint="name every node")
    theirs = {node.name: node.output[0] for node in fp32.graph.node if node.op_type == "Conv"}
    missing = [name for name in quantised if name not in theirs]
    if missing:
        raise InputError(f"the FP32 graph has no convolution {', '.join(missing[:4])}", hint=_OTHER_GRAPH)
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    for name in quantised:
        bias = _bias_name(convs[name])
        if bias and (bias not in tensors or tensors[bias].data_type != onnx.TensorProto.FLOAT):
            raise InputError(
                f"the bias of {name} is not stored in FP32", hint="quantise with FP32 biases, as `vexport quantize`"
            )
    return [_Layer(name, theirs[name], convs[name].output[0]) for name in quantised]


def _bias_name(conv: onnx.NodeProto) -> str:
    return conv.input[2] if len(conv.input) > 2 else ""


def _add_to_bias(model: onnx.ModelProto, name: str, correction: Float64) -> Float64:
    """Add to a convolution's bias, in place; what was really added, after rounding to FP32."""
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv" and node.name == name)
    old_name = _bias_name(conv)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    old = numpy_helper.to_array(tensors[old_name]) if old_name else np.zeros(len(correction), np.float32)
    new = (old.astype(np.float64) + correction).astype(np.float32)
    readers = [value for node in model.graph.node for value in node.input]
    if readers.count(old_name) == 1 and old_name:
        tensors[old_name].CopyFrom(numpy_helper.from_array(new, old_name))
    else:
        taken = {*tensors, *readers, *(value for node in model.graph.node for value in node.output)}
        own = f"{name}.bias"
        while own in taken:
            own += "_corrected"
        model.graph.initializer.append(numpy_helper.from_array(new, own))
        del conv.input[2:]
        conv.input.append(own)
    return new.astype(np.float64) - old
