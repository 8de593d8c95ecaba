"""Largest activation of every channel on sample images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from vexport.errors import InputError
from vexport.graph.inspect import is_large
from vexport.run.ort import CPU, FATAL_ONLY
from vexport.run.runner import Array

Ranges = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ChannelRanges:
    """Activations of every channel on some images: arrays (C,) by tensor name.

    Args:
        largest: Largest magnitude on any image; NaN or infinite where the graph gives such a value.
        mean_largest: The largest magnitude on an image, averaged over the images.
        images: How many.
    """

    largest: dict[str, Ranges]
    mean_largest: dict[str, Ranges]
    images: int

    @property
    def typical(self) -> dict[str, Ranges]:
        """Geometric mean of the two: for the choice of scales, less of an accident of the images than the largest.

        Scales that make the largest values of all channels equal leave no room in any channel for an image that goes
        beyond. On a VanillaNet trained on digits, INT8 answers to other images had a signal-to-noise ratio of 38.4 dB
        without equalisation, of 30.9 dB with `largest` of 64 images and 39.1 dB with `typical`; with 512 images, of
        37.6, 38.9 and 39.1 dB. A full-size VanillaNet-5 with random weights: 20.4, 21.4 and 22.1 dB with 8 images, but
        19.5, 22.3 and 21.6 dB with 32, so where other images are at hand it pays to try both.
        """
        return {name: np.sqrt(values * self.mean_largest[name]) for name, values in self.largest.items()}


def channel_ranges(
    model: onnx.ModelProto, batches: Iterable[Array], *, threads: int | None = None
) -> dict[str, Ranges]:
    """The largest magnitudes that `measure_channels` finds; arguments and errors are the same."""
    return measure_channels(model, batches, threads=threads).largest


def measure_channels(model: onnx.ModelProto, batches: Iterable[Array], *, threads: int | None = None) -> ChannelRanges:
    """Activations of each channel of every tensor that a convolution takes or gives.

    The graph itself reduces each tensor to one number per image and channel, so that memory grows neither with the
    number of batches nor with that of tensors.

    Args:
        model: An FP32 graph with one input; not changed.
        batches: Images float32 (N, C, H, W), read one after the other.
        threads: Of ONNX Runtime; None leaves its choice.

    Raises:
        InputError: there is no image or no convolution, or ONNX Runtime cannot run the graph on an image.
    """
    tensors = _conv_tensors(model)
    if not tensors:
        raise InputError("the graph has no convolution", hint="give a graph that vexport exported")
    largest: dict[str, Ranges] = {}
    totals: dict[str, Ranges] = {}
    count = 0
    with _session(_with_reductions(model, tensors), threads) as session:
        (image,) = session.get_inputs()
        names = [value.name for value in session.get_outputs()][-2 * len(tensors) :]
        for batch in batches:
            if not len(batch):
                continue
            found = _run(session, names, {image.name: batch})
            count += len(batch)
            for tensor, maxima, means in zip(tensors, found[::2], found[1::2], strict=True):
                # A maximum may pass over NaN, a mean does not.
                values = np.where(np.isnan(means), np.nan, maxima).astype(np.float64)
                values = values.reshape(values.shape[:2])
                largest[tensor] = np.maximum(largest.get(tensor, 0.0), values.max(axis=0))
                totals[tensor] = totals.get(tensor, 0.0) + values.sum(axis=0)
    if not count:
        raise InputError("there are no images", hint="give at least one batch")
    return ChannelRanges(largest, {name: total / count for name, total in totals.items()}, count)


def _conv_tensors(model: onnx.ModelProto) -> list[str]:
    """What convolutions take or give, in the graph's order, each once."""
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return list(dict.fromkeys(name for node in convs for name in (node.input[0], node.output[0])))


def _with_reductions(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The graph with two more outputs per tensor: largest and mean magnitude (N, C, 1, 1) of each channel."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for number, tensor in enumerate(tensors):
        size = f"vexport.range.{number}"
        graph.node.append(helper.make_node("Abs", [tensor], [size], name=size))
        # Unlike the reductions, these are the same operators in every opset.
        for operator in ("GlobalMaxPool", "GlobalAveragePool"):
            name = f"{size}.{operator}"
            graph.node.append(helper.make_node(operator, [size], [name], name=name))
            graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return result


@contextmanager
def _session(model: onnx.ModelProto, threads: int | None) -> Iterator[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        if is_large(model):
            onnx.save_model(model, path, save_as_external_data=True, location="graph.data", size_threshold=1024)
        source = str(path) if path.is_file() else model.SerializeToString()
        try:
            session = ort.InferenceSession(source, options, providers=[CPU])
        except Exception as error:
            if not _is_theirs(error):
                raise
            raise InputError(
                "ONNX Runtime cannot load the graph",
                details=[str(error).splitlines()[0]],
                hint="give an FP32 graph that vexport exported",
            ) from error
        yield session


def _run(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:
    try:
        return list(session.run(names, feed))
    except Exception as error:
        # ONNX Runtime's errors have no common base class but Exception.
        if not _is_theirs(error):
            raise
        raise InputError(
            "ONNX Runtime cannot run the graph on these images",
            details=[str(error).splitlines()[0]],
            hint="give images of the size that the graph takes",
        ) from error


def _is_theirs(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime")
