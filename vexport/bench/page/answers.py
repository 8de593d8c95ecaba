"""The plain answer: is a VanillaNet faster than its rival at its accuracy?

Only networks of one group are compared, since they took turns. A VanillaNet answers for a rival where it is of its
accuracy, by the rule of `vexport.bench.accuracy`; of these the fastest counts. The words follow from the ratio's
interval alone: an interval that holds 1 is no answer. Where accuracy is not known, only one thing can be said of it:
networks that are all slower are slower at any accuracy. INT8 rows that ran in floating point for the most part answer
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vexport.bench.accuracy import is_as_accurate
from vexport.bench.advice import SUBJECT
from vexport.bench.page.document import Document, GroupPart, Interval, RowPart
from vexport.bench.page.words import accuracies, compare, int8_shares, percent, short_title
from vexport.bench.report import relation, times
from vexport.bench.statistics import paired_ratio

MOST_LINES = 4

Kind = Literal["faster", "slower", "undecided", "out of reach", "unknown", "failed"]


_WORDS: dict[Kind, str] = {
    "faster": "Yes.",
    "slower": "No.",
    "undecided": "Not decided.",
    "out of reach": "No answer.",
    "unknown": "No answer.",
    "failed": "No answer.",
}
_PLAIN: dict[Kind, str] = {
    "faster": f"A {SUBJECT} of its accuracy is faster",
    "slower": f"Every {SUBJECT} of its accuracy is slower",
    "undecided": "They cannot be told apart",
    "out of reach": f"No {SUBJECT} is accurate enough",
    "unknown": "Accuracy is not known, INT8 did not run, or no ratio could be formed",
    "failed": "A measurement is missing",
}


@dataclass(frozen=True)
class Answer:
    """What one group says of one rival.

    Args:
        kind: The answer in a word.
        rival: Whom it is about.
        text: The answer in sentences.
        row: The VanillaNet that answers; None where none does.
        ratio: Its time by the rival's.
        doubtful: Names of those compared whose figures are marked unstable.
        short: The answer where many answers stand together; the text where it is empty.
    """

    kind: Kind
    rival: RowPart
    text: str
    row: RowPart | None = None
    ratio: Interval | None = None
    doubtful: tuple[str, ...] = ()
    short: str = ""


def answers(document: Document, group: GroupPart) -> list[Answer]:
    """One answer per network that is no VanillaNet, the baseline's first; none where no VanillaNet is in the group."""
    subjects = [row for row in group.rows if row.kin == SUBJECT and not row.figures_only]
    rivals = [row for row in group.rows if row.kin != SUBJECT and not row.figures_only]
    if not subjects:
        return []
    rivals.sort(key=lambda row: row.network != document.baseline)
    return [_answer(document, subjects, rival) for rival in rivals]


def _answer(document: Document, subjects: Sequence[RowPart], rival: RowPart) -> Answer:
    measured = [row for row in subjects if row.measured]
    if not rival.measured:
        return Answer("failed", rival, f"{rival.name} was not measured: {rival.error or 'no figure'}.")
    if not measured:
        return Answer("failed", rival, f"No {SUBJECT} was measured in this group.")
    if rival.mostly_float:
        return Answer("unknown", rival, f"No INT8 verdict: {int8_shares([rival])}.")
    shallow = [row for row in measured if row.mostly_float]
    if len(shallow) == len(measured):
        return Answer("unknown", rival, f"No INT8 verdict: {int8_shares(shallow)}.")
    found = _answer_of([row for row in measured if row not in shallow], rival, document)
    more = f" Not judged: {int8_shares(shallow)}." if shallow else ""
    return replace(found, text=found.text + more, short=found.short + more if found.short else "")


def _answer_of(measured: Sequence[RowPart], rival: RowPart, document: Document) -> Answer:
    """Of rows that stand for their precision."""
    ranked = [(row, found) for row in measured if (found := time_ratio(document, row, rival)) is not None]
    ranked.sort(key=lambda pair: pair[1].value)
    if not ranked:
        return Answer("unknown", rival, f"Nothing stands beside {rival.name}: no ratio could be formed.")
    known = [(row, ratio, own) for row, ratio in ranked if (own := row.known_accuracy) is not None]
    wanted = rival.known_accuracy
    if wanted is None or not known:
        return _speed_alone(ranked, rival)
    able = [(row, ratio) for row, ratio, own in known if is_as_accurate(own, wanted)]
    if not able:
        row, ratio, _ = max(known, key=lambda entry: entry[2].percent)
        text = (
            f"No {SUBJECT} measured here reaches its {percent(rival.top1)}. The most accurate has "
            f"{percent(row.top1)}: {compare(row, rival, ratio)}."
        )
        return Answer("out of reach", rival, text, row, ratio, _doubtful(row, rival))
    kind = _kind([ratio for _, ratio in able])
    row, ratio = next((pair for pair in able if pair[1].high < 1), able[0])
    text = f"{compare(row, rival, ratio)}. {accuracies(row, rival)}"
    return Answer(kind, rival, text, row, ratio, _doubtful(row, rival))


