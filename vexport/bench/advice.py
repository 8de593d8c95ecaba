"""What follows from all groups together: what to pick on this device, and where INT8 does not pay.

It is drawn from the groups as the document has them: one that is read again is judged by the rules of today.

Rows of different groups took no turns with each other. Where they are compared all the same, the interval is that of
two runs one after the other, which a load that comes and goes can shift; the sentences say so. Which accuracies count
as equal says `vexport.bench.accuracy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vexport.bench.accuracy import Top1, is_as_accurate, pareto_front
from vexport.bench.clock import Samples, ratio
from vexport.bench.report import relation, times, times_span
from vexport.bench.statistics import Ratio

FLOATING = ("FP32", "FP16", "BF16")
SUBJECT = "VanillaNet"
LEAST_INT8 = 0.5  # of the arithmetic: below, a row of an INT8 file says nothing of INT8
_INT8_WORDS = (
    "is slower than floating point, so there is no reason for it",
    "is not shown to be faster than floating point, nor to be slower",
    "is faster, but its accuracy is not known, so it is not picked (trained weights and --data DIR tell it)",
)


@dataclass(frozen=True)
class Option:
    """A row as something to pick.

    Args:
        network: Its name.
        title: For people.
        family: Of the network.
        device: What it ran on.
        backend: Its name, the same for all precisions of one backend.
        backend_title: For people.
        precision: `FP32` ...
        batch: Images per call.
        input_size: C, H and W.
        samples: Of its calls.
        group: Options of one group took turns with each other.
        accuracy: None where it is not known.
        published: Whether that is a published one.
        unstable: Whether its figures are marked so.
        int8_share: Share of its multiply-accumulates that ran in INT8; None where it is no INT8 row or not told.
    """

    network: str
    title: str
    family: str
    device: str
    backend: str
    backend_title: str
    precision: str
    batch: int
    input_size: tuple[int, int, int]
    samples: Samples
    group: int
    accuracy: Top1 | None = None
    published: bool = False
    unstable: bool = False
    int8_share: float | None = None

    @property
    def usable(self) -> bool:
        return self.samples.error is None and self.median_ms > 0

    @property
    def median_ms(self) -> float:
        return self.samples.median_ms

    @property
    def place(self) -> tuple[object, ...]:
        """Only options of one place are alternatives."""
        return (self.device, self.batch, self.input_size)

    @property
    def how(self) -> str:
        told = self.precision in self.backend_title.upper().split()
        return self.backend_title if told else f"{self.backend_title} {self.precision}"

    @property
    def named(self) -> str:
        source = " published" if self.published else ""
        top1 = f", {self.accuracy.percent:.2f} %{source}" if self.accuracy is not None else ""
        doubt = ", unstable" if self.unstable else ""
        return f"{self.title} ({self.how}{top1}, {_ms(self.median_ms)}{doubt})"


def mostly_float(int8_share: float | None) -> bool:
    """Whether a row of an INT8 file ran in floating point for the most part; a share that is not told is believed."""
    return int8_share is not None and int8_share < LEAST_INT8


@dataclass(frozen=True)
class Instead:
    """What to take in place of a network that something else beats at its accuracy.

    Args:
        own: The network's fastest form.
        text: The sentence.
    """

    own: Option
    text: str

    def to_json(self) -> dict[str, Any]:
        own = self.own
        return {
            "network": own.network,
            "device": own.device,
            "batch": own.batch,
            "input_size": list(own.input_size),
            "text": self.text,
        }


@dataclass(frozen=True)
class Advice:
    """What a document says over its groups.

    Args:
        sentences: For every device, batch and size: what to pick, what to take instead of each VanillaNet that is
            beaten, and where INT8 does not pay.
        instead: The second of these, with the networks that they are about.
        beside_float: INT8 options by their places, each with its network's fastest floating-point form in the same
            backend, and its time by that one's.
    """

    sentences: tuple[str, ...]
    instead: tuple[Instead, ...]
    beside_float: Mapping[int, tuple[Option, Ratio]]


def conclude(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a document says over its groups.

    Args:
        groups: As they stand in the document, without conclusions or with earlier ones.

    Returns:
        Parts of the document: `groups`, whose INT8 rows stand beside floating point, `advice` and `instead`.
    """
    options = [_option(index, group, row) for index, group in enumerate(groups) for row in group["rows"]]
    advice = advise(options)
    places = iter(range(len(options)))
    concluded = [
        {**group, "rows": [{**row, "against_float": _to_json(advice.beside_float.get(next(places)))}
                           for row in group["rows"]]}
        for group in groups
    ]  # fmt: skip
    instead = [one.to_json() for one in advice.instead]
    return {"groups": concluded, "advice": list(advice.sentences), "instead": instead}


def _to_json(beside: tuple[Option, Ratio] | None) -> dict[str, Any] | None:
    return {"precision": beside[0].precision, **beside[1].to_json()} if beside else None


def _option(index: int, group: Mapping[str, Any], row: Mapping[str, Any]) -> Option:
    accuracy = row.get("accuracy")
    return Option(
        network=row["network"],
        title=row.get("label") or row["network"],
        family=row.get("family") or "others",
        device=group.get("device") or "this device",
        backend=row.get("backend_name") or group["backend"],
        backend_title=group["backend"],
        precision=group["precision"],
        batch=group["batch"],
        input_size=tuple(group["input_size"]),
        samples=Samples(row["network"], tuple(tuple(part) for part in row.get("samples_ns") or ()), row.get("error")),
        group=index,
        accuracy=Top1(accuracy["top1_percent"], accuracy.get("images")) if accuracy else None,
        published=accuracy is not None and accuracy["source"] == "published",
        unstable=bool(row.get("unstable")),
        int8_share=row.get("int8_share"),
    )


