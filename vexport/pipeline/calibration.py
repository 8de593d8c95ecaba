"""What quantisation works with: the graph, its images, the statistics of its activations, and the ways to use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Preprocessing
from vexport.deps import tool_versions
from vexport.engine.cache import default_folder
from vexport.pipeline.graphs import GraphSource
from vexport.pipeline.quantize_gate import Labelled, Recorded, damage, find_labels, read_labels
from vexport.pipeline.subject import Subject

if TYPE_CHECKING:
    import onnx

    from vexport.run.calibration_images import Loader, Split
    from vexport.run.image_sets import ImageSet
    from vexport.run.runner import Array
    from vexport.run.thresholds import Histogram, Method

OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Job:
    """What is quantised, and on which images.

    Args:
        source: The FP32 graph.
        subject: The same, open.
        how: How images are prepared.
        prepared: The same in words.
        calib: Where the images come from.
        images: All of them.
        split: Which are used, and what for.
        chosen: Name, hash and part of those.
        labelled: Labelled images for the accuracy; None where there are none.
        keep: Convolutions that stay in FP32.
        max_drop: How many points of top-1 may be lost.
        threads: Of ONNX Runtime; None leaves its choice.
    """

    source: GraphSource
    subject: Subject
    how: Preprocessing
    prepared: str
    calib: str
    images: ImageSet
    split: Split
    chosen: list[dict[str, Any]]
    labelled: Labelled | None
    keep: tuple[str, ...]
    max_drop: float
    threads: int | None


def choose_labels(
    calib: Path, evaluate_on: Path | None, images: ImageSet, split: Split, subject: Subject
) -> Labelled | None:
    """Labelled images that were not calibrated on: of a folder given for that, or of the calibration folder itself.

    Raises:
        InputError: the folder given for that does not fit.
    """
    if evaluate_on is not None:
        measured = [calib / name for name in split.calibration] if images.kind == "folder" else []
        return read_labels(evaluate_on, measured, subject)
    # The sorted names of what was not measured, so that what is spread over them is spread over the classes.
    unmeasured = sorted((*split.held_out, *split.unused))
    return find_labels(calib, unmeasured, subject) if images.kind == "folder" else None


def find_statistics(
    job: Job,
    model: onnx.ModelProto,
    tensors: list[str],
    loader: Loader,
    use_cache: bool,
    on_progress: OnProgress,
) -> dict[str, Histogram]:
    """What the activations are like, measured or known from before.

    Args:
        job: What is quantised.
        model: The FP32 graph that is measured: the statistics are kept under its hash.
        tensors: That are measured.
        loader: Of the calibration images.
        use_cache: Whether statistics from before will do.
        on_progress: Told how many images are done.

    Raises:
        InputError: see `collect_statistics` and `Loader.batches`.
    """
    from vexport.run.calibrate import StatisticsCache, collect_statistics, graph_digest

    request = {
        "graph": graph_digest(model),
        "tensors": tensors,
        "images": [entry["sha256"] for entry in job.chosen if entry["part"] == "calibration"],
        "preprocessing": job.how.to_json(),
        "versions": tool_versions("onnxruntime", "pillow"),
    }
    cache = StatisticsCache(default_folder())
    known = cache.find(request) if use_cache else None
    if known is not None:
        loader.skipped |= known.skipped
        return known.histograms
    total = len(job.split.calibration)
    statistics = collect_statistics(
        model,
        tensors,
        loader.batches(job.split.calibration),
        threads=job.threads,
        on_images=lambda done: on_progress(f"measuring activations: {done} of {total} images", done / total),
    )
    cache.store(request, statistics, loader.skipped)
    return statistics


def load_held_out(loader: Loader, split: Split) -> list[Array]:
    """The held-out images, batch by batch; at most 128, so they stay in memory."""
    return [batch.images for batch in loader.batches(split.held_out, varied=False)]


@dataclass(frozen=True)
class Chosen:
    """The best way to choose ranges, and what it gives.

    Args:
        method: Its name.
        tried: The figures of every method on the held-out images.
        ranges: Largest magnitude that INT8 holds, by tensor.
        model: The quantised graph.
    """

    method: Method
    tried: list[dict[str, Any]]
    ranges: dict[str, float]
    model: onnx.ModelProto


def choose_method(
    job: Job,
    model: onnx.ModelProto,
    statistics: dict[str, Histogram],
    methods: Sequence[Method],
    reference: Recorded,
    on_progress: OnProgress,
) -> Chosen:
    """Quantise with every method and keep the one with the least error on the held-out images.

    Args:
        job: What is quantised.
        model: The FP32 graph, weights as initializers.
        statistics: Of its activations.
        methods: To try; of equally good ones the first is kept.
        reference: The FP32 answers to the held-out images.
        on_progress: Told which one is tried.
    """
    from vexport.graph.quantize import quantize
    from vexport.run.ort import OrtRunner
    from vexport.run.thresholds import choose_threshold

    tried: list[dict[str, Any]] = []
    best: tuple[float, Chosen] | None = None
    for index, method in enumerate(methods):
        on_progress(f"quantising: {method}", index / len(methods))
        ranges = {name: choose_threshold(histogram, method) for name, histogram in statistics.items()}
        quantised = quantize(model, ranges, keep=job.keep)
        with OrtRunner(quantised.SerializeToString(), threads=job.threads, name=method) as runner:
            agreement = reference.compare(runner)
        tried.append({"method": method, **agreement.to_json()})
        if best is None or damage(agreement) < best[0]:
            best = damage(agreement), Chosen(method, tried, ranges, quantised)
    assert best is not None, "there is a method"
    return best[1]
