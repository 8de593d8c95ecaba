"""What quantisation works with: the graph, its images, the statistics of its activations, and the ways to use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Preprocessing
from vexport.deps import tool_versions
from vexport.engine.cache import default_folder
from vexport.errors import InputError
from vexport.pipeline.gate_images import Labelled, find_labels, measured_images, read_labels
from vexport.pipeline.graphs import GraphSource
from vexport.pipeline.subject import Subject

if TYPE_CHECKING:
    import onnx

    from vexport.run.calibrate import Statistics
    from vexport.run.calibration_images import Loader, Split
    from vexport.run.image_sets import ImageSet
    from vexport.run.runner import Array
    from vexport.run.thresholds import Method

ENOUGH_UNUSED = 200
OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class QuantizeOptions:
    """How a graph is quantised.

    Args:
        images: How many calibration images are taken; an eighth of them, but at most 128, is held out.
        seed: Of their choice.
        method: How ranges are chosen; `auto` tries all and keeps that with the least error on the held-out images.
        equalize: Whether channels may be rescaled between neighbouring convolutions, where that lowers the error.
        correct_biases: Whether biases may take up what rounding shifts, where that lowers the error.
        mixed: Whether convolutions may be left in floating point where the gate is missed otherwise.
        keep: Names of convolutions that are left in floating point in any case.
        max_drop: How many points of top-1 may be lost.
        steps: Whether every step from naive INT8 to the result is measured on its own.

    Raises:
        InputError: a number is out of its range.
    """

    images: int = 512
    seed: int = 0
    method: Method | Literal["auto"] = "auto"
    equalize: bool = True
    correct_biases: bool = True
    mixed: bool = True
    keep: tuple[str, ...] = ()
    max_drop: float = 0.5
    steps: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))
        if not 0 <= self.max_drop <= 100:
            raise InputError(
                f"--max-drop {self.max_drop:g} is not within 0 and 100", hint="give points of top-1, as 0.5"
            )
        if self.images < 2:
            raise InputError(f"--images {self.images} is too few", hint="one is measured and one held out at the least")


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
        labelled: Labelled images for the accuracy, if there are any.
        options: How it is done.
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
    labelled: Labelled
    options: QuantizeOptions
    threads: int | None


def choose_labels(
    calib: Path,
    evaluate_on: Path | None,
    images: ImageSet,
    split: Split,
    chosen: Sequence[dict[str, Any]],
    subject: Subject,
    how: Preprocessing,
    stack: ExitStack,
) -> Labelled:
    """Labelled images that were not calibrated on: of a folder given for that, or of the calibration folder itself.

    Args:
        calib: What was given to calibrate on.
        evaluate_on: A folder or .npz given for the accuracy.
        images: What is in `calib`.
        split: What each image of it is used for.
        chosen: Name, hash and part of those that are used.
        subject: The FP32 graph.
        how: How images are prepared.
        stack: Closes what is opened.

    Raises:
        InputError: what was given for that does not fit.
    """
    if evaluate_on is not None:
        return read_labels(evaluate_on, measured_images(calib, images, chosen), subject, how, stack)
    # Sorted names, so that what is spread over them is spread over the classes. Held-out images choose between the ways
    # to quantise: where there are enough others, they do not count as well.
    others = split.unused if len(split.unused) >= ENOUGH_UNUSED else (*split.held_out, *split.unused)
    return find_labels(calib, images, sorted(others), subject, how)


def find_statistics(
    job: Job,
    model: onnx.ModelProto,
    tensors: list[str],
    loader: Loader,
    use_cache: bool,
    on_progress: OnProgress,
    said: str = "measuring activations",
) -> Statistics:
    """What the activations are like, measured or known from before.

    Args:
        job: What is quantised.
        model: The FP32 graph that is measured: the statistics are kept under its hash.
        tensors: That are measured.
        loader: Of the calibration images.
        use_cache: Whether statistics from before will do.
        on_progress: Told how many images are done.
        said: What it is told.

    Raises:
        InputError: see `collect_statistics` and `Loader.batches`.
    """
    from vexport.run.calibrate import collect_statistics
    from vexport.run.statistics_cache import StatisticsCache, graph_digest

    measured = {entry["name"]: entry["sha256"] for entry in job.chosen if entry["part"] == "calibration"}
    request = {
        "graph": graph_digest(model),
        "tensors": tensors,
        "images": list(measured.values()),
        "preprocessing": job.how.to_json(),
        "versions": tool_versions("onnxruntime", "pillow"),
    }
    cache = StatisticsCache(default_folder())
    known = cache.find(request) if use_cache else None
    if known is not None:
        loader.note_damaged([name for name, sha256 in measured.items() if sha256 in known.skipped])
        return known.statistics
    total = len(job.split.calibration)
    statistics = collect_statistics(
        model,
        tensors,
        loader.batches(job.split.calibration),
        threads=job.threads,
        on_images=lambda done: on_progress(f"{said}: {done} of {total} images", done / total),
    )
    cache.store(request, statistics, {sha256 for name, sha256 in measured.items() if name in loader.skipped})
    return statistics


def load_held_out(loader: Loader, split: Split) -> list[Array]:
    """The held-out images, batch by batch; at most 128, so they stay in memory."""
    return [batch.images for batch in loader.batches(split.held_out, varied=False)]
