"""Statistics of a graph's activations on calibration images, batch by batch: memory does not grow with the images.

ONNX Runtime's own calibrators keep every activation until the end for percentile and entropy; here each batch goes
into histograms of fixed size and is forgotten. A bin's width is a power of two. Where a value lies beyond the last
bin, neighbouring bins are joined and the width doubles, which is exact: the histogram does not depend on the order or
the size of the batches, and one pass is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx

from vexport.errors import InputError
from vexport.run.channel_ranges import ChannelCounter, ChannelRanges
from vexport.run.probe import mapped_errors, open_probe
from vexport.run.runner import Array
from vexport.run.thresholds import Histogram

_OTHER = "give an FP32 graph and images of the size that it takes"
BINS = 4096  # at least half of them are in use


@dataclass(frozen=True)
class Statistics:
    """What a graph's activations are like on some images.

    Args:
        histograms: Of the magnitudes, by tensor.
        channels: The largest magnitudes channel by channel, by tensor.
    """

    histograms: dict[str, Histogram]
    channels: ChannelRanges


class ImageBatch(NamedTuple):
    """Some calibration images.

    Args:
        names: Of each image, for messages.
        images: float32 (N, C, H, W).
    """

    names: tuple[str, ...]
    images: Array


class StreamedHistogram:
    """Magnitudes of one tensor, batch by batch, in `BINS` bins."""

    def __init__(self) -> None:
        self._counts: Array = np.zeros(BINS, np.int64)
        self._zeros = 0  # until something else comes there is no width
        self._width = 0.0
        self._largest = 0.0

    def add(self, values: Array, largest: float) -> None:
        """Count values.

        Args:
            values: Finite, of any shape.
            largest: The largest magnitude among them.
        """
        if largest == 0:
            self._zeros += values.size
            return
        self._largest = max(self._largest, largest)
        self._widen(largest)
        # In float32 the quotient by a power of two is exact, and so is the bin. In parts, so that copies stay small.
        flat = values.reshape(-1)
        for start in range(0, flat.size, 1 << 20):
            part = np.abs(flat[start : start + (1 << 20)])
            part *= np.float32(1 / self._width)
            self._counts += np.bincount(part.astype(np.int32), minlength=BINS)

    def result(self) -> Histogram:
        """What was counted so far, up to the bin with the largest value."""
        counts = self._counts.copy()
        counts[0] += self._zeros
        used = int(self._largest / self._width) + 1 if self._width else 1
        return Histogram(counts[:used], self._width, self._largest)

    def _widen(self, largest: float) -> None:
        """Make the bins reach beyond a value."""
        _, exponent = math.frexp(largest)  # largest < 2 ** exponent
        # Widths below 2 ** -126 would have no inverse in float32; nothing that small matters.
        wanted = max(2.0**exponent / BINS, 2.0**-120)
        if self._width == 0:
            self._width = wanted
        while self._width < wanted:
            joined = self._counts[0::2] + self._counts[1::2]
            self._counts = np.concatenate([joined, np.zeros(BINS - len(joined), np.int64)])
            self._width *= 2


def collect_statistics(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[ImageBatch],
    *,
    threads: int | None = None,
    on_images: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Run a graph on images and count the magnitudes of some of its tensors.

    Args:
        model: An FP32 graph with one input.
        tensors: Whose values are counted, channels on the second axis. The first one is the batch, or parts of the
            images, as windows are.
        batches: Read one at a time. Where the graph fixes its batch, smaller ones are filled up, and what was filled
            up does not count.
        threads: Of ONNX Runtime; None leaves its choice.
        on_images: Told how many images are done.

    Raises:
        InputError: an activation is infinite or NaN, ONNX Runtime cannot run the graph, there are no images, or what
            was filled up cannot be told from the rest.
    """
    counted = {name: StreamedHistogram() for name in tensors}
    channels = ChannelCounter()
    done = 0
    with _session(model, tensors, threads) as session:
        (source,) = session.get_inputs()
        fixed = source.shape[0] if isinstance(source.shape[0], int) else None
        inner = [name for name in tensors if name != source.name]
        for number, batch in enumerate(batches, 1):
            images = _filled(batch.images, fixed)
            values = dict(zip(inner, _run(session, inner, {source.name: images}), strict=True))
            values[source.name] = images
            for name, histogram in counted.items():
                found = values.pop(name)
                if len(images) > len(batch.images):
                    found = _without_filling(found, name, images, batch)
                histogram.add(found, _require_finite(found, name, number, batch))
                channels.add(name, found)
            done += len(batch.images)
            on_images(done)
    if not done:
        raise InputError("there are no images to calibrate on", hint="give at least one")
    histograms = {name: histogram.result() for name, histogram in counted.items()}
    return Statistics(histograms, replace(channels.result(), images=done))


def _require_finite(values: Array, tensor: str, number: int, batch: ImageBatch) -> float:
    """The largest magnitude.

    Raises:
        InputError: a value is infinite or NaN.
    """
    # Both pass NaN on; an infinity is one of the two.
    top, bottom = (float(values.max()), float(values.min())) if values.size else (0.0, 0.0)
    if math.isfinite(top) and math.isfinite(bottom):
        return max(top, -bottom)
    kind = "NaN" if np.isnan(values).any() else "infinite"
    if len(values) == len(batch.names):
        bad = [name for name, value in zip(batch.names, values, strict=True) if not np.isfinite(value).all()]
        where = f"on {len(bad)} of its {len(batch.names)} images: {', '.join(bad[:4])}"
    else:
        where = f"on some of its {len(batch.names)} images, from {batch.names[0]} to {batch.names[-1]}"
    raise InputError(
        f"the activation {tensor} is {kind} in image batch {number}",
        details=[where],
        hint="the FP32 network itself overflows there: check the weights with `vexport eval`, or remove these images",
    )


def _without_filling(values: Array, tensor: str, images: Array, batch: ImageBatch) -> Array:
    """What a tensor holds of the images themselves.

    Raises:
        InputError: its first axis is not that of the images.
    """
    if len(values) != len(images):
        raise InputError(
            f"the first axis of the activation {tensor} is {len(values)}, not the batch of {len(images)}: "
            "images that fill up the batch cannot be told from the others",
            details=[f"the last batch has {len(batch.images)} images"],
            hint=f"export the graph with an open batch, or measure a multiple of {len(images)} images",
        )
    return values[: len(batch.images)]


def _filled(images: Array, batch: int | None) -> Array:
    missing = (batch or 0) - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images


@contextmanager
def _session(model: onnx.ModelProto, tensors: Sequence[str], threads: int | None) -> Iterator[Any]:
    """The graph with these tensors as outputs."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    there = {value.name for value in (*seen.graph.output, *seen.graph.input)}
    seen.graph.output.extend(
        # A convolution of images takes four axes; without a rank the checker of large graphs refuses an output.
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4)
        for name in tensors
        if name not in there
    )
    with open_probe(seen, threads, named="the graph", hint=_OTHER) as session:
        yield session


def _run(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:
    if not names:  # ONNX Runtime takes an empty list for all outputs
        return []
    with mapped_errors("ONNX Runtime cannot run the graph on these images", _OTHER):
        return list(session.run(names, feed))
