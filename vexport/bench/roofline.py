"""How far a network is from what its device could do.

No layer is faster than its arithmetic at the device's peak rate, nor than its bytes at the device's bandwidth: the
larger of the two times is its bound. What a layer is, and which bytes it moves, `vexport.graph.fused` says. Two
bounds of a network follow:

    bound_ms            every layer reads from memory and writes to it: the sum of the layers' bounds
    resident_bound_ms   what lies between the layers stays in a cache: all arithmetic, or weights, input and output

On a GPU large activations do go through memory, and the first is the one to hold a latency against. Where caches are
large, a layer may beat the first bound by reading what the layer before left there; the second holds wherever the
weights are larger than the cache. Only multiply-accumulates count as arithmetic: pointwise work, pools and the like
are bound by memory on every device here, and run beside the matrix units on a GPU. They are counted as is usual, with
the zeros that pad an image; kernels may skip those, which takes 4 % off ResNet-50 and less off VanillaNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vexport.bench.layer_times import LayerTimes
from vexport.bench.peak import PeakRates
from vexport.graph.fused import FusedLayer, GraphCost

Binding = Literal["compute", "memory"]
Tf32 = Literal["everywhere", "convolutions", "matrix products", "nowhere"]


@dataclass(frozen=True)
class LayerRoofline:
    """One layer beside its bound.

    Args:
        layer: What it must do.
        compute_ms: Its multiply-accumulates at the peak rate.
        memory_ms: Its bytes at the bandwidth.
        ridge: Operations per byte from which on arithmetic binds, at its precision; 0 where it does not multiply.
        time_ms: Of its kernels; None where it was not timed, or no kernel is known to be its own.
    """

    layer: FusedLayer
    compute_ms: float
    memory_ms: float
    ridge: float
    time_ms: float | None = None

    @property
    def bound_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)

    @property
    def binds(self) -> Binding:
        return "compute" if self.compute_ms >= self.memory_ms and self.compute_ms > 0 else "memory"

    @property
    def intensity(self) -> float:
        """Operations of its multiply-accumulates per byte."""
        return self.layer.flops / self.layer.bytes_moved if self.layer.bytes_moved else 0.0

    @property
    def efficiency(self) -> float | None:
        """Bound by time; above 1 where it found its input in a cache."""
        return self.bound_ms / self.time_ms if self.time_ms else None

    @property
    def lost_ms(self) -> float:
        """Time beyond the bound; 0 where it was not timed."""
        return max(0.0, (self.time_ms or 0.0) - self.bound_ms)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.layer.to_json(),
            "compute_ms": self.compute_ms,
            "memory_ms": self.memory_ms,
            "bound_ms": self.bound_ms,
            "binds": self.binds,
            "intensity": self.intensity,
            "ridge": self.ridge,
            "time_ms": self.time_ms,
            "efficiency": self.efficiency,
        }


@dataclass(frozen=True)
class NetworkRoofline:
    """A network beside its bounds.

    Args:
        network: Its name.
        cost: What it must do.
        peaks: What the device can do.
        layers: In the graph's order.
        measured_ms: Time of one call, measured without a profiler: on a GPU its own time, where that is told apart.
        times: What a profiler told, where one ran.
        detailed: Whether the layers are told as well as the whole.
    """

    network: str
    cost: GraphCost
    peaks: PeakRates
    layers: tuple[LayerRoofline, ...]
    measured_ms: float | None = None
    times: LayerTimes | None = None
    detailed: bool = True

    @property
    def compute_ms(self) -> float:
        """All arithmetic at the peak rates."""
        return sum(layer.compute_ms for layer in self.layers)

    @property
    def bound_ms(self) -> float:
        """Every layer reads from memory and writes to it."""
        return sum(layer.bound_ms for layer in self.layers)

    @property
    def resident_bound_ms(self) -> float:
        """Only weights, input and output go through memory."""
        return max(self.compute_ms, self.cost.resident_bytes / self.peaks.bandwidth.per_s * 1e3)

    @property
    def binds(self) -> Binding:
        """What binds the layers that make up the larger part of the bound."""
        computing = sum(layer.bound_ms for layer in self.layers if layer.binds == "compute")
        return "compute" if computing > self.bound_ms / 2 else "memory"

    @property
    def intensity(self) -> float:
        """Operations per byte, every layer from memory."""
        return self.cost.flops / self.cost.layer_bytes if self.cost.layer_bytes else 0.0

    @property
    def efficiency(self) -> float | None:
        """Bound by latency."""
        return self.bound_ms / self.measured_ms if self.measured_ms else None

    @property
    def resident_efficiency(self) -> float | None:
        """The other bound by latency."""
        return self.resident_bound_ms / self.measured_ms if self.measured_ms else None

    @property
    def worst(self) -> LayerRoofline | None:
        """The layer that loses most time against its bound; None where no layer was timed."""
        timed = [layer for layer in self.layers if layer.time_ms is not None]
        return max(timed, key=lambda layer: layer.lost_ms, default=None)

    def top(self, count: int = 5) -> tuple[LayerRoofline, ...]:
        """The layers that take most time, or whose bounds are largest where none was timed."""
        ranked = sorted(self.layers, key=lambda layer: (layer.time_ms or 0.0, layer.bound_ms), reverse=True)
        return tuple(ranked[:count])

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "batch": self.cost.batch,
            "flops": self.cost.flops,
            "other_operations": self.cost.operations,
            "layer_bytes": self.cost.layer_bytes,
            "resident_bytes": self.cost.resident_bytes,
            "weight_bytes": self.cost.weight_bytes,
            "input_bytes": self.cost.input_bytes,
            "output_bytes": self.cost.output_bytes,
            "compute_ms": self.compute_ms,
            "bound_ms": self.bound_ms,
            "resident_bound_ms": self.resident_bound_ms,
            "binds": self.binds,
            "intensity": self.intensity,
            "measured_ms": self.measured_ms,
            "efficiency": self.efficiency,
            "resident_efficiency": self.resident_efficiency,
            "memory_only": list(self.cost.unknown),
            "layers": [layer.to_json() for layer in self.layers] if self.detailed else [],
            "profile": self.times.to_json() if self.times else None,
            "peaks": self.peaks.to_json(),
        }


def make_roofline(
    network: str,
    cost: GraphCost,
    peaks: PeakRates,
    *,
    measured_ms: float | None = None,
    times: LayerTimes | None = None,
    tf32: Tf32 = "nowhere",
) -> NetworkRoofline:
    """Hold a network against its device.

    Args:
        network: Its name.
        cost: From `count_fused`, at the batch and size that were measured; where `times` has kernels of several
            layers, counted with `together=times.together`.
        peaks: From `measure_peaks`, in `cost.precisions`, with the threads that were measured.
        measured_ms: Median latency.
        times: From a profiler.
        tf32: Which FP32 layers multiply in TF32: all of engines built so, PyTorch's convolutions on a GPU by default.

    Raises:
        InputError: a precision of the network is not among the peaks.
    """
    taken = _by_layer(cost.layers, times)
    bandwidth = peaks.bandwidth.per_s

    def hold(layer: FusedLayer) -> LayerRoofline:
        rate = peaks.rate(multiplies_in(layer, tf32)).per_s if layer.macs else 0.0
        return LayerRoofline(
            layer,
            compute_ms=layer.flops / rate * 1e3 if rate else 0.0,
            memory_ms=layer.bytes_moved / bandwidth * 1e3,
            ridge=rate / bandwidth,
            time_ms=taken.get(layer.name),
        )

    layers = tuple(hold(layer) for layer in cost.layers)
    return NetworkRoofline(network, cost, peaks, layers, measured_ms, times)


def multiplies_in(layer: FusedLayer, tf32: Tf32) -> str:
    """The precision whose peak a layer is held against.

    Args:
        layer: One that multiplies.
        tf32: As for `make_roofline`.
    """
    kind = "convolutions" if "Conv" in layer.operator else "matrix products"
    return "tf32" if layer.precision == "fp32" and tf32 in ("everywhere", kind) else layer.precision


def _by_layer(layers: Sequence[FusedLayer], times: LayerTimes | None) -> dict[str, float]:
    """Time of every layer that a kernel is known to belong to."""
    home = {node: layer.name for layer in layers for node in layer.nodes}
    taken: dict[str, float] = {}
    for kernel in times.kernels if times else ():
        owner = next((home[node] for node in kernel.nodes if node in home), None)
        if owner is not None:
            taken[owner] = taken.get(owner, 0.0) + kernel.ms
    return taken


def verdict(roofline: NetworkRoofline) -> str:
    """What a roofline says, in a few sentences."""
    device = roofline.peaks.device
    bounds = f"the bound is {_ms(roofline.bound_ms)} ({roofline.binds})"
    if roofline.measured_ms is None or roofline.efficiency is None or roofline.resident_efficiency is None:
        return f"{roofline.network} on {device}: {bounds}; it was not timed."
    said = f"{roofline.network} on {device}: {_ms(roofline.measured_ms)}, "
    if roofline.efficiency <= 1:
        said += f"{bounds}: {roofline.efficiency:.0%} of what the device could do"
    elif roofline.resident_efficiency <= 1:
        said += (
            f"less than the {_ms(roofline.bound_ms)} of layers that all go through memory: caches hold what lies "
            f"between them. With that, the bound is {_ms(roofline.resident_bound_ms)}: "
            f"{roofline.resident_efficiency:.0%} of what the device could do"
        )
    else:
        said += (
            f"less than the bound of {_ms(roofline.resident_bound_ms)}: the peaks were measured too low "
            "(another program ran meanwhile), or the weights stay in a cache"
        )
    worst = roofline.worst
    if worst is not None and worst.time_ms is not None and worst.lost_ms > 0:
        said += (
            f"; the worst layer is {worst.layer.name} ({worst.layer.operator}): {_ms(worst.time_ms)} against "
            f"{_ms(worst.bound_ms)} ({worst.binds})"
        )
    if roofline.cost.unknown:
        said += f"; of {len(roofline.cost.unknown)} layers only the bytes are counted"
    if roofline.peaks.unsteady is not None:
        said += f". The device's peaks varied by {roofline.peaks.unsteady:.0%}: other programs ran"
    return said + "."


def _ms(value: float) -> str:
    """Milliseconds with three figures."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
