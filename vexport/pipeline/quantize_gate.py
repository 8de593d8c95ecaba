"""Whether an INT8 graph is as good as it must be: accuracy where there are labels, agreement where there are none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.errors import AccuracyError, GateError, InputError, ParityError
from vexport.pipeline.subject import Subject, label_folders

if TYPE_CHECKING:
    import onnx

    from vexport.artifacts import Preprocessing
    from vexport.run.compare import Agreement
    from vexport.run.labels import ClassFolders, Labelling, Sample
    from vexport.run.runner import Array, Runner

LEAST_TOP1 = 0.95
LEAST_COSINE = 0.99
# Labelled images that were not measured serve the gate, up to so many: with 64 a single image is 1.6 points.
MOST_GATE_IMAGES = 1024
SENSITIVITY_IMAGES = 16
BATCH = 16
MAX_DAMAGED = 10
LISTED = 12


@dataclass(frozen=True)
class Labelled:
    """Labelled images for the gate.

    Args:
        root: The folder that holds the class folders.
        samples: Images and labels; none of them was calibrated on.
        how: How folders became classes, in words.
        left_out: Images that were left out because they were calibrated on.
    """

    root: Path
    samples: tuple[Sample, ...]
    how: str
    left_out: int


class Recorded:
    """The FP32 graph's answers to held-out batches, computed once.

    Args:
        runner: The FP32 graph.
        batches: What it will be asked for.
    """

    def __init__(self, runner: Runner, batches: Sequence[Array]) -> None:
        from vexport.run.runner import answer

        self.batches = list(batches)
        self._answers = {id(batch): answer(runner, batch) for batch in self.batches}

    def __call__(self, images: Array) -> Array:
        return self._answers[id(images)]

    def compare(self, runner: Runner, limit: int | None = None) -> Agreement:
        """How far another network's answers are apart, on all batches or on the first ones."""
        from vexport.run.compare import Agreement, compare
        from vexport.run.runner import answer

        found = compare(self, lambda images: answer(runner, images), self.batches[:limit], float("inf"))
        # Whether that is close enough is for the gate to say: the figures only, without compare's own verdict.
        return Agreement(**{field.name: getattr(found, field.name) for field in fields(Agreement)})


def damage(found: Agreement) -> float:
    """One figure to rank by: the root mean square error, which says more of few images than the largest error does."""
    return found.rms_rel if found.finite else float("inf")


