"""Whether an INT8 graph is as good as it must be: accuracy where there are labels, agreement where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vexport.errors import AccuracyError, GateError, ParityError
from vexport.pipeline.gate_images import Labelled
from vexport.pipeline.held_out import HeldOut, Recorded, damage, sqnr_db

if TYPE_CHECKING:
    import onnx

    from vexport.run.runner import Runner

LEAST_TOP1 = 0.95
LEAST_COSINE = 0.99
# On fewer labelled images than these, one more right answer weighs so much that agreement is asked as well.
FEW_LABELLED = 50
# FP32 must be better than guessing by this share of what there is to gain, and by two standard errors, or its accuracy
# says nothing about INT8's.
LEAST_GAIN = 0.1
# Of fewer held-out images one may get another class: 95 % of them would be all.
ENOUGH_FOR_TOP1 = 20
SENSITIVITY_IMAGES = 16
BATCH = 16
MAX_DAMAGED = 10
LISTED = 12


def measure_gate(
    fp32: Runner,
    int8: Runner,
    held_out: HeldOut,
    labelled: Labelled,
    classes: int,
    *,
    max_drop: float,
    on_share: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Hold an INT8 graph against its FP32 graph.

    With labels, top-1 may not drop by more than `max_drop` points. Without any, the held-out answers must agree. Both
    are asked where labels say little: on fewer than 50 images, where one image is more than `max_drop` points, and
    where FP32 itself hardly does better than guessing.

    Args:
        fp32: The FP32 graph.
        int8: The INT8 graph.
        held_out: How far the answers to the held-out images are apart.
        labelled: Labelled images, if there are any.
        classes: How many the networks tell apart.
        max_drop: How many points of top-1 may be lost.
        on_share: Told the share that is done.

    Returns:
        `kind` (`accuracy` or `agreement`), `passed`, the figures with their bounds, and under `agreement` those of the
        held-out images.
    """
    count = held_out.images
    least_top1 = LEAST_TOP1 if count >= ENOUGH_FOR_TOP1 else 1 - 1 / count
    agrees = held_out.finite and held_out.top1_agreement >= least_top1 and held_out.centred_cosine >= LEAST_COSINE
    bounds = {"least_top1_agreement": least_top1, "least_cosine": LEAST_COSINE}
    agreement = {**held_out.to_json(), **bounds, "passed": agrees}
    if labelled.source is None:
        return {"kind": "agreement", "why": labelled.how, "labelled": None, **agreement}
    found = _count(fp32, int8, labelled, classes, on_share)
    found |= {"max_drop_points": max_drop, "agreement": agreement}
    # Points are shares of whole images: what is left of them after a subtraction is rounding.
    kept = found["drop_points"] <= max_drop + 1e-9 and found["no_answer"] == 0
    if is_guessing(found["top1_percent_fp32"] / 100, classes, found["images"]):
        why = (
            f"FP32 is right on {found['top1_percent_fp32']:.1f} % of {found['images']} labelled images, hardly better "
            f"than guessing ({100 / classes:.1f} %): its accuracy says nothing"
        )
        return {"kind": "agreement", "why": why, "labelled": found} | agreement | {"passed": agrees and kept}
    few = found["images"] < FEW_LABELLED or 100 / found["images"] > max_drop
    return {"kind": "accuracy", **found, "few": few, "passed": held_out.finite and kept and (agrees or not few)}


def is_guessing(share: float, classes: int, images: int) -> bool:
    """Whether so many right answers are hardly more than chance.

    Args:
        share: Of right answers.
        classes: That there are to guess among.
        images: How many were asked.
    """
    chance = 1 / classes
    error = math.sqrt(chance * (1 - chance) / images)
    return share - chance < max(2 * error, LEAST_GAIN * (1 - chance))


def drop_interval(only_fp32: int, only_int8: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the drop in points, from the images that one of the two alone gets right (McNemar).

    Args:
        only_fp32: Images that FP32 alone gets right.
        only_int8: Images that INT8 alone gets right.
        images: All of them.
    """
    lost = only_fp32 - only_int8
    # Half an image more on either side, so that the interval of no difference at all is not a point.
    spread = 1.96 * math.sqrt(only_fp32 + only_int8 + 1 - lost**2 / images)
    return 100 * (lost - spread) / images, 100 * (lost + spread) / images


def _count(
    fp32: Runner,
    int8: Runner,
    labelled: Labelled,
    classes: int,
    on_share: Callable[[float], None],
) -> dict[str, Any]:
    from vexport.run.stream import count_answers

    total = len(labelled.samples)
    counted = count_answers(
        [fp32, int8],
        labelled.samples,
        labelled.load,
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
        "images": counted.scores[0].images,
        "folder": str(labelled.source),
        "labelling": labelled.how,
        "left_out": labelled.left_out,
        "skipped": dict(counted.skipped),
        "no_answer": max(score.not_finite for score in counted.scores),
        "top1_percent_fp32": before,
        "top1_percent_int8": after,
        "drop_points": before - after,
        "drop_interval_points": list(drop_interval(agreement.only_a, agreement.only_b, agreement.images)),
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
    gate: dict[str, Any],
    candidates: Sequence[dict[str, Any]],
    sensitivity: Sequence[dict[str, Any]],
    *,
    mixed: bool,
    keep: Sequence[str],
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
    names = " ".join(f"--keep {name}" for name in (*keep, worst))
    hint = f"leave the worst layers in floating point ({names}), calibrate on other images, or build --fp16"
    if gate["kind"] == "accuracy":
        few = [
            f"too few to tell {gate['max_drop_points']:g} points: the held-out answers must agree too: "
            + _describe(gate["agreement"])
        ]
        lost = f"INT8 loses {gate['drop_points']:.2f} points of top-1, {gate['max_drop_points']:g} are allowed"
        within = gate["drop_points"] <= gate["max_drop_points"] and not gate["no_answer"]
        return AccuracyError(
            f"{gate['images']} labelled images are too few to count on, and INT8 answers otherwise" if within else lost,
            details=[
                f"top-1 of {gate['images']} labelled images: FP32 {gate['top1_percent_fp32']:.2f} %, "
                f"INT8 {gate['top1_percent_int8']:.2f} %",
                *[f"{gate['no_answer']} answers are NaN or infinite"] * bool(gate["no_answer"]),
                *few * gate["few"],
                *tried,
                *layers,
            ],
            hint=hint,
        )
    return ParityError(
        "the INT8 graph disagrees with the FP32 graph",
        details=[
            f"on {gate['images']} held-out images: {_describe(gate)}",
            f"asked for: cosine {LEAST_COSINE:g}, the same class on {gate['least_top1_agreement']:.0%}",
            f"this is not accuracy: {gate['why']}",
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
    ratio = "no signal" if row["noise"] is None else f"{sqnr_db(row['noise']):.1f} dB"
    return f"SQNR {ratio}, cosine {row['centred_cosine']:.4f}, the same class on {row['top1_agreement']:.0%}"
