"""The artifacts of an evaluation, opened: their size, how their images are prepared, which classes they know."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.pipeline.facts import ArtifactFacts, read_facts
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.labels import ClassFolders, Labelling
    from vexport.run.runner import Runner

FULL_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class Subject:
    """An artifact that is open.

    Args:
        path: The file.
        sha256: Its hash.
        facts: What it says of its images and classes.
        runner: Runs it.
        size: C, H and W that it computes at.
        classes: How many it tells apart.
    """

    path: Path
    sha256: str
    facts: ArtifactFacts
    runner: Runner
    size: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class Opening:
    """How artifacts are opened; `open_runner` says what each means."""

    threads: int | None
    trust: bool
    model: str | None
    weights_from: Literal["ema", "model"] | None
    graphs: tuple[Path, ...]
    backend: str | None = None


def open_subject(stack: ExitStack, path: Path, wanted: tuple[int, int] | None, how: Opening) -> Subject:
    """Open an artifact and let it answer once.

    Args:
        stack: Closes it.
        path: The file.
        wanted: Height and width, where the artifact leaves them open; None takes what it says of its images.
        how: The options.

    Raises:
        VexportError: see the tree in errors.py.
    """
    import numpy as np

    from vexport.run import open_runner
    from vexport.run.runner import batch_range

    sha256, facts = hash_file(path), read_facts(path, model=how.model, weights_from=how.weights_from)
    own = facts.preprocessing.input_size if facts.preprocessing else FULL_SIZE
    asked = (own[0], *wanted) if wanted else own
    runner = stack.enter_context(
        open_runner(
            path,
            backend=how.backend,
            threads=how.threads,
            weights_from=how.weights_from,
            model=how.model,
            input_size=asked,
            trust=how.trust,
            graphs=how.graphs,
        )
    )
    channels, height, width = (fixed or side for fixed, side in zip(runner.input_shape[1:], asked, strict=True))
    logits = runner(np.zeros((batch_range(runner)[0], channels, height, width), np.float32))
    return Subject(path, sha256, facts, runner, (channels, height, width), logits.shape[1])


def require_size(subject: Subject, size: int) -> None:
    """Refuse a height and width that an artifact does not compute at.

    Raises:
        InputError: it is fixed to another one.
    """
    from vexport.run.runner import times

    if subject.size[1:] != (size, size):
        raise InputError(
            f"{subject.path.name} takes {times(subject.size)} only, not --size {size}",
            hint="leave --size out, or export the network for that size",
        )


def require_comparable(a: Subject, b: Subject) -> None:
    """Refuse two artifacts that do not answer the same question.

    Raises:
        InputError: their sizes, the number of their classes, or the names differ.
    """
    from vexport.run.runner import times

    if a.size != b.size:
        raise InputError(
            f"{a.path.name} takes {times(a.size)}, {b.path.name} takes {times(b.size)}",
            hint="compare artifacts of one size; --size sets that of a checkpoint",
        )
    if a.classes != b.classes:
        raise InputError(
            f"{a.path.name} tells {a.classes} classes apart, {b.path.name} {b.classes}",
            hint="compare networks of the same classes",
        )
    names = a.facts.class_names, b.facts.class_names
    if None not in names and names[0] != names[1]:
        raise InputError(
            f"{a.path.name} and {b.path.name} do not have the same classes in the same order",
            hint="compare networks of the same classes",
        )


def choose_preprocessing(subject: Subject, crop_pct: float | None, size: int | None) -> tuple[Preprocessing, str]:
    """How images are prepared, and where that is known from, in words.

    Raises:
        InputError: no image can be prepared like this.
    """
    from vexport.run.images import require_sound

    channels = subject.size[0]
    how, origin = subject.facts.preprocessing, f"as {subject.path.name} says"
    if how is None:
        how, origin = Preprocessing(), f"as usual for ImageNet, since {subject.path.name} does not say"
        if channels != len(how.mean):
            how = replace(how, mean=(0.5,) * channels, std=(0.5,) * channels)
    given = [f"--size {size}"] * (size is not None)
    if crop_pct is not None:
        how, given = replace(how, crop_pct=crop_pct), [*given, f"--crop-pct {crop_pct:g}"]
    how = replace(how, input_size=subject.size)
    require_sound(how)
    return how, ", with ".join([origin, *([" and ".join(given)] if given else [])])


def describe(how: Preprocessing, origin: str) -> str:
    """A preprocessing in words, with where it is known from."""
    from vexport.run.images import describe_preparation

    return f"test crop {origin}: {describe_preparation(how)}"


def label_folders(folders: ClassFolders, subjects: Sequence[Subject]) -> Labelling:
    """Which class each folder is: by the names that an artifact knows, by ImageNet's, else by order.

    Raises:
        InputError: the folders do not fit.
    """
    from vexport.run.imagenet import CLASSES, read_synsets
    from vexport.run.labels import label_by_name, label_by_order, require_classes

    classes, name = subjects[0].classes, subjects[0].path.name
    for subject in subjects:
        known = subject.facts.class_names
        if known is None:
            continue
        if len(known) != classes:
            raise InputError(
                f"{subject.path.name} names {len(known)} classes and gives {classes} logits", hint="make it again"
            )
        return label_by_name(folders, known, artifact=subject.path.name)
    if classes == CLASSES and set(folders.names) <= set(synsets := read_synsets()):
        return label_by_name(folders, synsets, artifact=name, how="folders are ImageNet's classes by name")
    require_classes(folders)
    return label_by_order(folders, classes, artifact=name)