def _speed_alone(ranked: Sequence[tuple[RowPart, Interval]], rival: RowPart) -> Answer:
    """What can be said where accuracies are not known."""
    (row, ratio), (last, most) = ranked[0], ranked[-1]
    doubtful = _doubtful(*(row for row, _ in ranked), rival)
    if _kind([ratio for _, ratio in ranked]) == "slower":
        every = f"Whatever their accuracy, every {SUBJECT} measured here is slower than {rival.name}"
        short = f"{every}: {times(ratio.value)} ({row.name}) to {times(most.value)} ({last.name}) the time."
        text = f"{every}: {_each(ranked)}."
        if len(ranked) == 1:
            short = text = f"Whatever its accuracy, {compare(row, rival, ratio)}."
        return Answer("slower", rival, text, row, ratio, doubtful, short)
    said = compare(row, rival, ratio) if len(ranked) == 1 else f"beside {rival.name}, {_each(ranked)}"
    text = f"Accuracy is not known here, so this is speed alone: {said}."
    return Answer("unknown", rival, text, row, ratio, doubtful)


def _each(ranked: Sequence[tuple[RowPart, Interval]]) -> str:
    return ", ".join(f"{row.name} {relation(ratio)}" for row, ratio in ranked)


def _kind(ratios: Sequence[Interval]) -> Kind:
    """Of networks that are all accurate enough: one that is faster suffices, slower must be all of them."""
    if any(ratio.high < 1 for ratio in ratios):
        return "faster"
    return "slower" if all(ratio.low > 1 for ratio in ratios) else "undecided"


def time_ratio(document: Document, row: RowPart, rival: RowPart) -> Interval | None:
    """How many times the rival's time a network takes; the document's own figure where the rival is its baseline."""
    if rival.network == document.baseline:
        return row.ratio
    if not row.samples_ns or not rival.samples_ns:
        return None
    found = paired_ratio(row.samples_ns, rival.samples_ns)
    return Interval(value=found.value, low=found.low, high=found.high, level=found.level) if found else None


def _doubtful(*rows: RowPart) -> tuple[str, ...]:
    return tuple(row.name for row in rows if row.unstable)


def group_verdicts(document: Document, group: GroupPart) -> list[str]:
    """A sentence per network beside the baseline, and per failure; the group's own title says where that holds."""
    baseline = next((row for row in group.rows if row.network == document.baseline), None)
    said = []
    if baseline is not None and baseline.mostly_float:
        said.append(f"No INT8 verdicts beside {baseline.name}: {int8_shares([baseline])}.")
    for row in group.rows:
        if row.error is not None:
            said.append(f"{row.name} failed: {row.error}.")
        elif baseline is None or row.ratio is None or row.network == document.baseline or baseline.mostly_float:
            continue
        elif row.mostly_float:
            said.append(f"No INT8 verdict on {row.name}: {int8_shares([row])}.")
        else:
            doubtful = _doubtful(row, baseline)
            doubt = f" Unstable: {', '.join(doubtful)}." if doubtful else ""
            said.append(f"{compare(row, baseline, row.ratio)}.{doubt}")
    return said


@dataclass(frozen=True)
class Headline:
    """The answer for the baseline over all groups.

    Args:
        word: A word or two, as `No.`
        lines: What it rests on: one line per group, or per answer where groups are many.
        take: What to take instead.
    """

    word: str
    lines: tuple[str, ...]
    take: tuple[str, ...] = ()


def headline(document: Document) -> Headline | None:
    """The answer for the baseline over all groups; None where no group answers."""
    found = [
        (group, answer)
        for group in document.groups
        for answer in answers(document, group)
        if answer.rival.network == document.baseline
    ]
    if not found:
        return None
    kinds = list(dict.fromkeys(answer.kind for _, answer in found))
    # What was not measured, or of whose accuracy nothing is known, contradicts nothing.
    told = [kind for kind in kinds if kind not in ("failed", "unknown")]
    told = told or [kind for kind in kinds if kind != "failed"] or kinds
    word = _WORDS[told[0]] if len(told) == 1 else "It depends." if "faster" in told else "Not shown."
    if len(found) == 1:
        lines = [with_doubt(found[0][1])]
    elif len(found) <= MOST_LINES:
        lines = [f"{short_title(document, group)}: {_short(answer)}" for group, answer in found]
    else:
        lines = []
        for kind in kinds:
            where = [short_title(document, group) for group, answer in found if answer.kind == kind]
            lines.append(f"{_PLAIN[kind]} in {len(where)} of {len(found)} tables: {'; '.join(where)}.")
    beaten = {answer.row.network for _, answer in found if answer.row and answer.row.top1 and answer.kind == "slower"}
    take = dict.fromkeys(one.text for one in document.instead if one.network in beaten)
    return Headline(word, tuple(lines), tuple(take)[:MOST_LINES])


def _short(answer: Answer) -> str:
    if not answer.short:
        return with_doubt(answer)
    return f"{answer.short} Unstable: {len(answer.doubtful)} of them." if answer.doubtful else answer.short


def with_doubt(answer: Answer) -> str:
    """The answer, and whose figures deserve doubt."""
    return f"{answer.text} Unstable: {', '.join(answer.doubtful)}." if answer.doubtful else answer.text
