"""What the manifest of a quantised graph says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vexport.pipeline.calibration import Job
from vexport.pipeline.convert import fixed_batch
from vexport.pipeline.held_out import Recorded
from vexport.pipeline.quantize_search import Found

if TYPE_CHECKING:
    import onnx

    from vexport.run.calibration_images import Loader

FEW = 16
HALF = 0.5


def describe_result(
    job: Job,
    model: onnx.ModelProto,
    found: Found,
    reference: Recorded,
    loader: Loader,
    gate: dict[str, Any],
) -> dict[str, Any]:
    """The facts of a quantised graph for its manifest.

    Args:
        job: What was quantised.
        model: The FP32 graph.
        found: What the search ended with.
        reference: The FP32 answers to the held-out images.
        loader: Of the images.
        gate: The figures of the gate, which held.
    """
    from vexport.graph.inspect import count_operators, count_parameters
    from vexport.graph.quantize import conv_edges

    images, best = job.images, found.best
    int8 = best.model
    layers = conv_edges(int8)
    share = _share_of_macs(model, {edges.node for edges in layers if edges.quantised})
    kept = dict.fromkeys(best.left_out, "the gate is missed with it in INT8")
    return job.source.facts | {
        "precision": "int8",
        "batch": fixed_batch(model),
        "kept_fp32": kept | dict.fromkeys(job.options.keep, "asked for with --keep"),
        "calibration": {
            "path": job.calib,
            "kind": images.kind,
            "found": len(images.names),
            "measured": sum(name not in loader.skipped for name in job.split.calibration),
            "held_out": sum(name not in loader.skipped for name in job.split.held_out),
            "prepared": job.prepared,
            "skipped": loader.skipped,
            "images": [
                entry | {"part": "skipped"} if entry["name"] in loader.skipped else entry for entry in job.chosen
            ],
        },
        "operators": count_operators(int8),
        "nodes": len(int8.graph.node),
        "parameters": count_parameters(model),
        "opset": int8.opset_import[0].version,
        "method": best.method,
        "equalised": best.form.name == "equalised",
        "bias_corrected": best.corrected,
        "bias_correction": [row.to_json() for row in best.correction],
        "tried": [candidate.to_json() for candidate in found.tried],
        "equalisation": found.equalised.to_json() if found.equalised else None,
        "layers": [edges.to_json() for edges in layers],
        "int8_share_of_macs": share,
        "gate": gate,
        "notes": _notes(job, found, gate, reference.classes, share),
    }


def _share_of_macs(model: onnx.ModelProto, nodes: set[str]) -> float:
    """Which share of a graph's multiply-accumulates these nodes do."""
    from vexport.graph.cost import count_layers

    layers = count_layers(model)
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.name in nodes) / total if total else 0.0


def _notes(job: Job, found: Found, gate: dict[str, Any], classes: set[int], share: float) -> list[str]:
    notes = []
    held_out = len(job.split.held_out)
    if held_out < FEW:
        notes.append(f"only {held_out} image(s) held out: the figures say little")
    histograms = found.forms[0].statistics.histograms
    dead = [name for name, histogram in histograms.items() if not histogram.largest]
    if dead:
        notes.append(f"always 0 on these images: {', '.join(dead)}")
    if job.labelled.left_out:
        notes.append(f"{job.labelled.left_out} labelled image(s) were calibrated on and are left out of the accuracy")
    if gate["kind"] == "agreement" and job.labelled.source is not None:
        notes.append(gate["why"])
    if gate["kind"] == "accuracy" and gate["few"]:
        notes.append(
            f"one of {gate['images']} labelled images is {100 / gate['images']:.2g} points: the accuracy says little, "
            "and agreement was asked as well"
        )
    if gate["kind"] == "agreement" and len(classes) == 1:
        notes.append(
            f"FP32 answers class {min(classes)} to all held-out images: the share of equal classes is no proof"
        )
    source = job.labelled.source
    if source is not None and (job.images.kind == "array") != (source.suffix.lower() == ".npz"):
        notes.append(
            f"whether images of {source} were calibrated on cannot be told: only one of the two is prepared already"
        )
    if found.best.method == "trained":
        notes.append("trained for INT8: neither equalised nor corrected; --method calibrates anew")
    if share < HALF:
        notes.append(f"only {share:.0%} of the multiply-accumulates are in INT8")
    if found.equalised is not None and not found.equalised.exact:
        notes.append(
            f"equalisation was not used: it changes the answers by {found.equalised.float64_error:.1e} in float64 and "
            f"{found.equalised.fp32_error:.1e} in FP32"
        )
    left_out = [name for name in found.best.left_out if name not in job.options.keep]
    if left_out:
        notes.append(f"left in floating point, or the gate would be missed: {', '.join(left_out)}")
    return notes
