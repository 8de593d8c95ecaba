"""Rooflines of what was measured: graphs counted, layers timed, and what the devices could do, measured now.

Layers are timed by the backend's own profiler where it tells the time on the device: ONNX Runtime's on the CPU, an
engine's on the GPU. Other cells are held against the bound of their network as a whole, counted from a graph of the
same network and precision: their own, or one that another cell opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vexport.bench.device import DEVICE
from vexport.bench.peak import CPU_PRECISIONS, GPU_PRECISIONS, PeakRates
from vexport.bench.profile import MeasurePeaks, ProfileEngine, ProfileGraph
from vexport.bench.roofline import NetworkRoofline, Tf32, make_roofline, multiplies_in
from vexport.errors import VexportError
from vexport.graph.fused import GraphCost, count_fused
from vexport.graph.inspect import read_graph
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_int8 import as_computed, int8_layers
from vexport.pipeline.bench_matrix import Cell, describe_error
from vexport.pipeline.bench_run import OnStep, Result
from vexport.pipeline.bench_tf32 import tf32_allowed

if TYPE_CHECKING:
    from vexport.bench.layer_times import LayerTimes
    from vexport.bench.peak_work import Device

PEAKS_S, PROFILE_S = 600.0, 600.0  # until they count as hung
Key = tuple[object, ...]


@dataclass
class Rooflines:
    """What was found so far; it stays where Ctrl-C ends the rest.

    Args:
        peaks: What each device can do.
        by_cell: Keys of cells to their rooflines.
    """

    peaks: dict[str, PeakRates] = field(default_factory=dict)
    by_cell: dict[Key, NetworkRoofline] = field(default_factory=dict)

    @property
    def main_peaks(self) -> PeakRates | None:
        """Those of the GPU where there are any."""
        return self.peaks.get("cuda") or self.peaks.get("cpu")


@dataclass(frozen=True)
class _Subject:
    """A result and what its network must do."""

    result: Result
    cost: GraphCost
    times: LayerTimes | None
    tf32: Tf32

    @property
    def device(self) -> Device:
        return "cuda" if self.result.cell.on_gpu else "cpu"

    @property
    def precisions(self) -> set[str]:
        """In which peaks are needed."""
        found = {multiplies_in(layer, self.tf32) for layer in self.cost.layers if layer.macs}
        found |= {"fp32"} if "tf32" in found else set()  # for the reader, beside it
        return {"int8" if name == "uint8" else name for name in found}


def measure_rooflines(
    results: Sequence[Result],
    found: Rooflines,
    *,
    threads: int | None,
    own_process: bool = True,
    on_step: OnStep = lambda _text, _share: None,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Hold measured cells against their devices.

    Args:
        results: Those that were measured.
        found: Takes what comes of it.
        threads: As they were measured with.
        own_process: Whether profiles and peaks are taken in processes of their own.
        on_step: Told what is going on.
        tell: Told what cannot be had.
    """
    graphs = _graphs(results)
    subjects: list[_Subject] = []
    known: dict[Key, _Subject] = {}  # a baseline that stands in each part of a group is profiled once
    with Apart("profiles", own_process=own_process) as apart:
        for number, result in enumerate(results, start=1):
            graph = _graph_of(result, graphs)
            if graph is None:
                continue
            on_step(f"profiling {_name(result)} ({number} of {len(results)})", None)
            same = (*result.cell.group, result.cell.name)
            if same in known:
                subjects.append(replace(known[same], result=result))
                continue
            try:
                subjects.append(_count(result, graph, threads, apart, tell))
                known[same] = subjects[-1]
            except VexportError as error:
                tell(f"{_name(result)} has no roofline: {describe_error(error)}")
        apart.close()  # peaks are measured with nothing beside them
        for device in dict.fromkeys(one.device for one in subjects):
            ours = [one for one in subjects if one.device == device]
            peaks = _peaks(device, ours, threads, apart, on_step, tell)
            if peaks is not None:
                found.peaks[device] = peaks
                _hold(ours, peaks, found, tell)


def _graphs(results: Sequence[Result]) -> dict[Key, list[tuple[Cell, Path]]]:
    """Graphs by network, precision and size, with the cells that have them."""
    known: dict[Key, list[tuple[Cell, Path]]] = {}
    for result in results:
        own = _own_graph(result)
        if own is not None:
            known.setdefault(_what(result), []).append((result.cell, own))
    return known


