"""What rooflines need, each done in a process of its own: a device's peaks, and where the time of a network goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vexport.bench.cell import noise

if TYPE_CHECKING:
    from vexport.bench.layer_times import LayerTimes
    from vexport.bench.peak import PeakRates
    from vexport.bench.peak_work import Device


@dataclass(frozen=True)
class MeasurePeaks:
    """Measures what a device can do.

    Args:
        precisions: See `measure_peaks`.
        threads: Likewise.
        device: Likewise.
    """

    precisions: tuple[str, ...]
    threads: int | None = None
    device: Device = "cpu"

    def __call__(self) -> PeakRates:
        from vexport.bench.peak import measure_peaks

        return measure_peaks(self.precisions, device=self.device, threads=self.threads)


@dataclass(frozen=True)
class ProfileGraph:
    """Times the kernels of a graph on the CPU, with ONNX Runtime's profiler.

    Args:
        path: The graph.
        batch: Images per call.
        input_size: C, H and W.
        labels: Of its nodes, from `count_fused`.
        threads: As measured.
    """

    path: Path
    batch: int
    input_size: tuple[int, int, int]
    labels: Mapping[str, str] = field(repr=False)
    threads: int | None = None

    def __call__(self) -> LayerTimes:
        from vexport.bench.layer_times import profile_ort

        return profile_ort(self.path, noise(self.batch, self.input_size), self.labels, threads=self.threads)


@dataclass(frozen=True)
class ProfileEngine:
    """Times the layers of an engine on the GPU, with TensorRT's profiler.

    Args:
        path: The plan.
        batch: Images per call.
        input_size: C, H and W.
        labels: Of the nodes of its graph, from `count_fused`.
        graph: That it was built from; a stripped plan takes its weights from it.
        trust: Open a plan that vexport did not write.
    """

    path: Path
    batch: int
    input_size: tuple[int, int, int]
    labels: Mapping[str, str] = field(repr=False)
    graph: Path | None = None
    trust: bool = False

    def __call__(self) -> LayerTimes:
        from vexport.bench.engine_times import profile_engine

        graphs = [self.graph] if self.graph else []
        images = noise(self.batch, self.input_size)
        return profile_engine(self.path, images, self.labels, trust=self.trust, graphs=graphs)
