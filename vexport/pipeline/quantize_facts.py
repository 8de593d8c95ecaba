"""What the manifest of a quantised graph says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vexport.pipeline.calibration import Job
from vexport.pipeline.convert import fixed_batch
from vexport.pipeline.quantize_search import Found

if TYPE_CHECKING:
    import onnx

    from vexport.run.calibration_images import Loader

FEW = 16


def describe_result(
    job: Job,
    model: onnx.ModelProto,
    found: Found,
    loader: Loader,
    gate: dict[str, Any],
) -> dict[str, Any]:
    """The facts of a quantised graph for its manifest.

    Args:
        job: What was quantised.
        model: The FP32 graph.
        found: What the search ended with.
        loader: Of the images.
        gate: The figures of the gate, which held.
    """
    from vexport.graph.inspect import count_operators, count_parameters
    from vexport.graph.quantize import conv_edges

    images, best = job.images, found.best
    int8 = best.model
    kept = dict.fromkeys(best.left_out, "the gate is missed with it in INT8")
    return job.source.facts | {
        "precision": "int8",
        "batch": fixed_batch(model),
        "kept_fp32": kept | dict.fromkeys(job.options.keep, "asked for with --keep"),
        "calibration": {
            "path": job.calib,
            "kind": images.kind,
            "found": len(images.names),
            "measured": len(job.split.calibration),
            "held_out": len(job.split.held_out),
            "prepared": job.prepared,
            "skipped": loader.skipped,
            "images": job.chosen,
        },
        "operators": count_operators(int8),
        "nodes": len(int8.graph.node),
        "parameters": count_parameters(model),
        "opset": int8.opset_import[0].version,
        "method": best.method,
        "equalised": best.form.name == "equalised",
        "bias_corrected": best.corrected,
        "tried": [candidate.to_json() for candidate in found.tried],
        "equalisation": found.equalised.to_json() if found.equalised else None,
        "layers": [edges.to_json() for edges in conv_edges(int8)],
        "gate": gate,
        "notes": _notes(job, found, gate),
    }


def _notes(job: Job, found: Found, gate: dict[str, Any]) -> list[str]:
    notes = []
    held_out = len(job.split.held_out)
    if held_out < FEW:
        notes.append(f"only {held_out} image(s) held out: the figures say little")
    histograms = found.forms[0].statistics.histograms
    dead = [name for name, histogram in histograms.items() if not histogram.largest]
    if dead:
        notes.append(f"always 0 on these images: {', '.join(dead)}")
    if job.labelled is not None and job.labelled.left_out:
        notes.append(f"{job.labelled.left_out} labelled image(s) were calibrated on and are left out of the accuracy")
    if found.equalised is not None and not found.equalised.exact:
        notes.append(
            f"equalisation was not used: it changes the answers by {found.equalised.float64_error:.1e} in float64 and "
            f"{found.equalised.fp32_error:.1e} in FP32"
        )
    left_out = [name for name in found.best.left_out if name not in job.options.keep]
    if left_out:
        notes.append(f"left in floating point, or the gate would be missed: {', '.join(left_out)}")
    chance = 100 / job.subject.classes
    if gate["kind"] == "accuracy" and gate["top1_percent_fp32"] < 2 * chance:
        notes.append(f"FP32 is hardly better than guessing ({chance:.1f} %): the accuracy of INT8 says nothing")
    return notes
