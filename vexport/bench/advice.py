"""What follows from all groups together: what to pick on this device, and where INT8 does not pay.

Rows of different groups took no turns with each other. Where they are compared all the same, the interval is that of
two runs one after the other, which a load that comes and goes can shift; the sentences say so.

Accuracies on ImageNet's 50,000 validation images have an error of their own. Two that differ by less than what so many
images tell apart count as equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vexport.bench.clock import Samples, ratio
from vexport.bench.report import Row
from vexport.bench.statistics import Ratio

IMAGES = 50_000
FLOATING = ("FP32", "FP16", "BF16")


@dataclass(frozen=True)
class Option:
    """A row as something to pick.

    Args:
        row: Its figures.
        samples: Behind them.
        device: What it ran on.
        backend: Its name, the same for all precisions of one backend.
        family: Of the network.
        top1: Accuracy in per cent; None where it is not known.
        images: That it was measured on; None: ImageNet's validation images, as published.
    """

    row: Row
    samples: Samples
    device: str
    backend: str
    family: str
    top1: float | None
    images: int | None = None

    @property
    def usable(self) -> bool:
        return self.row.error is None and self.row.median_ms > 0

    @property
    def place(self) -> tuple[object, ...]:
        """Only options of one place are alternatives."""
        return (self.device, self.row.batch, self.row.input_size)

    @property
    def how(self) -> str:
        told = self.row.precision in self.row.backend.upper().split()
        return self.row.backend if told else f"{self.row.backend} {self.row.precision}"

    @property
    def named(self) -> str:
        top1 = f", {self.top1:.2f} %" if self.top1 is not None else ""
        return f"{self.row.title} ({self.how}{top1}, {_ms(self.row.median_ms)})"


def advise(options: Sequence[Option]) -> list[str]:
    """Sentences over groups.

    Args:
        options: All rows of a document.

    Returns:
        For every device, batch and size: what to pick, what to take instead of each VanillaNet that is beaten, and
        where INT8 is no faster.
    """
    said = []
    usable = [option for option in options if option.usable]
    for place in dict.fromkeys(option.place for option in usable):
        here = [option for option in usable if option.place == place]
        slow = [option for option in here if option.row.precision == "INT8" and not _int8_pays(option, here)]
        kept = [option for option in here if option not in slow]
        where = (
            f"On {here[0].device}, batch {here[0].row.batch}, {'x'.join(str(n) for n in here[0].row.input_size[1:])}"
        )
        said += _picks(kept, where)
        said += _instead(kept, where)
        said += _int8(slow, here, where)
        said += _unproven(kept, here, where)
    return said


def front(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in latency at about their accuracy, fastest first."""
    known = sorted((o for o in options if o.top1 is not None), key=lambda option: option.row.median_ms)
    best: list[Option] = []
    for option in known:
        if not best or (option.top1 or 0) > (best[-1].top1 or 0) + margin_points(best[-1]):
            best.append(option)
    return best


def margin_points(option: Option) -> float:
    """Half the 95 % interval of an accuracy, in percentage points."""
    share = min(max((option.top1 or 0) / 100, 0.0), 1.0)
    return 196 * math.sqrt(share * (1 - share) / (option.images or IMAGES))


def _picks(options: Sequence[Option], where: str) -> list[str]:
    best = front(options)
    if len(best) < 2 and len({option.row.network for option in options}) < 2:
        return []
    if not best:
        return [f"{where}: no accuracy is known, so there is nothing to pick by."]
    return [f"{where}, pick by accuracy and latency: {'; '.join(option.named for option in best)}."]


def _instead(options: Sequence[Option], where: str) -> list[str]:
    """What to take in place of a VanillaNet that something else beats at about its accuracy."""
    said = []
    for network in dict.fromkeys(o.row.network for o in options if o.family == "VanillaNet" and o.top1 is not None):
        own = min((o for o in options if o.row.network == network and o.top1 is not None), key=_latency)
        rivals = [
            other
            for other in options
            if other.family != own.family
            and other.top1 is not None
            and other.top1 >= (own.top1 or 0) - margin_points(own)
            and (found := _by(own, other)) is not None
            and found.low > 1
        ]
        if rivals:
            rival = min(rivals, key=_latency)
            found = _by(own, rival)
            assert found is not None
            turns = "in turns" if own.row.comparable == rival.row.comparable else "one after the other"
            said.append(
                f"{where}: instead of {own.named} take {rival.named}. {own.row.title} takes {found.value:.2f}x its "
                f"time ({found.low:.2f} to {found.high:.2f}, measured {turns}) at about the same accuracy or less."
            )
    return said


def _int8(slow: Sequence[Option], here: Sequence[Option], where: str) -> list[str]:
    said = []
    for backend in dict.fromkeys(option.backend for option in slow):
        parts = _beside_float([option for option in slow if option.backend == backend], here)
        said.append(f"{where}: INT8 in {backend} is no faster, so there is no reason for it: {'; '.join(parts)}.")
    return said


def _unproven(kept: Sequence[Option], here: Sequence[Option], where: str) -> list[str]:
    """INT8 that is faster, of networks whose INT8 accuracy nobody has measured."""
    said = []
    fast = [o for o in kept if o.row.precision == "INT8" and o.top1 is None and _fastest_float(o, here)]
    for backend in dict.fromkeys(option.backend for option in fast):
        parts = _beside_float([option for option in fast if option.backend == backend], here)
        said.append(
            f"{where}: INT8 in {backend} is faster, but its accuracy is not known, so it is not picked: "
            f"{'; '.join(parts)}. `vexport quantize --calib DIR` proves it."
        )
    return said


def _beside_float(options: Sequence[Option], here: Sequence[Option]) -> list[str]:
    parts = []
    for option in options:
        other = _fastest_float(option, here)
        found = _by(option, other) if other else None
        if other is not None and found is not None:
            parts.append(
                f"{option.row.title} {found.value:.2f}x the time of {other.row.precision} "
                f"({found.low:.2f} to {found.high:.2f})"
            )
    return parts


def _int8_pays(option: Option, here: Sequence[Option]) -> bool:
    """Whether INT8 is faster, beyond doubt, than the fastest floating-point form of the network in that backend."""
    other = _fastest_float(option, here)
    found = _by(option, other) if other else None
    return found is None or found.high < 1


def _fastest_float(option: Option, here: Sequence[Option]) -> Option | None:
    same = [
        other
        for other in here
        if (other.row.network, other.backend) == (option.row.network, option.backend)
        and other.row.precision in FLOATING
    ]
    return min(same, key=_latency, default=None)


def _by(one: Option, other: Option) -> Ratio | None:
    return ratio(one.samples, other.samples, paired=one.row.comparable == other.row.comparable)


def _latency(option: Option) -> float:
    return option.row.median_ms


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
