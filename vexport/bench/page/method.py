"""How it was measured, in sentences, from the document's settings; and free facts as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vexport.bench.accuracy import RULE
from vexport.bench.page.document import Document
from vexport.bench.scenarios import FAR_PERCENTILE, PERCENTILE, least_count
from vexport.bench.statistics import LEAST_BLOCKS


def method(document: Document) -> list[str]:
    """Sentences for the report; a setting that the document does not tell is not spoken of."""
    told = document.settings
    said = [*_calls(told), _turns(told, document.baseline_name)]
    if "warmup_s" in told:
        until = (
            f", at most {told['warmup_most_s']:g} s, until the medians of its windows agree within "
            f"{told['warmup_bound']:.0%}"
            if {"warmup_most_s", "warmup_bound"} <= set(told)
            else ""
        )
        said.append(
            f"Before the first round each network ran for at least {told['warmup_s']:g} s{until}; this is not counted."
        )
    if "duration_s" in told:
        least = f" and at least {told['least_count']} calls" if "least_count" in told else ""
        said.append(f"Each network was then measured for at least {told['duration_s']:g} s{least}.")
    if "overhead_ns" in told:
        said.append(
            f"Reading the clock adds {told['overhead_ns']:.0f} ns to each call. "
            "That is told, not taken off: samples stay raw."
        )
    if told.get("isolation"):
        said.append(f"Processes: {told['isolation']}.")
    if told.get("threads") is not None:
        said.append(f"Threads: {told['threads']}.")
    level = next((row.ratio.level for group in document.groups for row in group.rows if row.ratio), 0.95)
    return [
        *said,
        "No call is left out or cut off. Figures that deserve doubt are marked unstable, with the reason: spikes, "
        "drift between rounds (from ten on without the fastest and the slowest tenth), throttling, other programs.",
        f"Intervals hold the truth in {level:.0%} of such measurements: a bootstrap over whole rounds, or Student's "
        f"below {LEAST_BLOCKS} of them. The ratio is the median of the rounds' ratios; slower or faster is said only "
        "where its interval leaves 1 out.",
        *_percentiles(document),
        "Ratios to the baseline, and the answers, stand only between networks of one table, which took turns with each "
        "other. Advice on what to take, and INT8 beside floating point, also compare tables that were measured one "
        "after the other, and say so.",
        "Images per second are the batch by the mean latency: throughput has to live with every slow call.",
        RULE,
        "Accuracies are measured on the very file that was timed, or published by the networks' authors for their "
        "trained weights; the tables say which.",
        "INT8 stands beside the fastest floating-point form of its network in the same backend. The two took no turns "
        "with each other: a load that comes and goes can shift that ratio.",
        "Published latencies are the VanillaNet authors' own, on one A100 at batch 1. They enter no ratio of ours.",
    ]  # fmt: skip


def _turns(told: Mapping[str, Any], baseline: str) -> str:
    rounds = f" over {told['rounds']} rounds" if "rounds" in told else ""
    order = f"; the order was {told['order']}" if told.get("order") else ""
    seed = f" (seed {told['seed']})" if "seed" in told and order else ""
    return (
        f"The networks of a table took turns{rounds}{order}{seed}. A drift of the machine meets all alike, and each "
        f"round is compared with {baseline}'s of the same moment."
    )


def _percentiles(document: Document) -> list[str]:
    """Where single-stream percentiles are told."""
    if not any(row.single_stream for group in document.groups for row in group.rows):
        return []
    return [
        "p90 and p99 of one image after another are shown where the calls suffice to tell them with 99 % confidence, "
        f"by the early-stopping rule of MLPerf Inference (SingleStream): from {least_count(PERCENTILE)} calls on and "
        f"from {least_count(FAR_PERCENTILE)}; a dash stands for fewer. Only that rule is MLPerf's: these are no MLPerf "
        "results."
    ]


def _calls(told: Mapping[str, Any]) -> list[str]:
    """What a call covers, once for every backend that says so."""
    runners = told.get("runners")
    found: dict[tuple[str, str, str], None] = {}
    for runner in runners.values() if isinstance(runners, Mapping) else ():
        if isinstance(runner, Mapping) and runner.get("includes"):
            parts = [", ".join(map(str, runner.get(key, ()))) for key in ("includes", "excludes")]
            found[(str(runner.get("backend", "a backend")), parts[0], parts[1])] = None
    return [
        f"A call of {backend} includes {includes}" + (f"; it does not include {excludes}." if excludes else ".")
        for backend, includes, excludes in found
    ]


def facts(values: Mapping[str, Any], *, skip: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Nested values as (name, value) lines; what is not known is left out."""
    return [(name, value) for name, value in _flat(values, "") if name.partition(".")[0] not in skip]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            if value:
                yield name, ", ".join(_plain(one) for one in value)
        elif value is not None:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
