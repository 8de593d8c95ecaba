"""Two documents of one benchmark: what became slower, what faster, and what nobody can tell.

Rows are matched by network, backend, precision, batch and size. The change is that of the medians, with the bootstrap
interval of two runs one after the other. A row counts as slower than allowed only where the whole interval lies above
the bound: what the interval leaves open is no regression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vexport.bench.clock import Samples, ratio
from vexport.bench.statistics import Ratio
from vexport.errors import GateError, InputError

RULE = "slower than allowed: the whole interval of the change lies above the bound; or it was measured and now fails"

Kind = Literal["slower", "faster", "not told apart", "fails now", "works now", "fails", "missing", "new"]
Key = tuple[str, str, str, int, tuple[int, ...]]
# What a latency depends on besides the software.
_MACHINE = (("cpu", "processor"), ("usable_cores", "cores"), ("gpus", "GPUs"))
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
        ratio: Now by before, with its interval.
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
    same_artifact: bool | None = None
    error: str | None = None
    regressed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "input_size": list(self.input_size)}

    @property
    def text(self) -> str:
        """In words."""
        where = f"{self.network}, {self.backend} {self.precision}, batch {self.batch}"
        if self.ratio is None:
            return f"{where}: {self.kind}{f' ({self.error})' if self.error else ''}"
        change = ", ".join(f"{100 * (end - 1):+.1f}" for end in (self.ratio.low, self.ratio.high)).replace(", ", " to ")
        return f"{where}: {self.kind}, {100 * (self.ratio.value - 1):+.1f} % ({change} %)"


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
    changes = [_change(before.get(key), row, bound) for key, row in now.items()]
    changes += [_change(row, None, bound) for key, row in before.items() if key not in now]
    return Comparison(tuple(changes), bound, tuple(other), tuple(notes))


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    seen: set[Key] = set()
    for key, row in _all_rows(document):
        if key not in seen:
            seen.add(key)
            yield key, row


def _all_rows(document: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    for group in document["groups"]:
        for row in group["rows"]:
            if row["samples_ns"] or row["error"]:
                yield (row["network"], row["backend"], row["precision"], row["batch"], tuple(row["input_size"])), row


def _repeated(document: Mapping[str, Any]) -> list[Key]:
    """Rows of one key but of different files; a baseline that stands in several groups is no such row."""
    files: dict[Key, set[str]] = {}
    for key, row in _all_rows(document):
        files.setdefault(key, set()).add(row["artifact_sha256"] or "")
    return [key for key, hashes in files.items() if len(hashes) > 1]


def _named(key: Key) -> str:
    return f"{key[0]} ({key[1]} {key[2]}, batch {key[3]})"


def _change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, bound: float | None) -> Change:
    told = new or old
    assert told is not None, "one of them has it"
    there = {name: row for name, row in (("old", old), ("new", new)) if row and row["error"] is None}
    hashes = [row["artifact_sha256"] for row in there.values()]

    def made(kind: Kind, **more: Any) -> Change:
        return Change(
            told.get("label") or told["network"],
            told["backend"],
            told["precision"],
            told["batch"],
            tuple(told["input_size"]),
            kind,
            old_ms=there["old"]["median_ms"] if "old" in there else None,
            new_ms=there["new"]["median_ms"] if "new" in there else None,
            same_artifact=hashes[0] == hashes[1] if len(hashes) == 2 and all(hashes) else None,
            **more,
        )

    if new is None:
        return made("missing")
    if old is None:
        return made("new", error=new["error"])
    if new["error"] is not None:
        was_there = "old" in there
        return made(
            "fails now" if was_there else "fails", error=new["error"], regressed=was_there and bound is not None
        )
    if old["error"] is not None:
        return made("works now")
    found = ratio(_samples(new), _samples(old), paired=False)
    if found is None:
        return made("not told apart")
    kind: Kind = "slower" if found.low > 1 else "faster" if found.high < 1 else "not told apart"
    return made(kind, ratio=found, regressed=bound is not None and found.low > 1 + bound)


def _samples(row: Mapping[str, Any]) -> Samples:
    return Samples(row["network"], tuple(tuple(part) for part in row["samples_ns"]))


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[tuple[str, str]] | None = None
) -> list[str]:
    pairs = names or [(name, name) for name in dict.fromkeys([*old, *new])]
    return [
        f"{title}: {_plain(old.get(name))} before, {_plain(new.get(name))} now"
        for name, title in pairs
        if old.get(name) != new.get(name)
    ]


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(one) for one in value) or "none"
    return "none" if value is None else str(value)
