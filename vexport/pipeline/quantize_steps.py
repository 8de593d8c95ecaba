"""Every step from FP32 to the INT8 graph measured on its own, on the same images: what each one gives, and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vexport.pipeline.calibration import Job, OnProgress
from vexport.pipeline.quantize_search import Candidate, Found, Search
from vexport.workspace import size_bytes

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Step:
    """A graph on the way.

    Args:
        name: What was done.
        size_bytes: Of the graph with its weights, as a file.
        gate: Its figures, see `measure_gate`; None for FP32 itself.
    """

    name: str
    size_bytes: int
    gate: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {"step": self.name, "size_bytes": self.size_bytes, "gate": self.gate}


def measure_steps(
    job: Job, search: Search, found: Found, gate: dict[str, Any], on_progress: OnProgress
) -> list[dict[str, Any]]:
    """FP32, FP16, naive INT8, and each step up to what was written.

    Naive is min-max without anything else: weights with one scale per tensor, then per channel. A step that the search
    did not keep is measured all the same, and says so.

    Args:
        job: What was quantised.
        search: The search.
        found: What it ended with.
        gate: The figures of what is written.
        on_progress: Told which step is measured.
    """
    plain = found.forms[0]
    largest = {name: one.largest for name, one in plain.statistics.histograms.items()}
    keep = job.options.keep
    steps = [Step("FP32", size_bytes(job.source.path), None)]

    def add(name: str, model: onnx.ModelProto) -> None:
        on_progress(f"measuring: {name}", None)
        steps.append(Step(name, model.ByteSize(), search.gate_in_memory(model, quietly=True)))

    steps.append(_half(job, search, plain.model))
    add("INT8, per-tensor, min-max", search.quantized(plain, "minmax", largest, keep, per_channel=False).model)
    add("INT8, per-channel, min-max", search.quantized(plain, "minmax", largest, keep).model)
    whole = [candidate for candidate in found.tried if candidate.left_out == keep and not candidate.corrected]
    last = None
    for form in found.forms:
        best = min((one for one in whole if one.form is form), key=lambda one: one.damage, default=None)
        if best is not None and (form.name, best.method) != ("plain", "minmax"):
            add(f"+ {'equalisation, ' * (form.name == 'equalised')}{best.method}", best.model)
        last = best or last
    if last is not None and any(one.corrected for one in found.tried):
        known = [one for one in found.tried if one.corrected and (one.form, one.method) == (last.form, last.method)]
        add("+ bias correction", (known[0] if known else search.corrected(last)).model)
    best = found.best
    left_out = len(best.left_out) - len(keep)
    steps.append(Step(f"written: {_describe(best, left_out)}", best.model.ByteSize(), gate))
    return [step.to_json() for step in steps]


def _describe(best: Candidate, left_out: int) -> str:
    parts: list[str] = [best.form.name, best.method]
    parts += ["biases corrected"] * best.corrected
    parts += [f"{left_out} left in floating point"] * bool(left_out)
    return ", ".join(parts)


def _half(job: Job, search: Search, model: onnx.ModelProto) -> Step:
    """The FP16 graph, computed in FP32 with every result rounded: ONNX Runtime would keep FP32 between neighbours."""
    from vexport.graph.precision import convert_precision, emulate_half, largest, overflowing_nodes
    from vexport.pipeline.convert import HEADROOM
    from vexport.run.ranges import measure_ranges

    max_abs = measure_ranges(job.source.path, search.reference.batches)
    half = convert_precision(model, "fp16", keep=overflowing_nodes(model, max_abs, largest("fp16") / HEADROOM))
    return Step("FP16", half.ByteSize(), search.gate_in_memory(emulate_half(half), quietly=True))
