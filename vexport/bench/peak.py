"""What a device can do: arithmetic and memory bandwidth, measured.

Arithmetic is a large matrix product, memory a large copy and a large read. Each is done by every library at hand
(ONNX Runtime and PyTorch on a CPU, PyTorch on a GPU), since a backend may be built on either; the fastest is the peak.
On a CPU there is a large convolution besides: products of that size were seen 10 to 20 % slower than it.
All of them take turns, round by round; the spread over the rounds shows what the machine did meanwhile.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vexport.bench.clock import Clock
from vexport.bench.environment import cpu_name, usable_cores
from vexport.bench.peak_work import BYTES, LARGEST_SIDE, Device, default_copy_bytes, make_products, make_transfers
from vexport.errors import InputError
from vexport.run.runner import require_threads

Progress = Callable[[str, int, int], None]

UNSTEADY = 0.2
CPU_PRECISIONS = ("fp32", "fp64", "fp16", "bf16", "int8")
GPU_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
# A layer of one precision may be computed in these too: the bound must hold for the fastest.
_ALSO = {"fp16": ("fp32",), "bf16": ("fp32",), "int8": ("fp32",), "tf32": ("fp32",)}


@dataclass(frozen=True)
class Rate:
    """A rate per second, measured several times.

    Args:
        how: What was measured.
        values: Operations or bytes per second: of each round the median.
    """

    how: str
    values: tuple[float, ...]

    @property
    def per_s(self) -> float:
        """Of the fastest round: what the device can do when it is disturbed least."""
        return max(self.values)

    @property
    def median_per_s(self) -> float:
        """Of all rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """From the slowest round to the fastest, by the median."""
        return (max(self.values) - min(self.values)) / self.median_per_s

    def to_json(self) -> dict[str, Any]:
        return {
            "how": self.how,
            "per_s": self.per_s,
            "median_per_s": self.median_per_s,
            "spread": self.spread,
            "values": list(self.values),
        }


@dataclass(frozen=True)
class PeakRates:
    """What a device can do.

    Args:
        device: Its name.
        threads: That were used; None on a GPU.
        operations: Precision to operations per second, two per multiply-accumulate: the fastest library's.
        bandwidth: Bytes per second between memory and cores, read and written together: the faster of copy and read.
        slower: What was measured besides.
        missing: Precision to the reason why it could not be measured.
    """

    device: str
    threads: int | None
    operations: Mapping[str, Rate]
    bandwidth: Rate
    slower: tuple[Rate, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def rate(self, precision: str) -> Rate:
        """The fastest way to multiply numbers of a precision: in it, or in a wider one.

        Raises:
            InputError: it was not measured.
        """
        wanted = "int8" if precision == "uint8" else precision
        there = [self.operations[name] for name in (wanted, *_ALSO.get(wanted, ())) if name in self.operations]
        if not there or (wanted not in self.operations and wanted not in self.missing):
            raise InputError(
                f"the peak rate of {self.device} in {wanted} was not measured",
                details=[f"measured: {', '.join(self.operations) or 'none'}"],
                hint="name it when measuring the peaks",
            )
        return max(there, key=lambda rate: rate.per_s)

    @property
    def unsteady(self) -> float | None:
        """The largest spread where that deserves doubt; None where the device was at rest.

        Of the slower libraries too: what disturbed one may have made it lose.
        """
        worst = max(rate.spread for rate in (*self.operations.values(), self.bandwidth, *self.slower))
        return worst if worst > UNSTEADY else None

    def ridge(self, precision: str) -> float:
        """Operations per byte from which on arithmetic binds and not memory."""
        return self.rate(precision).per_s / self.bandwidth.per_s

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "operations": {name: rate.to_json() for name, rate in self.operations.items()},
            "bandwidth": self.bandwidth.to_json(),
            "slower": [rate.to_json() for rate in self.slower],
            "missing": dict(self.missing),
            "unsteady": self.unsteady,
        }


def measure_peaks(
    precisions: Sequence[str] = ("fp32",),
    *,
    device: Device = "cpu",
    threads: int | None = None,
    clock: Clock | None = None,
    copy_bytes: int | None = None,
    largest_side: int | None = None,
    progress: Progress | None = None,
) -> PeakRates:
    """Measure a device. Wider precisions that a layer may be computed in are measured too.

    Args:
        precisions: `fp32`, `fp16`, `bf16`, `int8`; `fp64` on a CPU, `tf32` on a GPU.
        device: Which; `cuda` is the current GPU.
        threads: On a CPU, those of the benchmark; None is one per usable core.
        clock: How long; None takes about two seconds for each product and transfer.
        copy_bytes: Size of what is copied; None takes four times the last cache, 64 MB at least.
        largest_side: Of the matrices; None takes 4096 on a CPU, 16384 on a GPU.
        progress: See `Clock.measure`.

    Raises:
        InputError: a precision is not known, or not one could be measured.
    """
    known = CPU_PRECISIONS if device == "cpu" else GPU_PRECISIONS
    if wrong := [name for name in precisions if name not in known]:
        raise InputError(f"no peak is known in {', '.join(wrong)}", hint=f"one of {', '.join(known)}")
    require_threads(threads)
    wanted = [name for name in known if name in {*precisions, *(one for p in precisions for one in _ALSO.get(p, ()))}]
    used = threads or usable_cores() or 1
    clock = clock or Clock(warmup_s=0.2, warmup_most_s=1.0, duration_s=1.0, least_count=10, rounds=5)
    with _torch_threads(used if device == "cpu" else None):
        products, missing = make_products(wanted, device, used, largest_side or LARGEST_SIDE[device])
        transfers = make_transfers(device, copy_bytes or default_copy_bytes(device))
        work = {**products, **transfers}
        samples = clock.measure({name: call for name, (_, _, call) in work.items()}, progress=progress)
    rates: dict[str, list[Rate]] = {}
    for name, (kind, amount, _) in work.items():
        medians_s = [statistics.median(part) / 1e9 for part in samples[name].rounds_ns if part]
        if samples[name].error is None and medians_s and min(medians_s) > 0:
            rates.setdefault(kind, []).append(Rate(name, tuple(amount / seconds for seconds in medians_s)))
    best = {kind: max(found, key=lambda rate: rate.per_s) for kind, found in rates.items()}
    bandwidth = best.pop(BYTES, None)
    if bandwidth is None or not best:
        raise InputError(
            f"nothing could be measured on {device}",
            details=[f"{name}: {reason}" for name, reason in missing.items()],
            hint="another program may hold its memory; try again, or with a smaller copy",
        )
    missing |= {name: "it failed while it was timed" for name in wanted if name not in best and name not in missing}
    slower = tuple(rate for kind, found in rates.items() for rate in found if rate not in (best.get(kind), bandwidth))
    return PeakRates(_device_name(device), used if device == "cpu" else None, best, bandwidth, slower, missing)


def _device_name(device: Device) -> str:
    if device == "cpu":
        return cpu_name() or "CPU"
    import torch

    return str(torch.cuda.get_device_name())


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """PyTorch with so many threads inside this block; its number is the whole process's."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
