"""Accuracy of any artifact on a folder of images, one batch after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Evaluation, Manifest, Parent, Preprocessing
from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.pipeline.evaluation import EvalResult, Evaluated
from vexport.pipeline.subject import (
    Opening,
    Subject,
    choose_preprocessing,
    describe,
    label_folders,
    open_subject,
    require_comparable,
    require_size,
)
from vexport.workspace import read_manifest, require_clear, require_file, stage

if TYPE_CHECKING:
    from vexport.run.labels import ClassFolders, Labelling
    from vexport.run.runner import Runner
    from vexport.run.stream import Counted

MAX_DAMAGED = 10
# Decoding takes the time beside a GPU; more threads than this only take memory.
MOST_DECODERS = 8
LIBRARIES = ("torch", "timm", "onnxruntime", "pillow", "numpy")


def evaluate(
    artifact: Path,
    data: Path,
    *,
    against: Path | None = None,
    backend: str | None = None,
    size: int | None = None,
    crop_pct: float | None = None,
    limit: int | None = None,
    real: bool = False,
    batch: int = 64,
    max_damaged: int = MAX_DAMAGED,
    least_top1_percent: float | None = None,
    threads: int | None = None,
    trust: bool = False,
    model: str | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    output: Path | None = None,
    force: bool = False,
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> EvalResult:
    """Answer the images of a folder with an artifact and count the right answers.

    Images are decoded a little ahead of the network and forgotten once they are counted: memory does not grow with
    their number.

    Args:
        artifact: A checkpoint in either form, a graph or an engine.
        data: A folder with one subfolder of images per class, or one whose `val`, `validation` or `test` is.
        against: A second artifact to answer the same images, prepared as for the first one, by its usual backend.
        backend: What `artifact` is run with, by its name in `vexport.run.BACKENDS`; None takes its usual one.
        size: Height and width; None takes the artifact's.
        crop_pct: Share of the shorter side that the crop keeps; None takes the artifact's.
        limit: Take so many images only, spread evenly.
        real: Count against ImageNet's ReaL labels too.
        batch: Images per call, as far as the artifact takes them.
        max_damaged: How many images may be damaged; they are skipped.
        least_top1_percent: What `EvalResult.require_passed` asks for.
        threads: Threads to compute with; None leaves the backend's choice.
        trust: Open engines that vexport did not write.
        model: The variant that a checkpoint must be.
        weights_from: Which weights of a training checkpoint to take.
        output: A .json file for the result; None writes nothing.
        force: Overwrite an `output` that vexport did not write.
        on_step: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: the artifact, the folder or an option does not fit, or too many images are damaged; or the backend
            is unknown, takes another kind of artifact or cannot run here.
        MissingDependencyError: the backend's packages are not installed.
        CheckpointError: the checkpoint cannot be loaded.
        EngineError: an engine is not trusted or cannot run here.
        WorkspaceError: `output` cannot be written.
    """
    _require_options(batch, limit, size, crop_pct, max_damaged, least_top1_percent)
    _require_output(output, force)
    for path in filter(None, (artifact, against)):
        require_file(path, "checkpoint, graph or engine")

    from vexport.run.images import load_image
    from vexport.run.labels import read_class_folders
    from vexport.run.stream import count_answers

    on_step("listing images", None)
    folders = read_class_folders(data)
    count = min(limit or folders.images, folders.images)
    graphs = tuple(path for path in (artifact, against) if path is not None and path.suffix.lower() == ".onnx")
    opening = Opening(threads, trust, model, weights_from, graphs)
    with ExitStack() as stack:
        on_step(f"opening {artifact.name}", None)
        first = replace(opening, backend=backend)
        subjects = [open_subject(stack, artifact, (size, size) if size else None, first)]
        if size is not None:
            require_size(subjects[0], size)
        how, origin = choose_preprocessing(subjects[0], crop_pct, size)
        if against is not None:
            on_step(f"opening {against.name}", None)
            subjects.append(open_subject(stack, against, how.input_size[1:], opening))
            require_comparable(*subjects)
        labelling = label_folders(folders, subjects)
        batch = _fitting_batch(subjects[0].runner, batch)
        counted = count_answers(
            [subject.runner for subject in subjects],
            labelling.samples(folders, limit),
            lambda sample: load_image(folders.root / sample.path, how),
            classes=subjects[0].classes,
            batch=batch,
            workers=min(MOST_DECODERS, os.cpu_count() or 1),
            max_damaged=max_damaged,
            real_labels=_real_labels(subjects, folders, limit) if real else None,
            on_images=lambda done: on_step(f"{done} of {count} images", done / count),
        )
        found = _evaluated(subjects, counted)
    result = EvalResult(
        subject=found[0],
        against=found[1] if len(found) > 1 else None,
        agreement=counted.agreement,
        folder=folders.root,
        class_names=labelling.class_names,
        labelling=labelling.how,
        preprocessing=how,
        prepared=describe(how, origin),
        batch=batch,
        skipped=counted.skipped,
        notes=tuple(_notes(folders, labelling, count, found, subjects, how)),
        least_top1_percent=least_top1_percent,
    )
    if output is None:
        return result
    request = {"data": str(data), "limit": limit, "size": size, "crop_pct": crop_pct, "real": real, "batch": batch}
    request |= {"from": weights_from, "backend": backend}
    return replace(result, record=_write(result, output, request, force))


def _require_options(
    batch: int,
    limit: int | None,
    size: int | None,
    crop_pct: float | None,
    max_damaged: int,
    least_top1_percent: float | None,
) -> None:
    for option, value in (("--batch", batch), ("--limit", limit), ("--size", size)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} is not positive", hint="give 1 or more")
    if max_damaged < 0:
        raise InputError(f"--max-damaged {max_damaged} is negative", hint="0 allows none")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise InputError(
            f"--crop-pct {crop_pct:g} is not a share above 0 and up to 1", hint="0.875 keeps 7 of 8 pixels"
        )
    if least_top1_percent is not None and not 0 <= least_top1_percent <= 100:
        raise InputError(f"--min-top1 {least_top1_percent:g} is not within 0 and 100", hint="give per cent, as 76.4")


def _require_output(output: Path | None, force: bool) -> None:
    """Refuse before the work what could not be written after it."""
    if output is None:
        return
    if output.suffix != ".json":
        raise InputError(f"{output} does not end in .json", hint="name it so")
    if output.with_suffix("").is_file():
        raise InputError(f"{output} is the name of {output.with_suffix('').name}'s manifest", hint="name it otherwise")
    require_clear(output, force=force)


def _fitting_batch(runner: Runner, batch: int) -> int:
    """The nearest batch that a runner takes."""
    from vexport.run.runner import batch_range

    least, most = batch_range(runner)
    return max(least, min(batch, most or batch))


def _real_labels(subjects: Sequence[Subject], folders: ClassFolders, limit: int | None) -> Mapping[str, Sequence[int]]:
    from vexport.run.imagenet import CLASSES, read_real_labels, require_real_names

    if subjects[0].classes != CLASSES:
        raise InputError(
            f"ReaL labels are of ImageNet's {CLASSES} classes, {subjects[0].path.name} tells "
            f"{subjects[0].classes} apart",
            hint="leave --real out",
        )
    labels = read_real_labels()
    require_real_names((file for _, file in folders.choose(limit)), labels)
    return labels


def _evaluated(subjects: Sequence[Subject], counted: Counted) -> list[Evaluated]:
    reals = counted.reals or (None,) * len(subjects)
    return [
        Evaluated(subject.path, subject.sha256, subject.runner.backend, score, real)
        for subject, score, real in zip(subjects, counted.scores, reals, strict=True)
    ]


def _notes(
    folders: ClassFolders,
    labelling: Labelling,
    count: int,
    found: Sequence[Evaluated],
    subjects: Sequence[Subject],
    how: Preprocessing,
) -> Iterator[str]:
    from vexport.run.labels import shorten

    yield from folders.notes
    filled = set(folders.filled)
    without = [name for name in labelling.class_names if name not in filled]
    if without:
        yield f"{len(without)} of {len(labelling.class_names)} classes have no images: {shorten(without)}"
    if count < folders.images:
        yield f"{count} of {folders.images} images, spread evenly"
    for one in found:
        if one.score.not_finite:
            yield f"{one.path.name} answers {one.score.not_finite} image(s) with logits that are not finite: wrong"
    for other in subjects[1:]:
        own = other.facts.preprocessing
        if own is not None and own != how:
            yield f"{other.path.name} would prepare images otherwise: {describe(own, 'of its own')}"
    for subject in subjects:
        if _is_unproven(subject.path):
            yield f"{subject.path.name} is not proven against its graph yet: `vexport check` proves it"


def _is_unproven(path: Path) -> bool:
    """Whether an engine still awaits its proof; an evaluation records none, so it proves none."""
    manifest = read_manifest(path) if path.suffix.lower() in (".engine", ".plan") else None
    return manifest is not None and all(entry.get("result") == "not run" for entry in manifest.parity)


def _write(result: EvalResult, output: Path, request: dict[str, Any], force: bool) -> Evaluation:
    subject = result.subject
    facts = {"images": subject.score.images, "top1_percent": subject.score.top1_percent, "passed": result.passed}
    with stage(output, force=force) as staging:
        staging.path.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
        return staging.publish(
            Evaluation,
            lambda sha256, size: Manifest(
                "evaluation",
                sha256,
                size,
                Parent(subject.path.name, subject.sha256),
                request,
                facts,
                versions=tool_versions(*LIBRARIES),
            ),
        )
