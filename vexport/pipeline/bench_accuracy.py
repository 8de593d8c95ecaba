"""Accuracy of what was measured, by the hash of the artifact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.errors import InputError, VexportError
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_matrix import describe_error
from vexport.pipeline.bench_run import OnStep, Result

EVALUATE_S = 24 * 3600.0  # 50,000 images on a slow CPU take hours


@dataclass(frozen=True)
class Evaluate:
    """Answers images with an artifact; brings top-1 in per cent, how many images there were, and what computed."""

    path: Path
    data: Path
    limit: int | None
    threads: int | None
    trust: bool

    def __call__(self) -> tuple[float, int, str]:
        from vexport.pipeline.evaluate import evaluate

        result = evaluate(self.path, self.data, limit=self.limit, threads=self.threads, trust=self.trust)
        score = result.subject.score
        if score.top1_percent is None:
            raise InputError(f"{self.path.name} answered no image of {self.data}", hint="give images by class")
        return score.top1_percent, score.images, result.subject.backend


def measure_accuracies(
    results: Sequence[Result],
    found: dict[str, dict[str, Any]],
    *,
    data: Path,
    limit: int | None,
    threads: int | None,
    own_process: bool = True,
    on_step: OnStep = lambda _text, _share: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Measure each artifact with trained weights once.

    Args:
        results: Those whose latency was measured.
        found: Takes what comes of it, by hash; it stays where Ctrl-C ends the rest.
        data: Images by class.
        limit: How many of them.
        threads: To compute with.
        own_process: Whether to do it in a process of its own.
        on_step: Told what is going on.
        tell: Told what cannot be had.
    """
    for result in results:
        made = result.cell.made
        if made is None or made.path is None or made.weights == "random" or made.sha256 in found:
            continue
        on_step(f"answering the images of {data} with {made.name}", None)
        work = Evaluate(made.path, data, limit, threads, result.cell.trusted)
        with Apart("accuracy", own_process=own_process) as apart:
            try:
                top1_percent, images, backend = apart.call(f"evaluating {made.name}", work, EVALUATE_S)
            except VexportError as error:
                tell(f"{made.name} has no accuracy: {describe_error(error)}")
                continue
        found[made.sha256] = {
            "top1_percent": top1_percent,
            "source": "measured",
            "images": images,
            "data": str(data),
            # The artifact's usual one: a row of the same file with another backend may compute in another precision.
            "backend": backend,
        }
