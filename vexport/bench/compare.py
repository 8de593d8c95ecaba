"""Two documents of one benchmark: what became slower, what faster, and what nobody can tell.

Rows are matched by network, backend, precision, batch and size. Two runs see the machine at different times, and the
rounds of one run know nothing of what changed between the two. So a row is held against the bound by its time beside
its group's baseline, with which it took turns in both runs: what slows the machine slows both. Medians of two runs are
told beside it; they decide only where a row has no baseline. A row counts as slower than allowed only where the whole
interval lies above the bound: what the interval leaves open is no regression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vexport.bench.clock import Samples, ratio
from vexport.bench.statistics import Ratio, paired_change
from vexport.errors import GateError, InputError

RULE = (
    "slower than allowed: the whole interval of the change lies above the bound; or it was measured and now fails. The "
    "change is that of the time by the baseline's of the same table; of the median where a table has no baseline. The "
    "baseline's own median is told and decides nothing"
)

Kind = Literal["slower", "faster", "not told apart", "fails now", "works now", "fails", "missing", "new"]
Key = tuple[str, str, str, int, tuple[int, ...]]
# What a latency depends on besides the software.
_MACHINE = (
    ("cpu", "processor"),
    ("usable_cores", "cores"),
    ("cpu_quota_cores", "quota of cores"),
    ("gpus", "GPUs"),
    ("variables", "environment variables"),
)
_RECIPE = (("tf32", "TF32 allowed"), ("engine_tf32", "TF32 allowed in engines"))
_SETTINGS = (
    ("threads", "threads"),
    ("own_processes", "own processes"),
    ("duration_s", "duration"),
    ("rounds", "rounds"),
    ("least_count", "least count"),
)


@dataclass(frozen=True)
class Change:
    """One row before and now.

    Args:
        network: For people.
        backend: As the rows say.
        precision: Likewise.
        batch: Images per call.
        input_size: C, H and W.
        kind: What became of it.
        old_ms: Median before.
        new_ms: Median now.
        ratio: Median now by before, with its interval; it knows nothing of how the machine changed between the runs.
        by_baseline: Time by the baseline's now by before, likewise; None where either run has no baseline beside it.
        baseline: The baseline's name for people, where there is one.
        is_baseline: Whether this is the baseline itself.
        unstable: Whose figures are marked unstable, and in which run, as `now` or `ResNet-50 before`.
        same_artifact: Whether the same file was measured; None where one of them says nothing.
        error: What it fails with.
        regressed: Whether it is slower than allowed.
    """

    network: str
    backend: str
    precision: str
    batch: int
    input_size: tuple[int, ...]
    kind: Kind
    old_ms: float | None = None
    new_ms: float | None = None
    ratio: Ratio | None = None
    by_baseline: Ratio | None = None
    baseline: str | None = None
    is_baseline: bool = False
    unstable: tuple[str, ...] = ()
    same_artifact: bool | None = None
    error: str | None = None
    regressed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "input_size": list(self.input_size), "unstable": list(self.unstable)}

    @property
    def text(self) -> str:
        """In words."""
        where = f"{self.network}, {self.backend} {self.precision}, batch {self.batch}"
        if self.ratio is None:
            return f"{where}: {self.kind}{f' ({self.error})' if self.error else ''}"
        doubt = f"; unstable: {', '.join(self.unstable)}" if self.unstable else ""
        if self.by_baseline is not None:
            told = f"{_percent(self.by_baseline)} beside {self.baseline}; its median {_percent(self.ratio)}"
            return f"{where}: {self.kind}, {told}{doubt}"
        role = "; the baseline, which decides nothing" if self.is_baseline else ""
        return f"{where}: {self.kind}, {_percent(self.ratio)}{role}{doubt}"


def _percent(found: Ratio) -> str:
    low, high = (f"{100 * (end - 1):+.1f}" for end in (found.low, found.high))
    return f"{100 * (found.value - 1):+.1f} % ({low} to {high} %)"


@dataclass(frozen=True)
class _Place:
    """A row, and the baseline that took turns with it: itself, or None where its group has none that was measured."""

    row: Mapping[str, Any]
    baseline: Mapping[str, Any] | None


@dataclass(frozen=True)
class Comparison:
    """All rows of two documents.

    Args:
        changes: In the order of the new document; what is only in the old one comes last.
        bound: Share by which a row may be slower; None asks nothing.
        other_machine: How the machines or their settings differ, which no change can be told from.
        notes: What differs besides.
    """

    changes: tuple[Change, ...]
    bound: float | None = None
    other_machine: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def regressed(self) -> tuple[Change, ...]:
        """Rows that are slower than allowed."""
        return tuple(change for change in self.changes if change.regressed)

    @property
    def passed(self) -> bool:
        return not self.regressed

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": RULE,
            "max_regression": self.bound,
            "passed": self.passed if self.bound is not None else None,
            "other_machine": list(self.other_machine),
            "notes": list(self.notes),
            "changes": [change.to_json() for change in self.changes],
        }

    def require_passed(self) -> None:
        """Fail where a row is slower than allowed.

        Raises:
            GateError: with every such row.
        """
        if self.bound is None or self.passed:
            return
        count = len(self.regressed)
        raise GateError(
            f"{count} of {len(self.changes)} rows {'is' if count == 1 else 'are'} more than {self.bound:.1%} slower",
            details=[change.text for change in self.regressed],
            hint=f"rule: {RULE}",
        )


def compare_documents(old: Mapping[str, Any], new: Mapping[str, Any], *, bound: float | None = None) -> Comparison:
    """Hold a benchmark against an earlier one.

    Args:
        old: Its document, of schema 2, with every field.
        new: The document of now.
        bound: Share by which a row may be slower, as 0.05; None asks nothing.

    Raises:
        InputError: they share no row, or `bound` is given and the machines or their threads differ.
    """
    before, now = dict(_rows(old)), dict(_rows(new))
    if not before.keys() & now.keys():
        raise InputError(
            "the two benchmarks share no row",
            details=[f"{name}: {', '.join(_named(key) for key in rows) or 'no row'}" for name, rows in
                     (("before", before), ("now", now))],
            hint="measure the same networks with the same backends, precisions, batches and sizes",
        )  # fmt: skip
    other = _differences(old.get("environment", {}), new.get("environment", {}), _MACHINE)
    settings = _differences(old.get("settings", {}), new.get("settings", {}), _SETTINGS)
    other += [line for line in settings if line.startswith(("threads", "own processes"))]
    other += _differences(old.get("recipe") or {}, new.get("recipe") or {}, _RECIPE)
    if bound is not None and other:
        raise InputError(
            "the two benchmarks were measured otherwise: a change would not be the software's",
            details=other,
            hint="compare on the machine and with the threads of the old one, or leave --max-regression out",
        )
    notes = [line for line in settings if line not in other]
    for document, name in ((old, "old"), (new, "new")):
        notes += [f"{_named(key)} is there more than once in the {name} benchmark: its first row counts"
                  for key in _repeated(document)]  # fmt: skip
        if document.get("complete") is False:
            notes.append(f"the {name} benchmark was interrupted: it is not complete")
    versions = (one.get("environment", {}).get("versions", {}) for one in (old, new))
    notes += _differences(*versions)
    changes = [_change(before.get(key), place, bound) for key, place in now.items()]
    changes += [_change(place, None, bound) for key, place in before.items() if key not in now]
    return Comparison(tuple(changes), bound, tuple(other), tuple(notes))


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[Key, _Place]]:
    seen: set[Key] = set()
    for key, place in _all_rows(document):
        if key not in seen:
            seen.add(key)
            yield key, place


def _all_rows(document: Mapping[str, Any]) -> Iterator[tuple[Key, _Place]]:
    for group in document["groups"]:
        named = (row for row in group["rows"] if row["network"] == document.get("baseline"))
        baseline = next((row for row in named if row["samples_ns"] and row["error"] is None), None)
        for row in group["rows"]:
            if row["samples_ns"] or row["error"]:
                key = (row["network"], row["backend"], row["precision"], row["batch"], tuple(row["input_size"]))
                yield key, _Place(row, baseline)


def _repeated(document: Mapping[str, Any]) -> list[Key]:
    """Rows of one key but of different files; a baseline that stands in several groups is no such row."""
    files: dict[Key, set[str]] = {}
    for key, place in _all_rows(document):
        files.setdefault(key, set()).add(place.row["artifact_sha256"] or "")
    return [key for key, hashes in files.items() if len(hashes) > 1]


def _named(key: Key) -> str:
    return f"{key[0]} ({key[1]} {key[2]}, batch {key[3]})"


def _change(before: _Place | None, now: _Place | None, bound: float | None) -> Change:
    told = now or before
    assert told is not None, "one of them has it"
    old, new = before.row if before else None, now.row if now else None
    there = {name: row for name, row in (("before", old), ("now", new)) if row and row["error"] is None}
    hashes = [row["artifact_sha256"] for row in there.values()]
    is_baseline = told.row is told.baseline

    def made(kind: Kind, **more: Any) -> Change:
        return Change(
            told.row.get("label") or told.row["network"],
            told.row["backend"],
            told.row["precision"],
            told.row["batch"],
            tuple(told.row["input_size"]),
            kind,
            old_ms=there["before"]["median_ms"] if "before" in there else None,
            new_ms=there["now"]["median_ms"] if "now" in there else None,
            is_baseline=is_baseline,
            same_artifact=hashes[0] == hashes[1] if len(hashes) == 2 and all(hashes) else None,
            **more,
        )

    if new is None or now is None:
        return made("missing")
    if old is None or before is None:
        return made("new", error=new["error"])
    if new["error"] is not None:
        was_there = "before" in there
        return made(
            "fails now" if was_there else "fails", error=new["error"], regressed=was_there and bound is not None
        )
    if old["error"] is not None:
        return made("works now")
    found, relative = ratio(_samples(new), _samples(old), paired=False), None
    if not is_baseline and now.baseline and before.baseline:
        relative = paired_change(*(place["samples_ns"] for place in (new, now.baseline, old, before.baseline)))
    judged = relative or found
    if judged is None:
        return made("not told apart")
    kind: Kind = "slower" if judged.low > 1 else "faster" if judged.high < 1 else "not told apart"
    return made(
        kind,
        ratio=found,
        by_baseline=relative,
        baseline=_label(now.baseline) if now.baseline else None,
        unstable=_unstable(before, now, with_baseline=relative is not None),
        regressed=bound is not None and not is_baseline and judged.low > 1 + bound,
    )


def _unstable(before: _Place, now: _Place, *, with_baseline: bool) -> tuple[str, ...]:
    runs = {"before": before, "now": now}
    said = [name for name, place in runs.items() if place.row.get("unstable")]
    beside = [(name, place.baseline) for name, place in runs.items() if with_baseline and place.baseline]
    return (*said, *(f"{_label(row)} {name}" for name, row in beside if row.get("unstable")))


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row["network"])


def _samples(row: Mapping[str, Any]) -> Samples:
    return Samples(row["network"], tuple(tuple(part) for part in row["samples_ns"]))


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[tuple[str, str]] | None = None
) -> list[str]:
    pairs = names or [(name, name) for name in dict.fromkeys([*old, *new])]
    return [
        f"{title}: {_plain(old.get(name))} before, {_plain(new.get(name))} now"
        for name, title in pairs
        if _told(old.get(name)) != _told(new.get(name))
    ]


def _told(value: Any) -> Any:
    """An empty list or table says what a missing one says."""
    return None if value in ([], {}, ()) else value


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={one}" for name, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(one) for one in value) or "none"
    return "none" if value is None else str(value)
