"""From the results of cells to the benchmark's document: rows, verdicts, advice, accuracy beside latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from vexport.bench.advice import conclude
from vexport.bench.report import (
    BASELINE,
    SCHEMA,
    BenchReport,
    Case,
    make_report,
    published_clock,
    row_to_json,
    verdicts,
)
from vexport.bench.scenarios import throughput_over_batches
from vexport.bench.watch import summarise
from vexport.deps import tool_versions
from vexport.model.baselines import network_family, network_label, published_figures
from vexport.pipeline.bench_accuracy import AccuracyKey, Answered, accuracy_key
from vexport.pipeline.bench_int8 import int8_share
from vexport.pipeline.bench_run import Result

if TYPE_CHECKING:
    from vexport.bench.peak import PeakRates
    from vexport.bench.roofline import NetworkRoofline
    from vexport.model.variants import Published

Accuracies = Mapping[AccuracyKey, Answered]


@dataclass(frozen=True)
class Found:
    """Everything that goes into a document.

    Args:
        groups: Results, group by group.
        environment: What was measured on.
        settings: How.
        command: That was given.
        name: Of the recipe; None without one.
        recipe: As resolved; None without one.
        complete: Whether all groups were measured.
        accuracies: What was measured of them, see `measure_accuracies`.
        peaks: What the device can do.
        rooflines: Of results, by the keys of their cells.
        published: Networks that are shown by their published figures alone.
    """

    groups: Sequence[Sequence[Result]]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    command: str
    recipe: Mapping[str, Any] | None = None
    complete: bool = True
    accuracies: Accuracies = field(default_factory=dict)
    peaks: PeakRates | None = None
    rooflines: Mapping[tuple[object, ...], NetworkRoofline] = field(default_factory=dict)
    published: Sequence[str] = ()


def make_document(found: Found) -> tuple[dict[str, Any], BenchReport]:
    """The document, of schema 2, and its rows and samples as they are.

    Args:
        found: What was measured.
    """
    groups, reports = [], []
    host = _host_of_published(found)
    for results in found.groups:
        title = backend_title(results)
        tf32 = _tf32_in_words(results, found.groups)
        report = make_report([(_case(one, title, tf32), one.samples) for one in results], environment={}, settings={})
        reports.append(report)
        device = device_name(results[0], found.environment)
        rows = []
        for result, row, samples in zip(results, report.rows, report.samples, strict=True):
            rows.append(row_to_json(row, samples) | _more(result, found))
        if results is host:
            rows += [_figures_only(name, rows[0]) for name in found.published]
        cell = results[0].cell
        conditions = [one for result in results for one in result.samples.conditions]
        groups.append(
            {
                "backend": report.rows[0].backend,
                "precision": cell.precision.upper(),
                "batch": cell.batch,
                "input_size": list(cell.input_size),
                "mode": "latency",
                "device": device,
                # Which part, and of how many, of cells too many to be open at once.
                "part": list(cell.part) if cell.part != (1, 1) else None,
                "rows": rows,
                "verdicts": verdicts(report.rows, device),
                "conditions": summarise(conditions) if conditions else None,
            }
        )
    settings = {**found.settings, "runners": _runners(found.groups)}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": "vexport",
        "version": tool_versions()["vexport"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": found.command,
        "recipe": dict(found.recipe) if found.recipe else None,
        "baseline": BASELINE,
        "complete": found.complete,
        "environment": dict(found.environment),
        "settings": settings,
        "peaks": found.peaks.to_json() if found.peaks else None,
        "throughput": _throughput(found.groups),
        **conclude(groups),
    }
    rows_and_samples = [pair for one in reports for pair in zip(one.rows, one.samples, strict=True)]
    flat = BenchReport(
        tuple(row for row, _ in rows_and_samples),
        tuple(samples for _, samples in rows_and_samples),
        dict(found.environment),
        settings,
    )
    return document, flat


def _throughput(groups: Sequence[Sequence[Result]]) -> list[dict[str, Any]]:
    """Images per second over batch sizes, of every network that was measured at several."""
    found = throughput_over_batches(
        ((one.cell.network, one.cell.backend, one.cell.precision, one.cell.input_size), one.cell.batch, one.samples)
        for results in groups
        for one in results
    )
    return [
        {
            "network": network,
            "label": network_label(network),
            "backend": backend,
            "precision": precision.upper(),
            "input_size": list(size),
            "batches": [rate.to_json() for rate in rates],
        }
        for (network, backend, precision, size), rates in found.items()
    ]


def device_name(result: Result, environment: Mapping[str, Any]) -> str:
    """What a cell ran on: the GPU or the processor."""
    gpus = environment.get("gpus") or []
    if result.cell.on_gpu:
        return str(gpus[0]) if gpus else "the GPU"
    return str(environment.get("cpu") or "this processor")


def backend_title(results: Sequence[Result]) -> str:
    """As the runners of a group call it, or as the table of backends does where none was opened."""
    from vexport.run.backends import BACKENDS

    told = next((str(one.facts["backend"]) for one in results if one.facts.get("backend")), None)
    return told or BACKENDS[results[0].cell.backend].title


def _tf32_in_words(results: Sequence[Result], groups: Sequence[Sequence[Result]]) -> str:
    """For a backend's title, where its FP32 engines were measured with TF32 and without it."""
    (backend, *_, own) = results[0].cell.group
    kinds = {group[0].cell.group[-1] for group in groups if group[0].cell.backend == backend}
    if own is None or not kinds >= {True, False}:
        return ""
    return " with TF32" if own else " without TF32"


