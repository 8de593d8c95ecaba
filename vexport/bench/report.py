"""From samples to rows and verdicts in words.

Networks of different input sizes are never compared: a ratio is between rows of one input size, backend, precision and
batch. Published figures have fields of their own and enter no ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from vexport.bench.clock import Ratio, Samples, ratio
from vexport.bench.device import DEVICE, ENQUEUE, waits_for_host
from vexport.bench.scenarios import single_stream
from vexport.bench.watch import summarise

SCHEMA = 2
BASELINE = "resnet50"
_SHARES = {"three quarters": 0.75, "two thirds": 2 / 3, "half": 0.5, "a third": 1 / 3, "a quarter": 0.25}
_NEAR, _NEARLY_ALL = 0.07, 0.95


class Span(Protocol):
    """A figure and its interval."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Case:
    """What was measured.

    Args:
        network: Variant or baseline.
        backend: As the runner names it.
        precision: `FP32`, `FP16` ...
        batch: Images per call.
        input_size: C, H and W.
        artifact_sha256: Hash of the file that ran; None where there is none.
        published_top1: ImageNet top-1 in per cent, as published.
        published_a100_ms: Latency on an A100 at batch 1, as published, by the clock of `published_clock`.
        label: The network's name for people; empty where it is the same.
    """

    network: str
    backend: str
    precision: str
    batch: int
    input_size: tuple[int, int, int]
    artifact_sha256: str | None = None
    published_top1: float | None = None
    published_a100_ms: float | None = None
    label: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return self.label or self.network

    @property
    def comparable(self) -> tuple[object, ...]:
        """Rows with the same value may be compared."""
        return (self.input_size, self.backend, self.precision, self.batch)


@dataclass(frozen=True)
class Row(Case):
    """What was measured and what came out.

    Args:
        median_ms: Latency of one call; like all figures NaN where nothing was measured.
        p90_ms: 90 per cent of the calls do not exceed it.
        p99_ms: Likewise.
        cv: Coefficient of variation.
        images_per_s: Batch by mean latency, as throughput has to live with every slow call.
        ratio: Median by ResNet-50's of the same input size, backend, precision and batch; None where there is none.
        unstable: Whether the figures deserve doubt.
        unstable_because: Why, in words.
        count: Measured calls.
        error: What the candidate failed with.
    """

    median_ms: float = math.nan
    p90_ms: float = math.nan
    p99_ms: float = math.nan
    cv: float = math.nan
    images_per_s: float = math.nan
    ratio: Ratio | None = None
    unstable: bool = True
    unstable_because: tuple[str, ...] = ()
    count: int = 0
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a number, which JSON does not know."""
        values = {**asdict(self), "input_size": list(self.input_size), "unstable_because": list(self.unstable_because)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class BenchReport:
    """Everything that one measurement gave.

    Args:
        rows: One per candidate.
        samples: Their raw samples, in the same order.
        environment: What they were measured on.
        settings: How.
    """

    rows: tuple[Row, ...]
    samples: tuple[Samples, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]


def make_report(
    measured: Sequence[tuple[Case, Samples]], *, environment: Mapping[str, Any], settings: Mapping[str, Any]
) -> BenchReport:
    """Summarise samples, each beside ResNet-50 of its kind where that was measured.

    Args:
        measured: What was measured, with its samples; all of one clock run, so that rounds match.
        environment: What it was measured on.
        settings: How.
    """
    baselines: dict[tuple[object, ...], Samples] = {}
    for case, samples in measured:
        if case.network == BASELINE:
            baselines.setdefault(case.comparable, samples)
    rows = tuple(_row(case, samples, baselines.get(case.comparable)) for case, samples in measured)
    return BenchReport(rows, tuple(samples for _, samples in measured), dict(environment), dict(settings))


def row_to_json(row: Row, samples: Samples) -> dict[str, Any]:
    """A row as it stands in the document: with its raw samples, round by round, in nanoseconds.

    Args:
        row: The figures.
        samples: What they were made from.
    """
    raw = [list(part) for part in samples.rounds_ns]
    # MLPerf's percentile rule is of one image after another.
    told = single_stream(samples).to_json() if row.batch == 1 and samples.count else None
    return {
        **row.to_json(),
        "samples_ns": raw,
        "run": _run_facts(samples),
        "device_ms": _device(samples),
        "single_stream": told,
    }


def _device(samples: Samples) -> dict[str, float | bool] | None:
    """The device's own time by events; None where it was not told apart."""
    part, enqueue = samples.part(DEVICE), samples.part(ENQUEUE)
    if part is None or not part.count:
        return None
    waits = enqueue is not None and waits_for_host(enqueue.median_ms, part.median_ms)
    return {"median": part.median_ms, "p90": part.p90_ms, "p99": part.p99_ms, "waits_for_host": waits}