def find_labels(calib: Path, unmeasured: Sequence[str], subject: Subject) -> Labelled | None:
    """The labels of a calibration folder, where its subfolders are classes that the artifact knows by name.

    Args:
        calib: What was given to calibrate on.
        unmeasured: Its images, relative to it, that were not calibrated on.
        subject: The FP32 graph.
    """
    from vexport.run.imagenet import CLASSES, read_synsets
    from vexport.run.labels import Sample, label_by_name, read_class_folders, require_classes

    known = subject.facts.class_names or (read_synsets() if subject.classes == CLASSES else None)
    if known is None or len(known) != subject.classes or not calib.is_dir():
        return None
    try:
        folders = read_class_folders(calib)
        require_classes(folders)
        labelling = label_by_name(folders, known, artifact=subject.path.name)
    except InputError:  # images without labels will do
        return None
    if folders.root != calib:
        return None
    samples = [
        Sample(name, labelling.numbers[name.partition("/")[0]])
        for name in unmeasured
        if name.partition("/")[0] in labelling.numbers and "/" in name
    ]
    count = min(MOST_GATE_IMAGES, len(samples))
    spread = tuple(samples[index * len(samples) // count] for index in range(count))
    return Labelled(calib, spread, labelling.how, 0) if spread else None


def read_labels(folder: Path, measured: Sequence[Path], subject: Subject) -> Labelled:
    """Labelled images of a folder of their own, all but those that were calibrated on.

    Raises:
        InputError: there are no class folders, they do not fit, or every image was calibrated on.
    """
    from vexport.run.labels import read_class_folders

    folders: ClassFolders = read_class_folders(folder)
    labelling: Labelling = label_folders(folders, [subject])
    taken = {os.path.realpath(path) for path in measured}
    samples = tuple(
        sample for sample in labelling.samples(folders) if os.path.realpath(folders.root / sample.path) not in taken
    )
    if not samples:
        raise InputError(
            f"every image of {folder} was calibrated on", hint="give --eval other images, or calibrate on fewer"
        )
    return Labelled(folders.root, samples, labelling.how, folders.images - len(samples))


def measure_gate(
    fp32: Runner,
    int8: Runner,
    held_out: Agreement,
    labelled: Labelled | None,
    how: Preprocessing,
    classes: int,
    *,
    max_drop: float,
    on_share: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Hold an INT8 graph against its FP32 graph.

    Args:
        fp32: The FP32 graph.
        int8: The INT8 file itself.
        held_out: How far the answers to the held-out images are apart.
        labelled: Labelled images; None where there are none.
        how: How images are prepared.
        classes: How many the networks tell apart.
        max_drop: How many points of top-1 may be lost.
        on_share: Told the share that is done.

    Returns:
        `kind` (`accuracy` or `agreement`), `passed`, and the figures with their bounds.
    """
    if labelled is None:
        passed = held_out.finite and held_out.top1_agreement >= LEAST_TOP1 and held_out.cosine >= LEAST_COSINE
        bounds = {"least_top1_agreement": LEAST_TOP1, "least_cosine": LEAST_COSINE}
        return {"kind": "agreement", **held_out.to_json(), **bounds, "passed": passed}
    from vexport.run.images import load_image
    from vexport.run.stream import count_answers

    total = len(labelled.samples)
    counted = count_answers(
        [fp32, int8],
        labelled.samples,
        lambda sample: load_image(labelled.root / sample.path, how),
        classes=classes,
        batch=BATCH,
        workers=2,
        max_damaged=MAX_DAMAGED,
        on_images=lambda done: on_share(done / total),
    )
    before, after = (score.top1_percent or 0.0 for score in counted.scores)
    agreement = counted.agreement
    assert agreement is not None
    return {
        "kind": "accuracy",
        # Points are shares of whole images: what is left of them after a subtraction is rounding.
        "passed": before - after <= max_drop + 1e-9,
        "images": counted.scores[0].images,
        "folder": str(labelled.root),
        "labelling": labelled.how,
        "left_out": labelled.left_out,
        "skipped": dict(counted.skipped),
        "top1_percent_fp32": before,
        "top1_percent_int8": after,
        "drop_points": before - after,
        "max_drop_points": max_drop,
        "only_fp32_right": agreement.only_a,
        "only_int8_right": agreement.only_b,
        "agreement_percent": agreement.agreement_percent,
    }


def measure_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, float],
    convs: Sequence[str],
    reference: Recorded,
    *,
    threads: int | None = None,
    on_share: Callable[[float], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """What each convolution costs when it alone is quantised, the worst first.

    Args:
        model: The FP32 graph.
        ranges: Of the tensors that convolutions take.
        convs: Those that are quantised together.
        reference: The FP32 answers.
        threads: Of ONNX Runtime.
        on_share: Told the share that is done.
    """
    from vexport.graph.quantize import conv_nodes, quantize
    from vexport.run.ort import OrtRunner

    found = []
    every = conv_nodes(model)
    batches = max(1, SENSITIVITY_IMAGES // len(reference.batches[0]))
    for index, conv in enumerate(convs):
        alone = quantize(model, ranges, keep=[name for name in every if name != conv])
        with OrtRunner(alone.SerializeToString(), threads=threads, name=conv) as runner:
            agreement = reference.compare(runner, batches)
        found.append({"node": conv, "damage": damage(agreement), **agreement.to_json()})
        on_share((index + 1) / len(convs))
    return sorted(found, key=lambda row: -row["damage"])


def missed(
    gate: dict[str, Any], candidates: Sequence[dict[str, Any]], sensitivity: Sequence[dict[str, Any]], mixed: bool
) -> GateError:
    """The error for a gate that did not hold: by how much, what was tried, and which layers do the damage."""
    tried = [f"tried {describe_candidate(row)}: {_describe(row)}" for row in candidates]
    if mixed:
        tried.append(f"tried up to {len(sensitivity) - 1} of {len(sensitivity)} layers in floating point: still missed")
    images = sensitivity[0]["images"] if sensitivity else 0
    layers = [f"alone in INT8, on {images} images, the worst first:"] * bool(sensitivity)
    layers += [f"  {row['node']}: {_describe(row)}" for row in sensitivity[:LISTED]]
    if len(sensitivity) > LISTED:
        layers.append(f"  and {len(sensitivity) - LISTED} more")
    worst = sensitivity[0]["node"] if sensitivity else "NODE"
    hint = f"keep the worst layers in FP32 (--keep {worst}), calibrate on other images, or build --fp16"
    if gate["kind"] == "accuracy":
        return AccuracyError(
            f"INT8 loses {gate['drop_points']:.2f} points of top-1, {gate['max_drop_points']:g} are allowed",
            details=[
                f"top-1 of {gate['images']} labelled images: FP32 {gate['top1_percent_fp32']:.2f} %, "
                f"INT8 {gate['top1_percent_int8']:.2f} %",
                *tried,
                *layers,
            ],
            hint=hint,
        )
    return ParityError(
        "the INT8 graph disagrees with the FP32 graph",
        details=[
            f"on {gate['images']} held-out images: {_describe(gate)}",
            f"asked for: cosine {LEAST_COSINE:g}, the same class on {LEAST_TOP1:.0%} (this is not accuracy: there are "
            "no labels)",
            *tried,
            *layers,
        ],
        hint=hint,
    )


def describe_candidate(row: dict[str, Any]) -> str:
    """How a graph was quantised, in words: `equalised, mse, biases corrected`."""
    parts = [row["form"], row["method"], *["biases corrected"] * row["bias_corrected"]]
    return ", ".join(parts)


def _describe(row: dict[str, Any]) -> str:
    if not row["finite"]:
        return "an answer is NaN or infinite"
    sqnr = f"{sqnr_db(row['rms_rel']):.1f} dB" if row["rms_rel"] else "no error"
    return f"{sqnr}, cosine {row['cosine']:.4f}, the same class on {row['top1_agreement']:.0%}"


def sqnr_db(rms_rel: float) -> float:
    """Signal-to-quantisation-noise ratio of the logits, in dB; infinite where there is no noise."""
    return -20 * math.log10(rms_rel) if rms_rel else math.inf
