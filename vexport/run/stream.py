"""Images on their way through one or two networks: loaded a little ahead, answered in batches, counted, forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vexport.errors import InputError
from vexport.run.accuracy import Agreement, Score, Tally
from vexport.run.imagenet import RealScore, RealTally
from vexport.run.labels import Sample
from vexport.run.runner import Array, Runner, answer

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Counted:
    """What a stream of images showed.

    Args:
        scores: One per network.
        reals: Likewise, against the ReaL labels; empty where they were not given.
        agreement: Of the first two networks; None of one.
        skipped: Images that cannot be read, each with the reason.
    """

    scores: tuple[Score, ...]
    reals: tuple[RealScore, ...]
    agreement: Agreement | None
    skipped: tuple[tuple[str, str], ...]


def count_answers(
    runners: Sequence[Runner],
    samples: Iterable[Sample],
    load: Callable[[Sample], Array],
    *,
    classes: int,
    batch: int,
    workers: int,
    max_damaged: int,
    real_labels: Mapping[str, Sequence[int]] | None = None,
    on_images: Callable[[int], None] = lambda _: None,
) -> Counted:
    """Answer labelled images and count the right answers.

    Args:
        runners: One network, or two to compare.
        samples: The images; read no further than needed.
        load: Loads one, float32 (C, H, W); called from several threads.
        classes: How many the networks tell apart.
        batch: Images per call.
        workers: Threads that load.
        max_damaged: How many images may be damaged.
        real_labels: File name to classes, to count against as well.
        on_images: Told how many images are done.

    Raises:
        InputError: more images are damaged than may be, or every one is.
    """
    tallies = [Tally(classes) for _ in runners]
    reals = [RealTally(real_labels) for _ in runners] if real_labels is not None else []
    agreement = Agreement() if len(runners) > 1 else None
    skipped: list[tuple[str, str]] = []
    done = 0
    for part, images in _batches(samples, load, batch, workers, max_damaged, skipped):
        labels = np.array([sample.label for sample in part])
        answers = [tally.add(answer(runner, images), labels) for runner, tally in zip(runners, tallies, strict=True)]
        for found, real in zip(answers, reals, strict=False):
            real.add(found.tolist(), [sample.path for sample in part])
        if agreement is not None:
            agreement = agreement.with_batch(answers[0], answers[1], labels)
        done += len(part)
        on_images(done + len(skipped))
    if done == 0:
        raise _damaged("none of the images can be read", skipped)
    return Counted(
        tuple(tally.score() for tally in tallies), tuple(real.score() for real in reals), agreement, tuple(skipped)
    )


def _batches(
    samples: Iterable[Sample],
    load: Callable[[Sample], Array],
    batch: int,
    workers: int,
    max_damaged: int,
    skipped: list[tuple[str, str]],
) -> Iterator[tuple[list[Sample], Array]]:
    """Whole batches, and a last one of what is left; damaged images go to `skipped`."""
    part: list[Sample] = []
    images: list[Array] = []
    # One batch ahead: the next one is decoded while the network answers this one.
    for sample, image in load_ahead(samples, load, ahead=batch + workers, workers=workers):
        if isinstance(image, InputError):
            skipped.append((sample.path, "; ".join(image.details) or image.message))
            if len(skipped) > max_damaged:
                raise _damaged(f"more than {max_damaged} image(s) cannot be read", skipped)
            continue
        part.append(sample)
        images.append(image)
        if len(part) == batch:
            stacked = np.stack(images)
            images = []
            yield part, stacked
            part = []
    if part:
        yield part, np.stack(images)


def _damaged(message: str, skipped: Sequence[tuple[str, str]]) -> InputError:
    return InputError(
        message,
        details=[f"{path}: {reason}" for path, reason in skipped],
        hint="copy them again or remove them; --max-damaged allows more",
    )


def load_ahead(
    items: Iterable[T], load: Callable[[T], R], *, ahead: int, workers: int
) -> Iterator[tuple[T, R | InputError]]:
    """Load items in threads, at most `ahead` of them before they are asked for.

    Args:
        items: What to load; read no further than needed.
        load: Loads one; called from several threads.
        ahead: How many loaded or loading items may wait.
        workers: Threads.

    Returns:
        Each item, in order, with what was loaded or why it could not be.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()

    def take() -> tuple[T, R | InputError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except InputError as error:
            return item, error

    with ThreadPoolExecutor(workers, thread_name_prefix="vexport-load") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) >= ahead:
                    yield take()
            while waiting:
                yield take()
        finally:
            # Whoever stops early does not wait for what nobody will look at.
            for _, future in waiting:
                future.cancel()
