"""What the manifest of an INT8 graph says of its images and options, held against what is on the disk by now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Artifact, Graph
from vexport.errors import AccuracyError, InputError
from vexport.pipeline.calibration import QuantizeOptions, choose_labels
from vexport.pipeline.gate_images import Labelled
from vexport.pipeline.subject import Opening, Subject, choose_preprocessing, open_subject
from vexport.workspace import load_artifact

if TYPE_CHECKING:
    from vexport.artifacts import Preprocessing
    from vexport.run.calibration_images import Split
    from vexport.run.image_sets import ImageSet


@dataclass(frozen=True)
class _Found:
    """Images that lie at a path by now, chosen as they were for an INT8 graph.

    Args:
        subject: The INT8 graph, open.
        how: How images are prepared.
        images: All of them.
        split: Which are used, and what for.
        chosen: Name, hash and part of those.
        same: Whether they are those that the graph was calibrated on.
    """

    subject: Subject
    how: Preprocessing
    images: ImageSet
    split: Split
    chosen: list[dict[str, Any]]
    same: bool


def recorded_options(graph: Artifact) -> QuantizeOptions:
    """How a graph was quantised; defaults for what its manifest does not say."""
    told = graph.manifest.options
    known = {field.name: told[field.name] for field in fields(QuantizeOptions) if field.name in told}
    return QuantizeOptions(**known | {"keep": tuple(known.get("keep", ()))})


def recorded_labels(graph: Artifact) -> Path | None:
    """Where the labelled images of its gate are, where they are still there and not those of the calibration."""
    gate = graph.facts.get("gate") or {}
    counted = gate if gate.get("kind") == "accuracy" else gate.get("labelled") or {}
    folder = counted.get("folder")
    if folder is None or folder == graph.facts.get("calibration", {}).get("path") or not Path(folder).exists():
        return None
    return Path(folder)


def is_calibrated_on(graph: Graph, calib: Path) -> bool:
    """Whether a graph was calibrated on the very images that quantising would choose there now.

    Args:
        graph: In INT8.
        calib: As for `quantize_graph`.

    Raises:
        InputError: there are no images, or too few.
    """
    if "calib" not in graph.manifest.options:
        return False
    with ExitStack() as stack:
        return _choose_again(graph, calib, stack).same


def _choose_again(graph: Artifact, calib: Path, stack: ExitStack) -> _Found:
    from vexport.run.calibration_images import describe_images, digest, split_images
    from vexport.run.image_sets import open_images, require_images_at

    require_images_at(calib)
    options = recorded_options(graph)
    subject = open_subject(stack, graph.path, None, Opening(None, False, None, None, (graph.path,)))
    how, _ = choose_preprocessing(subject, None, None)
    images = stack.enter_context(open_images(calib, how))
    split = split_images(images.names, options.images, options.seed)
    images.fetch((*split.calibration, *split.held_out))
    chosen = describe_images(images, split)
    return _Found(subject, how, images, split, chosen, digest(chosen) == graph.manifest.options.get("calib"))


def labels_to_count(int8: Path) -> str | None:
    """The digest of the labelled images that an INT8 graph's accuracy was counted on; None where they are gone."""
    graph = load_artifact(int8)
    gate = graph.facts.get("gate") if graph is not None else None
    if graph is None or not gate or gate["kind"] != "accuracy" or not Path(gate["folder"]).exists():
        return None
    digest: str | None = graph.manifest.options.get("labelled")
    return digest


def count_labels_again(
    int8: Path, derived: bytes, on_share: Callable[[float], None] = lambda _: None
) -> dict[str, Any] | str | None:
    """Count the labels of an INT8 graph's gate on a graph that was made from it.

    Args:
        int8: The INT8 graph; its manifest says what FP32 and itself got right, and how many points may be lost.
        derived: The other graph.
        on_share: Told the share that is done.

    Returns:
        The figures, which held; `not run: ...` where the labelled images are not the same any more; None where labels
        were not what the gate went by.

    Raises:
        AccuracyError: it loses more points against FP32 than were allowed.
    """
    graph = load_artifact(int8)
    gate = graph.facts.get("gate") if graph is not None else None
    if graph is None or not gate or gate["kind"] != "accuracy":
        return None
    try:
        found = _count(graph, gate, derived, on_share)
    except InputError as error:
        return f"not run: {error.message}"
    except OSError as error:
        return f"not run: {error}"
    if isinstance(found, str):
        return f"not run: {found}"
    # Points are shares of whole images: what is left of them after a subtraction is rounding.
    if found["drop_points"] > gate["max_drop_points"] + 1e-9 or found["no_answer"]:
        raise AccuracyError(
            f"with FP16 around its INT8 layers {int8.name} loses {found['drop_points']:.2f} points of top-1, "
            f"{gate['max_drop_points']:g} are allowed",
            details=[
                f"top-1 of {found['images']} labelled images: FP32 {gate['top1_percent_fp32']:.2f} %, "
                f"INT8 {gate['top1_percent_int8']:.2f} %, with FP16 around it {found['top1_percent']:.2f} %",
                *[f"{found['no_answer']} answers are NaN or infinite"] * bool(found["no_answer"]),
            ],
            hint="choose the other --int8-depthwise, quantise it with a larger --max-drop, or build with --fp16",
        )
    return found | {"passed": True}


def _count(
    graph: Artifact, gate: dict[str, Any], derived: bytes, on_share: Callable[[float], None]
) -> dict[str, Any] | str:
    from vexport.pipeline.quantize_gate import BATCH, MAX_DAMAGED
    from vexport.run.ort import OrtRunner
    from vexport.run.stream import count_answers

    with ExitStack() as stack:
        calib = Path(graph.facts["calibration"]["path"])
        again = _choose_again(graph, calib, stack)
        if not again.same:
            return f"the images of {calib} are others by now"
        labelled = _find_labels(graph, gate, calib, again, stack)
        if labelled is None:
            return f"the labelled images of {gate['folder']} are others by now"
        runner = stack.enter_context(OrtRunner(derived, name="with FP16 around INT8"))
        total = len(labelled.samples)
        counted = count_answers(
            [runner],
            labelled.samples,
            labelled.load,
            classes=again.subject.classes,
            batch=BATCH,
            workers=2,
            max_damaged=MAX_DAMAGED,
            on_images=lambda done: on_share(done / total),
        )
    (score,) = counted.scores
    if score.images != gate["images"]:
        return f"{score.images} labelled images can be read, {gate['images']} could when it was quantised"
    top1 = score.top1_percent or 0.0
    return {
        "kind": "accuracy",
        "how": "FP32 arithmetic, every result rounded to FP16; FP32 as counted when it was quantised",
        "images": score.images,
        "folder": gate["folder"],
        "no_answer": score.not_finite,
        "top1_percent_fp32": gate["top1_percent_fp32"],
        "top1_percent_int8": gate["top1_percent_int8"],
        "top1_percent": top1,
        "drop_points": gate["top1_percent_fp32"] - top1,
        "max_drop_points": gate["max_drop_points"],
    }


def _find_labels(
    graph: Artifact, gate: dict[str, Any], calib: Path, again: _Found, stack: ExitStack
) -> Labelled | None:
    """Those of the calibration images themselves, or of a folder given for that: whichever are the very same."""
    folder = Path(gate["folder"])
    for given in (None, folder) if folder == calib else (folder,):
        labelled = choose_labels(calib, given, again.images, again.split, again.chosen, again.subject, again.how, stack)
        if labelled.digest() == graph.manifest.options.get("labelled"):
            return labelled
    return None
