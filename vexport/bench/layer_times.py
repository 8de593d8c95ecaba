"""Where the time of a network goes, kernel by kernel, as the backend's own profiler tells it.

Profiling costs time of its own, and what a profiler leaves out (waiting, handing tensors from kernel to kernel) is in
no kernel. So the kernels' sum is not the latency: `sum_ms`, `run_ms` (a call while profiled) and the latency that the
clock measured without a profiler are three figures, and are shown as such.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vexport.errors import InputError

_US_PER_MS = 1e3


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a backend.

    Args:
        name: As the backend calls it.
        operator: The backend's: `FusedConv`, `ReorderOutput`; empty where it does not say.
        ms: Median over the runs; 0 where it ran in less than half of them.
        nodes: Labels of the graph's nodes that it is known to compute; none for what the backend put in.
    """

    name: str
    operator: str
    ms: float
    nodes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "operator": self.operator, "ms": self.ms, "nodes": list(self.nodes)}


@dataclass(frozen=True)
class LayerTimes:
    """One network's kernels over several runs.

    Args:
        source: Whose profiler.
        runs: That are counted.
        kernels: In the order of the first run.
        sum_ms: Median of the kernels' sum.
        run_ms: Median of a whole call while profiled; None where the profiler does not say.
    """

    source: str
    runs: int
    kernels: tuple[KernelTime, ...]
    sum_ms: float
    run_ms: float | None = None

    @property
    def unassigned(self) -> tuple[KernelTime, ...]:
        """Kernels that belong to no node: changes of layout and the like."""
        return tuple(kernel for kernel in self.kernels if not kernel.nodes)

    @property
    def together(self) -> tuple[tuple[str, ...], ...]:
        """Nodes that one kernel ran, for `count_fused`."""
        return tuple(kernel.nodes for kernel in self.kernels if len(kernel.nodes) > 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "runs": self.runs,
            "sum_ms": self.sum_ms,
            "run_ms": self.run_ms,
            "unassigned_ms": sum(kernel.ms for kernel in self.unassigned),
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }


def profile_ort(
    graph: Path | bytes,
    images: npt.NDArray[Any],
    labels: Mapping[str, str],
    *,
    threads: int | None = None,
    runs: int = 10,
    warmup: int = 3,
    provider: str = "CPUExecutionProvider",
) -> LayerTimes:
    """Time the kernels of a graph in ONNX Runtime, with its profiler.

    Args:
        graph: Path of an .onnx file, or its bytes.
        images: (N, C, H, W) of any floating type; cast to the graph's.
        labels: Of its nodes, from `count_fused`.
        threads: Within one operator; None leaves ONNX Runtime's choice, one per core.
        runs: That are counted.
        warmup: Runs before.
        provider: Execution provider. On a GPU its events are launches, not device time: use the engine's profiler.

    Raises:
        InputError: it cannot be loaded or run, or runs is not positive.
    """
    require_runs(runs, warmup)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.enable_profiling = 4, True
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            source = graph if isinstance(graph, bytes) else str(graph)
            session = ort.InferenceSession(source, options, providers=[provider])
            given = session.get_inputs()[0]
            feed = {given.name: np.ascontiguousarray(images, dtype=_numpy_type(given.type))}
            for _ in range(warmup + runs):
                session.run(None, feed)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            what = "the graph" if isinstance(graph, bytes) else str(graph)
            first = (str(error).strip().splitlines() or [""])[0][:300]
            raise InputError(
                f"ONNX Runtime cannot profile {what}", details=[first], hint="time it with `vexport bench`"
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return parse_ort_profile(events, labels, warmup=warmup, source=f"ONNX Runtime, {provider}")


def _numpy_type(ort_type: str) -> str:
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
    if ort_type not in names:
        raise InputError(f"the graph takes {ort_type}", hint="only graphs with one floating-point input can be timed")
    return names[ort_type]


def require_runs(runs: int, warmup: int) -> None:
    """Refuse counts that measure nothing.

    Raises:
        InputError: no run is counted, or the warm-up is negative.
    """
    if runs < 1 or warmup < 0:
        raise InputError(f"{runs} runs after {warmup} show nothing", hint="give 1 or more after 0 or more")


def parse_ort_profile(
    events: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    *,
    warmup: int = 0,
    source: str = "ONNX Runtime",
) -> LayerTimes:
    """Read what ONNX Runtime's profiler wrote.

    Args:
        events: Its JSON document.
        labels: Of the graph's nodes.
        warmup: Runs to leave out, from the first.
        source: For the result.

    Raises:
        InputError: it has no run after those.
    """
    calls = [event for event in events if event.get("cat") == "Session" and event.get("name") == "model_run"]
    calls = sorted(calls, key=lambda event: event["ts"])[warmup:]
    if not calls:
        raise InputError("the profile has no run to count", hint="profile more runs than the warm-up has")
    kernels = [event for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})]
    runs: list[dict[tuple[str, str], float]] = []
    for call in calls:
        first, last = call["ts"], call["ts"] + call["dur"]
        taken: dict[tuple[str, str], float] = {}
        for event in kernels:
            if first <= event["ts"] <= last:
                key = (str(event["name"]).removesuffix("_kernel_time"), str(event["args"]["op_name"]))
                taken[key] = taken.get(key, 0.0) + event["dur"] / _US_PER_MS
        runs.append(taken)

    def nodes(name: str, operator: str) -> tuple[str, ...]:
        label = find_label(name, operator, labels)
        return () if label is None else (label,)

    return summarise(runs, nodes, source, [call["dur"] / _US_PER_MS for call in calls])


def find_label(kernel: str, operator: str, labels: Mapping[str, str]) -> str | None:
    """The node that a kernel of ONNX Runtime computes.

    A fused kernel is named after the node or tensor that it ends with, and something is added to it: `_nchwc` for a
    blocked layout, `/MatMulScaleFusion/`, `_token_24`, `fused ` in front. What it puts in itself is named after
    nothing but the operator.

    Args:
        kernel: Its name.
        operator: Of the kernel.
        labels: Name of a node or tensor to the node's label.
    """
    name = kernel.removeprefix("fused ").strip()
    if name in labels:
        return labels[name]
    if name == operator or name.startswith(f"{operator}_token_"):
        return None
    # From the longest beginning on that ends where a name may end.
    for end in range(len(name) - 1, 0, -1):
        if not name[end].isalnum() and name[:end] in labels:
            return labels[name[:end]]
    return None


def summarise(
    runs: Sequence[Mapping[tuple[str, str], float]],
    nodes: Callable[[str, str], tuple[str, ...]],
    source: str,
    run_ms: Sequence[float] | None,
) -> LayerTimes:
    """Medians over runs.

    Args:
        runs: Milliseconds of every kernel, by name and operator.
        nodes: From a kernel's name and operator to the labels of its nodes.
        source: Whose profiler.
        run_ms: Of whole calls, where the profiler tells.
    """
    keys = list(dict.fromkeys(key for taken in runs for key in taken))
    return LayerTimes(
        source=source,
        runs=len(runs),
        kernels=tuple(
            KernelTime(name, operator, statistics.median(taken.get((name, operator), 0.0) for taken in runs), found)
            for name, operator in keys
            for found in (nodes(name, operator),)
        ),
        sum_ms=statistics.median(sum(taken.values()) for taken in runs),
        run_ms=statistics.median(run_ms) if run_ms else None,
    )
