"""Statistics of a graph's activations on calibration images, batch by batch: memory does not grow with the images.

ONNX Runtime's own calibrators keep every activation until the end for percentile and entropy; here each batch goes
into histograms of fixed size and is forgotten. A bin's width is a power of two. Where a value lies beyond the last
bin, neighbouring bins are joined and the width doubles, which is exact: the histogram does not depend on the order or
the size of the batches, and one pass is enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from vexport.engine.timing import write_atomically
from vexport.errors import InputError
from vexport.graph.inspect import is_large
from vexport.graph.write import write_graph
from vexport.run.ort import CPU, FATAL_ONLY
from vexport.run.runner import Array
from vexport.run.thresholds import Histogram

BINS = 4096  # at least half of them are in use
# What is written to the cache; another number is another format.
STATISTICS_VERSION = 1


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
) -> dict[str, Histogram]:
    """Run a graph on images and count the magnitudes of some of its tensors.

    Args:
        model: An FP32 graph with one input.
        tensors: Whose values are counted; the first axis of each is the batch.
        batches: Read one at a time. Where the graph fixes its batch, smaller ones are filled up, and what was filled
            up does not count.
        threads: Of ONNX Runtime; None leaves its choice.
        on_images: Told how many images are done.

    Raises:
        InputError: an activation is infinite or NaN, ONNX Runtime cannot run the graph, or there are no images.
    """
    counted = {name: StreamedHistogram() for name in tensors}
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
                found = values.pop(name)[: len(batch.images)]
                histogram.add(found, _require_finite(found, name, number, batch))
            done += len(batch.images)
            on_images(done)
    if not done:
        raise InputError("there are no images to calibrate on", hint="give at least one")
    return {name: histogram.result() for name, histogram in counted.items()}


def _require_finite(values: Array, tensor: str, number: int, batch: ImageBatch) -> float:
    """The largest magnitude.

    Raises:
        InputError: a value is infinite or NaN.
    """
    # Both pass NaN on; an infinity is one of the two.
    top, bottom = (float(values.max()), float(values.min())) if values.size else (0.0, 0.0)
    if math.isfinite(top) and math.isfinite(bottom):
        return max(top, -bottom)
    bad = [name for name, value in zip(batch.names, values, strict=True) if not np.isfinite(value).all()]
    kind = "NaN" if np.isnan(values).any() else "infinite"
    raise InputError(
        f"the activation {tensor} is {kind} in image batch {number}",
        details=[f"on {len(bad)} of its {len(batch.names)} images: {', '.join(bad[:4])}"],
        hint="the FP32 network itself overflows there: check the weights with `vexport eval`, or remove these images",
    )


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
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors if name not in there
    )
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        graph: str | bytes = str(Path(folder) / "graph.onnx")
        if is_large(seen):
            write_graph(seen, Path(str(graph)))
        else:
            graph = seen.SerializeToString()
        with _mapped_errors("ONNX Runtime cannot load the graph"):
            session = ort.InferenceSession(graph, options, providers=[CPU])
        del seen, graph
        yield session


def _run(session: Any, names: list[str], feed: dict[str, Array]) -> list[Array]:
    if not names:  # ONNX Runtime takes an empty list for all outputs
        return []
    with _mapped_errors("ONNX Runtime cannot run the graph on these images"):
        return list(session.run(names, feed))


@contextmanager
def _mapped_errors(message: str) -> Iterator[None]:
    """Turn ONNX Runtime's errors into an InputError; they have no common base class but Exception."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        hint = "give an FP32 graph and images of the size that it takes"
        raise InputError(message, details=str(error).splitlines()[:1], hint=hint) from error


def graph_digest(model: onnx.ModelProto) -> str:
    """A hash of a graph with its weights, whatever its metadata says."""
    plain = onnx.ModelProto()
    plain.graph.CopyFrom(model.graph)
    plain.opset_import.extend(model.opset_import)
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True)
class Known:
    """Statistics from before.

    Args:
        histograms: By tensor.
        skipped: Images that could not be read, each with the reason.
    """

    histograms: dict[str, Histogram]
    skipped: dict[str, str]


class StatisticsCache:
    """Statistics by graph, images and preprocessing. They serve every method, so the method is no part of the key.

    Args:
        folder: Where they lie; made when something is first stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "calibration"

    def find(self, request: Mapping[str, Any]) -> Known | None:
        """What was stored for exactly this request, if anything; a damaged file counts as none."""
        try:
            with np.load(self._path(request), allow_pickle=False) as stored:
                told = json.loads(str(stored["request"]))
                if told != _canonical(request):
                    return None
                rows = json.loads(str(stored["tensors"]))
                histograms = {
                    name: Histogram(stored[f"counts.{index}"], float(width), float(largest))
                    for index, (name, width, largest) in enumerate(rows)
                }
                return Known(histograms, dict(json.loads(str(stored["skipped"]))))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def store(
        self, request: Mapping[str, Any], statistics: Mapping[str, Histogram], skipped: Mapping[str, str]
    ) -> None:
        """Keep statistics; a folder that cannot be written costs the copy only."""
        tensors = [[name, one.width, one.largest] for name, one in statistics.items()]
        counts = {f"counts.{index}": one.counts for index, one in enumerate(statistics.values())}
        told = {"request": _canonical(request), "tensors": tensors, "skipped": dict(skipped)}
        texts = {key: np.array(json.dumps(value)) for key, value in told.items()}
        buffer = BytesIO()
        np.savez_compressed(buffer, **texts, **counts)  # type: ignore[arg-type]
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(request), buffer.getvalue())

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(_canonical(request), sort_keys=True).encode()).hexdigest()[:32]
        return self._folder / f"{key}.npz"


def _canonical(request: Mapping[str, Any]) -> Any:
    """As it reads back from JSON."""
    return json.loads(json.dumps({"version": STATISTICS_VERSION, "bins": BINS, **request}))