def _run_facts(samples: Samples) -> dict[str, Any]:
    """How the samples came about, besides the samples."""
    interval = samples.median_interval_ms()
    return {
        "median_interval_ms": interval.to_json() if interval else None,
        "drift": samples.drift if math.isfinite(samples.drift) else None,
        "spikes": [list(place) for place in samples.spikes],
        "warm_up": asdict(samples.warm_up) if samples.warm_up else None,
        "parts_ns": {name: [list(part) for part in rounds] for name, rounds in samples.parts_ns.items()},
        "conditions": summarise(samples.conditions) if samples.conditions else None,
    }


def _row(case: Case, samples: Samples, baseline: Samples | None) -> Row:
    mean_ms = samples.mean_ms
    return Row(
        **asdict(case),
        median_ms=samples.median_ms,
        p90_ms=samples.p90_ms,
        p99_ms=samples.p99_ms,
        cv=samples.cv,
        images_per_s=1000 * case.batch / mean_ms if mean_ms > 0 else math.nan,
        ratio=ratio(samples, baseline) if baseline is not None else None,
        unstable=samples.unstable,
        unstable_because=samples.unstable_because,
        count=samples.count,
        error=samples.error,
    )


def verdicts(rows: Sequence[Row], device: str | None = None) -> list[str]:
    """One sentence per row that stands beside ResNet-50, and one per row that failed.

    Args:
        rows: Of any groups.
        device: What they were measured on, for the sentences.
    """
    on = f" on {device}" if device else ""
    said = []
    for row in rows:
        if row.error is not None:
            said.append(f"{row.title} failed at {_where(row)}{on}: {row.error}")
        elif row.ratio is not None and row.network != BASELINE:
            alike = [other for other in rows if other.comparable == row.comparable]
            baseline = next((other.title for other in alike if other.network == BASELINE), BASELINE)
            shaky = [other.title for other in alike if other.unstable and (other is row or other.network == BASELINE)]
            doubt = f"; unstable: {' and '.join(dict.fromkeys(shaky))}" if shaky else ""
            said.append(f"{compared(row.title, baseline, row.ratio, f' at {_where(row)}{on}')}{doubt}")
    return said


def compared(one: str, other: str, found: Span, where: str = "") -> str:
    """Which of two is faster, and by how much; the interval alone decides.

    Args:
        one: Name of the numerator.
        other: Name of the denominator.
        found: Their ratio.
        where: What else the sentence says behind their names.
    """
    if found.low > 1:
        return f"{one} is {relation(found)} than {other}{where}{_speed(1 / found.value)}"
    if found.high < 1:
        return f"{one} is {relation(found)} than {other}{where}"
    return f"{one} and {other} cannot be told apart{where}: {times(found.value)} the time ({times_span(found)})"


def relation(found: Span) -> str:
    """A ratio in a few words: `1.98x slower (1.90 to 2.05)`."""
    if found.low > 1:
        return f"{times(found.value)} slower ({times_span(found)})"
    if found.high < 1:
        return f"{times(1 / found.value)} faster ({_ends(1 / found.high, 1 / found.low)})"
    return f"not told apart, {times(found.value)} the time ({times_span(found)})"


def _speed(share: float) -> str:
    """A share of a speed, by name where it has one; nothing where it is nearly all."""
    name, exact = min(_SHARES.items(), key=lambda entry: abs(math.log(share / entry[1])))
    if share > _NEARLY_ALL:
        return ""
    told = f"about {name}" if abs(share / exact - 1) < _NEAR else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
    return f": {told} as fast"


def times(value: float) -> str:
    """A ratio, as `1.98x`; what is more than 1 does not look like it."""
    return f"{value:.{_places(value)}f}x"


def times_span(found: Span) -> str:
    """A ratio's interval, as `1.90 to 2.05`."""
    return _ends(found.low, found.high)


def _ends(low: float, high: float) -> str:
    places = max(_places(low), _places(high))
    return f"{low:.{places}f} to {high:.{places}f}"


def _places(value: float) -> int:
    if value < 0.095:
        return 1 - math.floor(math.log10(value))
    return next((places for places in (2, 3, 4) if value == 1 or abs(value - 1) >= 0.9 * 10**-places), 5)


def _where(row: Row) -> str:
    _, height, width = row.input_size
    return f"{row.precision}, batch {row.batch}, {height}x{width}, {row.backend}"


def published_clock(backend: str, precision: str) -> str:
    """Which of the paper's clocks is of the kind of a backend: TensorRT for what it runs, PyTorch for all others.

    Args:
        backend: Name or title.
        precision: `FP32` ...
    """
    fits = "tensorrt" in backend.lower() and precision.upper() in ("FP32", "FP16")
    return f"TensorRT {precision.upper()}" if fits else "PyTorch"
