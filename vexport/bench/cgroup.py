"""What a container's limit leaves of the processor, from Linux's control groups of version 2 or 1.

A limit may stand on this process's own group or on any above it. Inside a container the own group usually looks like
the root; outside, as in a systemd service, it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

_VERSION_1 = ("cpu,cpuacct", "cpu")  # how the processor's hierarchy is mounted


def limit_cores() -> float | None:
    """Cores' worth of time that the tightest limit allows; None where there is no limit."""
    found = [cores for folder in _folders() if (cores := _limit(folder)) is not None]
    return min(found, default=None)


def held_back_s() -> float | None:
    """Processor time for which limits held this process's groups back so far; None where the system does not tell."""
    found = [seconds for folder in _folders() if (seconds := _held_back(folder)) is not None]
    return sum(found) if found else None


def _folders() -> Iterator[Path]:
    """The own group and those above it."""
    version_2, version_1 = Path(), Path()
    for line in (_read(OWN) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version_2 = Path(path.lstrip("/"))
        elif "cpu" in controllers.split(","):
            version_1 = Path(path.lstrip("/"))
    yield from _upwards(ROOT, version_2)
    for name in _VERSION_1:
        if (ROOT / name).is_dir():
            yield from _upwards(ROOT / name, version_1)
            return


def _upwards(root: Path, own: Path) -> Iterator[Path]:
    # A container may tell the path that its host sees, of which it sees the end only, as its root.
    inside = own if ".." not in own.parts and (root / own).is_dir() else Path()
    yield from dict.fromkeys(root / part for part in (inside, *inside.parents))


def _limit(folder: Path) -> float | None:
    try:
        if (told := _read(folder / "cpu.max")) is not None:
            quota, period = told.split()
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        return int(quota) / int(period) if quota.strip() not in ("max", "-1") else None
    except (ValueError, ZeroDivisionError):
        return None


def _held_back(folder: Path) -> float | None:
    for line in (_read(folder / "cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in ("throttled_usec", "throttled_time") and value.strip().isdigit():
            return int(value) / (1e6 if name == "throttled_usec" else 1e9)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