def advise(options: Sequence[Option]) -> Advice:
    """What to pick, and what not.

    Args:
        options: All rows of a document.
    """
    beside = {index: found for index, option in enumerate(options) if (found := _beside_float(option, options))}
    usable = [(index, option) for index, option in enumerate(options) if option.usable]
    places = list(dict.fromkeys(option.place for _, option in usable))
    said, instead = list[str](), list[Instead]()
    for place in places:
        here = [(index, option) for index, option in usable if option.place == place]
        int8 = [(option, *beside[index]) for index, option in here if index in beside]
        kept = [
            option
            for index, option in here
            if not mostly_float(option.int8_share) and (index not in beside or beside[index][1].high < 1)
        ]
        picks, beaten, int8_lines = _picks(kept), _instead(kept), _int8(int8)
        _, first = here[0]
        on = f"On {first.device}, batch {first.batch}, {'x'.join(str(side) for side in first.input_size[1:])}: "
        # One place is named once, several with every sentence.
        rest = "" if len(places) == 1 and picks else on
        beaten = [replace(one, text=rest + one.text) for one in beaten]
        said += [*(on + line for line in picks), *(one.text for one in beaten), *(rest + line for line in int8_lines)]
        instead += beaten
    return Advice(tuple(said), tuple(instead), beside)


def front(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats in latency at their accuracy, fastest first."""
    known = [(option, option.accuracy) for option in options if option.accuracy is not None]
    places = pareto_front([(option.median_ms, accuracy) for option, accuracy in known])
    return [known[place][0] for place in places]


def _picks(options: Sequence[Option]) -> list[str]:
    best = front(options)
    if len(best) < 2 and len({option.network for option in options}) < 2:
        return []
    if not best:
        return ["no accuracy is known, so there is nothing to pick by."]
    return [f"pick by accuracy and latency: {'; '.join(option.named for option in best)}."]


def _instead(options: Sequence[Option]) -> list[Instead]:
    """What to take in place of a VanillaNet that something else beats at its accuracy."""
    said = []
    for network in dict.fromkeys(o.network for o in options if o.family == SUBJECT and o.accuracy is not None):
        own = min((o for o in options if o.network == network and o.accuracy is not None), key=_latency)
        assert own.accuracy is not None
        rivals = [
            (other, found)
            for other in options
            if other.family != SUBJECT
            and other.accuracy is not None
            and is_as_accurate(other.accuracy, own.accuracy)
            and (found := _by(own, other)) is not None
            and found.low > 1
        ]
        if rivals:
            rival, found = min(rivals, key=lambda pair: pair[0].median_ms)
            assert rival.accuracy is not None
            turns = "in turns" if own.group == rival.group else "one after the other"
            level = "its accuracy" if is_as_accurate(own.accuracy, rival.accuracy) else "less accuracy"
            said.append(
                Instead(
                    own,
                    f"Instead of {own.named} take {rival.named}: {own.title} has {level} and is {relation(found)}, "
                    f"measured {turns}.",
                )
            )
    return said


def _int8(found: Sequence[tuple[Option, Option, Ratio]]) -> list[str]:
    """INT8 that is slower than floating point, that is not told apart from it, and that is faster but unproven."""
    said = []
    for backend in dict.fromkeys(option.backend for option, _, _ in found):
        parts: dict[str, list[str]] = {words: [] for words in _INT8_WORDS}
        mine = [option for option, _, _ in found if option.backend == backend and mostly_float(option.int8_share)]
        shares = ", ".join(f"{option.title} {option.int8_share:.0%}" for option in mine)
        if mine:
            said.append(
                f"INT8 in {backend} is not judged where most of the arithmetic ran in floating point; shares that ran "
                f"in INT8: {shares}."
            )
        for option, other, by in found:
            if mostly_float(option.int8_share):
                continue
            words = _INT8_WORDS[0 if by.low > 1 else 1 if by.high >= 1 else 2]
            if option.backend == backend and (by.high >= 1 or option.accuracy is None):
                parts[words].append(
                    f"{option.title} {times(by.value)} the time of {other.precision} "
                    f"({times_span(by)}{', unstable' if option.unstable or other.unstable else ''})"
                )
        said += [f"INT8 in {backend} {words}: {'; '.join(named)}." for words, named in parts.items() if named]
    return said


def _beside_float(option: Option, options: Sequence[Option]) -> tuple[Option, Ratio] | None:
    """The fastest floating-point form of an INT8 option's network in its backend, and INT8's time by that one's."""
    if option.precision != "INT8" or not option.usable:
        return None
    same = [
        other
        for other in options
        if (other.network, other.backend, other.place) == (option.network, option.backend, option.place)
        and other.precision in FLOATING
        and other.usable
    ]
    other = min(same, key=_latency, default=None)
    found = _by(option, other) if other else None
    return (other, found) if other and found else None


def _by(one: Option, other: Option) -> Ratio | None:
    return ratio(one.samples, other.samples, paired=one.group == other.group)


def _latency(option: Option) -> float:
    return option.median_ms


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
