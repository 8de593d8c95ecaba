"""What the machine was at while a candidate ran: load of others, frequencies, temperatures, throttling.

The watch reads before and after each turn of a candidate, never during it. A thread that samples would take a core and
Python's lock from the very calls that are timed. Most of what matters are counters (processor time, time stolen,
throttling), and what they rose by covers the whole turn; frequencies and a GPU's state are those right after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vexport.bench.cgroup import held_back_s
from vexport.bench.nvml import THROTTLING, Gpu, GpuState

PROC = Path("/proc")
CPUS = Path("/sys/devices/system/cpu")

# From when a run deserves doubt.
LOAD_SHARE = 0.1  # of the usable cores' time, by other processes
FULL_SHARE, FULL_LOAD_SHARE, FULL_LOAD_CORES = 0.95, 0.02, 0.1  # where no core is left over, of cores or in cores
STEAL_SHARE = 0.02  # of the usable cores' time, by other guests of a virtual machine's host
QUOTA_SHARE = 0.02  # of the processor time that was asked for, held back by a container's limit
CLOCK_SHARE = 0.1  # between the rounds' lowest and highest clock
COUNTED_SHARE = 0.5  # of our own processor time: a system that counts less for everybody counts nothing


@dataclass(frozen=True)
class Reading:
    """Counters and states at one moment; None for what this system does not tell.

    Args:
        wall_s: A clock.
        own_s: Processor time of this process, all threads.
        cores: How many cores the next two cover: those that this process may use.
        busy_s: Processor time that they gave to anyone.
        steal_s: Processor time that the virtual machine's host gave to others.
        cpu_mhz: Frequency of the fastest of them.
        cpu_throttles: How often they were slowed down for heat.
        quota_s: Time for which a container's limit held processes back, all cores together.
        gpu: The GPU's state.
    """

    wall_s: float
    own_s: float
    cores: int = 1
    busy_s: float | None = None
    steal_s: float | None = None
    cpu_mhz: float | None = None
    cpu_throttles: int | None = None
    quota_s: float | None = None
    gpu: GpuState | None = None


@dataclass(frozen=True)
class Conditions:
    """What the machine was at during one turn; fields as in Reading, counters as what they rose by.

    Args:
        others_s: Processor time of all other processes. Counters tick every 10 ms: of a short turn it may be negative.
    """

    wall_s: float
    own_s: float
    cores: int = 1
    others_s: float | None = None
    steal_s: float | None = None
    cpu_mhz: float | None = None
    cpu_throttles: int | None = None
    quota_s: float | None = None
    gpu: GpuState | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Conditions:
        gpu = data["gpu"]
        state = GpuState(**{**gpu, "reasons": tuple(gpu["reasons"])}) if gpu else None
        return cls(**{**data, "gpu": state})


class Watcher(Protocol):
    """Whatever can say what the machine is at."""

    def read(self) -> Reading: ...


class Watch:
    """Reads this machine.

    Args:
        gpu: The GPU to read as well.
    """

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.gpu = gpu
        self._cpus = _usable_cpus()
        self._readings = 0
        self._spent_ns = 0

    def read(self) -> Reading:
        """The state of this moment."""
        before = time.perf_counter_ns()
        busy_s, steal_s = _cpu_times(self._cpus)
        found = Reading(
            wall_s=time.monotonic(),
            own_s=time.process_time(),
            cores=len(self._cpus),
            busy_s=busy_s,
            steal_s=steal_s,
            cpu_mhz=cpu_mhz(self._cpus),
            cpu_throttles=_cpu_throttles(self._cpus),
            quota_s=held_back_s(),
            gpu=self.gpu.read() if self.gpu else None,
        )
        self._readings += 1
        self._spent_ns += time.perf_counter_ns() - before
        return found

    @property
    def cost_ms(self) -> float:
        """Mean duration of a reading so far. It lies between the turns, in no sample."""
        return self._spent_ns / self._readings / 1e6 if self._readings else 0.0


def between(before: Reading, after: Reading) -> Conditions:
    """What happened between two readings."""

    def rise(name: str) -> Any:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else last - first

    own_s, busy_s = after.own_s - before.own_s, rise("busy_s")
    gpu = after.gpu
    if before.gpu and gpu:  # a reason that held at either end held in this turn
        gpu = replace(gpu, reasons=tuple(dict.fromkeys((*before.gpu.reasons, *gpu.reasons))))
    return Conditions(
        wall_s=after.wall_s - before.wall_s,
        own_s=own_s,
        cores=after.cores,
        others_s=None if busy_s is None else busy_s - own_s,
        steal_s=rise("steal_s"),
        cpu_mhz=after.cpu_mhz,
        cpu_throttles=rise("cpu_throttles"),
        quota_s=rise("quota_s"),
        gpu=gpu,
    )


def summarise(conditions: Sequence[Conditions]) -> dict[str, Any]:
    """Figures of all turns together, for a report; None for what was not told.

    `other_cores`: cores that other processes kept busy; `steal`: share of processor time taken by the host; `quota`:
    share of the processor time asked for that a container's limit held back; clocks as [lowest, highest];
    `gpu_reasons`: reason to the number of turns that it held in; `gpu_lost`: turns in which a GPU that had told its
    state told nothing.
    """
    gpus = [one.gpu for one in conditions if one.gpu]
    wall_s = sum(one.wall_s for one in conditions)
    core_s = sum(one.wall_s * one.cores for one in conditions)
    own_s = sum(one.own_s for one in conditions)
    others_s, steal_s, quota_s = (_total(conditions, name) for name in ("others_s", "steal_s", "quota_s"))
    if others_s is not None and own_s + others_s < COUNTED_SHARE * own_s:
        others_s = steal_s = None  # sandboxes show a /proc/stat that stands still
    return {
        "turns": len(conditions),
        "own_cores": own_s / wall_s if wall_s else None,
        "other_cores": max(0.0, others_s) / wall_s if others_s is not None and wall_s else None,
        "cores": max((one.cores for one in conditions), default=None),
        "steal": steal_s / core_s if steal_s is not None and core_s else None,
        "quota": quota_s / (own_s + quota_s) if quota_s is not None and own_s + quota_s > 0 else None,
        "cpu_throttles": _total(conditions, "cpu_throttles"),
        "cpu_mhz": _ends([one.cpu_mhz for one in conditions]),
        "gpu_sm_mhz": _ends([one.sm_mhz for one in gpus]),
        "gpu_memory_mhz": _ends([one.memory_mhz for one in gpus]),
        "gpu_temperature_c": _ends([one.temperature_c for one in gpus]),
        "gpu_power_w": _ends([one.power_w for one in gpus]),
        "gpu_processes": max((one.processes for one in gpus if one.processes is not None), default=None),
        "gpu_reasons": {
            name: sum(name in one.reasons for one in gpus) for name in dict.fromkeys(n for g in gpus for n in g.reasons)
        },
        "gpu_lost": sum(one.is_silent for one in gpus) if not all(one.is_silent for one in gpus) else 0,
    }


def why_disturbed(conditions: Sequence[Conditions]) -> list[str]:
    """Why a run on this machine deserves doubt, in words; nothing where it does not, or nothing is known."""
    if not conditions:
        return []
    found, turns, said = summarise(conditions), len(conditions), []
    cores = found["cores"]
    for name, count in found["gpu_reasons"].items():
        if name in THROTTLING:
            said.append(f"throttling: the GPU's {name} in {count} of {turns} rounds")
    if found["cpu_throttles"]:
        said.append(f"throttling: the processor was slowed down for heat, {found['cpu_throttles']} times")
    if found["quota"] is not None and found["quota"] > QUOTA_SHARE:
        said.append(f"throttling: the container's limit held back {found['quota']:.0%} of the processor time asked for")
    for key, whose in (("cpu_mhz", "the processor's"), ("gpu_sm_mhz", "the GPU's")):
        if found[key] and found[key][0] < found[key][1] * (1 - CLOCK_SHARE):
            said.append(f"frequency: {whose} clock lay between {found[key][0]:.0f} and {found[key][1]:.0f} MHz")
    if _is_loaded(found["other_cores"], found["own_cores"], cores):
        said.append(f"load: other processes kept {found['other_cores']:.1f} of {cores} cores busy")
    if found["steal"] is not None and found["steal"] > STEAL_SHARE:
        said.append(f"load: the virtual machine's host took {found['steal']:.0%} of the processor time")
    if found["gpu_processes"] is not None and found["gpu_processes"] > 1:
        said.append(f"load: {found['gpu_processes']} processes use the GPU")
    if found["gpu_lost"]:
        said.append(f"watch: the GPU told nothing of itself in {found['gpu_lost']} of {turns} rounds")
    return said


def _is_loaded(others: float | None, own: float | None, cores: int) -> bool:
    """Much of the machine; or less, where we need all of it: many threads wait for the one that has to share."""
    if others is None or own is None:
        return False
    crowded = own + others > FULL_SHARE * cores and others > max(FULL_LOAD_CORES, FULL_LOAD_SHARE * cores)
    return crowded or others > LOAD_SHARE * cores


def _total(conditions: Sequence[Conditions], name: str) -> Any:
    values = [value for one in conditions if (value := getattr(one, name)) is not None]
    return sum(values) if values else None


def _ends(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


def _usable_cpus() -> tuple[int, ...]:
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return tuple(range(os.cpu_count() or 1))


def _cpu_times(cpus: Sequence[int]) -> tuple[float | None, float | None]:
    """Seconds that these cores were busy, and that were stolen from them (proc(5): user, nice, system, idle, iowait,
    irq, softirq, steal, in ticks)."""
    names, busy, steal = {f"cpu{index}" for index in cpus}, 0, 0
    try:
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        for line in (PROC / "stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name in names:
                user, nice, system, _, _, irq, soft, stolen = (int(value) for value in fields[:8])
                busy, steal = busy + user + nice + system + irq + soft, steal + stolen
    except (OSError, ValueError, AttributeError):
        return None, None
    return busy * tick_s, steal * tick_s


def cpu_mhz(cpus: Sequence[int]) -> float | None:
    """Frequency of the fastest of these cores at this moment; a virtual machine often tells its nominal one only.

    Not the mean: cores that rest clock down, and how many of them do says nothing of those that work.
    """
    found = []
    for index in cpus:
        try:
            text = (CPUS / f"cpu{index}" / "cpufreq" / "scaling_cur_freq").read_text(encoding="ascii")
            found.append(int(text) / 1000)
        except (OSError, ValueError):
            break
    return max(found or _cpuinfo_mhz(cpus), default=None)


def _cpuinfo_mhz(cpus: Sequence[int]) -> list[float]:
    """As /proc/cpuinfo has them, a paragraph per core; the numbers have gaps where cores are offline."""
    found: dict[int, float] = {}
    index = -1
    try:
        for line in (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "processor":
                index = int(value)
            elif name.strip() == "cpu MHz":
                found[index] = float(value)
    except (OSError, ValueError):
        return []
    return [found[index] for index in cpus if index in found]


def _cpu_throttles(cpus: Sequence[int]) -> int | None:
    """How often these cores were slowed down for heat since the start; Intel's only tell."""
    found = None
    for index in cpus:
        try:
            path = CPUS / f"cpu{index}" / "thermal_throttle" / "core_throttle_count"
            found = (found or 0) + int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
    return found
