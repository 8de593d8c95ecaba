"""Accuracy of what was measured, by the artifact and the backend that ran it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.errors import InputError, VexportError
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_matrix import Cell, describe_error
from vexport.pipeline.bench_run import OnStep, Result

EVALUATE_S = 24 * 3600.0  # 50,000 images on a slow CPU take hours
# A file's hash, its backend and the size of its images: what its answers depend on. The batch is none of it.
AccuracyKey = tuple[str, str, tuple[int, int, int]]


@dataclass(frozen=True)
class Answered:
    """What came of answering the images.

    Args:
        accuracy: As rows have it; None where it could not be measured.
        why_not: The reason then.
    """

    accuracy: Mapping[str, Any] | None
    why_not: str | None = None


@dataclass(frozen=True)
class Evaluate:
    """Answers images with an artifact; brings top-1 in per cent, how many images there were, and what computed."""

    path: Path
    backend: str
    input_size: tuple[int, int, int]
    data: Path
    limit: int | None
    threads: int | None
    trust: bool

    def __call__(self) -> tuple[float, int, str]:
        from vexport.pipeline.evaluate import evaluate

        _, height, width = self.input_size
        result = evaluate(
            self.path,
            self.data,
            backend=self.backend,
            size=height if height == width else None,
            limit=self.limit,
            threads=self.threads,
            trust=self.trust,
        )
        score = result.subject.score
        if score.top1_percent is None:
            raise InputError(f"{self.path.name} answered no image of {self.data}", hint="give images by class")
        return score.top1_percent, score.images, result.subject.backend


def accuracy_key(cell: Cell) -> AccuracyKey | None:
    """Rows of one key share an accuracy; None where there is no artifact."""
    return (cell.made.sha256, cell.backend, cell.input_size) if cell.made is not None else None


def measure_accuracies(
    results: Sequence[Result],
    found: dict[AccuracyKey, Answered],
    *,
    data: Path,
    limit: int | None,
    threads: int | None,
    own_process: bool = True,
    on_step: OnStep = lambda _text, _share: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Measure each artifact with trained weights once with each backend that was timed.

    Args:
        results: Those whose latency was measured.
        found: Takes what comes of it; it stays where Ctrl-C ends the rest.
        data: Images by class.
        limit: How many of them.
        threads: To compute with.
        own_process: Whether to do it in a process of its own.
        on_step: Told what is going on.
        tell: Told what cannot be had.
    """
    todo: dict[AccuracyKey, Evaluate] = {}
    for result in results:
        made, backend, size = result.cell.made, result.cell.backend, result.cell.input_size
        if made is None or made.path is None or made.weights == "random":
            continue
        key = (made.sha256, backend, size)
        if key not in found:
            todo.setdefault(key, Evaluate(made.path, backend, size, data, limit, threads, result.cell.trusted))
    for number, (key, work) in enumerate(todo.items(), start=1):
        what = f"{work.path.name} with {work.backend}"
        on_step(f"answering the images of {data}: {what} ({number} of {len(todo)})", None)
        with Apart("accuracy", own_process=own_process) as apart:
            try:
                top1_percent, images, backend = apart.call(f"evaluating {what}", work, EVALUATE_S)
            except VexportError as error:
                reason = describe_error(error)
                tell(f"{what} has no accuracy: {reason}")
                found[key] = Answered(None, reason)
                continue
        found[key] = Answered(
            {
                "top1_percent": top1_percent,
                "source": "measured",
                "images": images,
                "data": str(data),
                "backend": backend,
            }
        )