def _own_graph(result: Result) -> Path | None:
    made = result.cell.made
    if made is None:
        return None
    return made.path if made.path is not None and made.path.suffix.lower() == ".onnx" else made.graph


def _graph_of(result: Result, known: Mapping[Key, Sequence[tuple[Cell, Path]]]) -> Path | None:
    """A cell's own graph, or another cell's of the same network."""
    own = _own_graph(result)
    if own is not None or not result.cell.model:
        return own
    return next((path for cell, path in known.get(_what(result), ()) if _is_same_network(result.cell, cell)), None)


def _is_same_network(one: Cell, other: Cell) -> bool:
    """Of one name: a file may be a VanillaNet-9 of other widths or classes than the published one."""
    if one.is_published and other.is_published:
        return True
    parameters = one.counted.get("parameters")
    return parameters is not None and parameters == other.counted.get("parameters")


def _what(result: Result) -> Key:
    return (result.cell.model or result.cell.name, result.cell.precision, result.cell.input_size)


def _count(result: Result, graph: Path, threads: int | None, apart: Apart, tell: Callable[[str], None]) -> _Subject:
    """What a network must do; counted anew where kernels run several of its layers."""
    cell = result.cell
    model, size = read_graph(graph, with_weights=False), cell.input_size[1:]
    in_int8 = int8_layers(cell, result.facts)
    cost, times = count_fused(model, batch=cell.batch, size=size), None
    work = _profile(result, graph, cost, threads)
    if work is not None:
        try:
            times = apart.call(f"profiling {_name(result)}", work, PROFILE_S)
        except VexportError as error:  # its bound is known all the same
            tell(f"the layers of {_name(result)} have no times: {describe_error(error)}")
    if times is not None and times.together:
        cost = count_fused(model, batch=cell.batch, size=size, together=times.together)
    tf32 = tf32_allowed(cell, result.facts) or "nowhere"
    return _Subject(result, as_computed(cost, in_int8), times, tf32)


def _profile(result: Result, graph: Path, cost: GraphCost, threads: int | None) -> Callable[[], LayerTimes] | None:
    cell = result.cell
    path = cell.made.path if cell.made else None
    labels = dict(cost.labels)
    if cell.backend == "onnxruntime":
        return ProfileGraph(graph, cell.batch, cell.input_size, labels, threads)
    if cell.backend in ("tensorrt", "tensorrt-rtx") and path is not None:
        return ProfileEngine(path, cell.batch, cell.input_size, labels, graph, cell.trusted)
    return None


def _peaks(
    device: Device,
    subjects: Sequence[_Subject],
    threads: int | None,
    apart: Apart,
    on_step: OnStep,
    tell: Callable[[str], None],
) -> PeakRates | None:
    needed = {name for one in subjects for name in one.precisions}
    wanted = tuple(name for name in (CPU_PRECISIONS if device == "cpu" else GPU_PRECISIONS) if name in needed)
    if not wanted:
        return None
    what = "processor" if device == "cpu" else "GPU"
    on_step(f"measuring what the {what} could do", None)
    try:
        peaks: PeakRates = apart.call(
            f"the peaks of the {what}", MeasurePeaks(wanted, threads if device == "cpu" else None, device), PEAKS_S
        )
    except VexportError as error:
        tell(f"no rooflines on the {what}: {describe_error(error)}")
        return None
    finally:
        apart.close()
    return peaks


def _hold(subjects: Sequence[_Subject], peaks: PeakRates, found: Rooflines, tell: Callable[[str], None]) -> None:
    for one in subjects:
        result = one.result
        try:
            roofline = make_roofline(
                result.cell.network, one.cost, peaks, measured_ms=_measured_ms(result), times=one.times, tf32=one.tf32
            )
        except VexportError as error:
            tell(f"{_name(result)} has no roofline: {describe_error(error)}")
            continue
        # Layers without times are the same in every cell of a network: the figures of the whole are enough there.
        detailed = one.times is not None or not (result.cell.on_gpu or _own_graph(result) is None)
        found.by_cell[result.cell.key] = replace(roofline, detailed=detailed)


def _measured_ms(result: Result) -> float:
    """The device's own time where it is told apart: images and launches are no part of the bound."""
    device = result.samples.part(DEVICE)
    return device.median_ms if device is not None and device.count else result.samples.median_ms


def _name(result: Result) -> str:
    cell = result.cell
    return f"{cell.network}, {cell.backend} {cell.precision.upper()}, batch {cell.batch}"