def _case(result: Result, title: str, tf32: str = "") -> Case:
    cell = result.cell
    published = published_figures(cell.model) if cell.model and cell.is_published else None
    return Case(
        network=cell.network,
        backend=str(result.facts.get("backend") or title) + tf32,
        precision=cell.precision.upper(),
        batch=cell.batch,
        input_size=cell.input_size,
        artifact_sha256=cell.made.sha256 if cell.made else None,
        published_top1=published.top1 if published else None,
        published_a100_ms=published_latencies(published, cell.batch).get(published_clock(cell.backend, cell.precision)),
        label=network_label(cell.network),
    )


def published_latencies(published: Published | None, batch: int) -> dict[str, float]:
    """The paper's latencies on an A100 by the clock that they were taken with; all are of one image.

    Args:
        published: A network's figures; None where it has none.
        batch: Images per call of what stands beside them.
    """
    if published is None or batch != 1:
        return {}
    found = {
        "PyTorch": published.a100_pytorch_ms,
        "TensorRT FP32": published.a100_trt_fp32_ms,
        "TensorRT FP16": published.a100_trt_fp16_ms,
    }
    return {clock: ms for clock, ms in found.items() if ms is not None}


def _accuracy(result: Result, measured: Accuracies) -> dict[str, Any] | None:
    """As measured on this artifact with this backend; as published where this is the published network, not in INT8."""
    cell, answered = result.cell, _answered(result, measured)
    if answered is not None and answered.accuracy is not None:
        return dict(answered.accuracy)
    published = published_figures(cell.model) if cell.model and cell.is_published else None
    if published is None or cell.precision == "int8":
        return None
    return {"top1_percent": published.top1, "source": "published", "images": None, "data": "ImageNet"}


def _accuracy_note(result: Result, measured: Accuracies) -> list[str]:
    """Why there is none of its own, where it was to be measured."""
    answered = _answered(result, measured)
    return [f"accuracy not measured: {answered.why_not}"] if answered is not None and answered.why_not else []


def _answered(result: Result, measured: Accuracies) -> Answered | None:
    key = accuracy_key(result.cell)
    return measured.get(key) if key is not None else None


def _more(result: Result, found: Found) -> dict[str, Any]:
    """What a row has besides its figures."""
    cell, made = result.cell, result.cell.made
    published = published_figures(cell.model) if cell.model and cell.is_published else None
    roofline = found.rooflines.get(cell.key)
    counted = {key: cell.counted.get(key) for key in ("depth", "parameters", "gmacs")}
    return {
        "label": network_label(cell.network),
        "family": network_family(cell.model or "") or "others",
        **counted,
        "backend_name": cell.backend,
        "size_bytes": made.size_bytes if made else None,
        "artifact": made.name if made else None,
        "weights": made.weights if made else None,
        "notes": [*(made.notes if made else ()), *_accuracy_note(result, found.accuracies)],
        "int8_share": int8_share(cell, result.facts),
        "accuracy": _accuracy(result, found.accuracies),
        "published_latencies_ms": published_latencies(published, cell.batch),
        "failure": dict(result.failure) if result.failure else None,
        "waiting": dict(result.waiting) if result.waiting else None,
        "roofline": _roofline(roofline, found.peaks) if roofline else None,
    }


def _roofline(roofline: NetworkRoofline, main: PeakRates | None) -> dict[str, Any]:
    """The document has its main device's peaks once; a roofline on another device brings its own."""
    own = roofline.peaks is not main
    return {key: value for key, value in roofline.to_json().items() if own or key != "peaks"}


def _host_of_published(found: Found) -> Sequence[Result] | None:
    """Where rows with published figures alone stand: among eager PyTorch, one image at a time, if that is there."""
    if not found.published or not found.groups:
        return None
    likely = [
        results
        for results in found.groups
        if results[0].cell.backend in ("pytorch-cuda", "pytorch") and results[0].cell.batch == 1
    ]
    return (likely or found.groups)[0]


def _figures_only(name: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a network that was not measured, since no kept library has it."""
    published = published_figures(name)
    assert published is not None, "the recipe was checked"
    empty: dict[str, Any] = {key: [] if isinstance(value, list) else None for key, value in like.items()}
    return empty | {
        "network": name,
        "backend": like["backend"],
        "precision": like["precision"],
        "batch": like["batch"],
        "input_size": like["input_size"],
        "label": network_label(name),
        "family": network_family(name),
        "parameters": round(published.params_m * 1e6),
        "gmacs": published.gmacs,
        "accuracy": {"top1_percent": published.top1, "source": "published", "images": None, "data": "ImageNet"},
        "published_top1": published.top1,
        "published_a100_ms": published.a100_pytorch_ms,
        "published_latencies_ms": published_latencies(published, 1),
        "notes": ["published figures only: no kept library has this network"],
        "unstable": False,
        "count": 0,
        "run": {},
    }


def _runners(groups: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """What the runners say of themselves."""
    return {
        f"{one.cell.network}, {one.facts['backend']}, {one.cell.precision.upper()}, batch {one.cell.batch}": (
            one.facts["runner"]
        )
        for results in groups
        for one in results
        if one.facts.get("runner")
    }
