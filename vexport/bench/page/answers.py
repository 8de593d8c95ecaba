"""The plain answer: is a VanillaNet faster than its rival at its accuracy?

Only networks of one group are compared, since they took turns. A VanillaNet answers for a rival where it is at least
as accurate; of these the fastest counts. The words follow from the ratio's interval alone: an interval that holds 1
is no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vexport.bench.page.document import Document, GroupPart, Interval, RowPart
from vexport.bench.page.words import SUBJECT, accuracies, compare, percent
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
    "unknown": "Accuracy is not known, or no ratio could be formed",
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
        doubtful: Names of those two whose figures are marked unstable.
    """

    kind: Kind
    rival: RowPart
    text: str
    row: RowPart | None = None
    ratio: Interval | None = None
    doubtful: tuple[str, ...] = ()


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
    ranked = [(row, found) for row in measured if (found := time_ratio(document, row, rival)) is not None]
    ranked.sort(key=lambda pair: pair[1].value)
    if not ranked:
        return Answer("unknown", rival, f"Nothing stands beside {rival.name}: no ratio could be formed.")
    known = [pair for pair in ranked if pair[0].top1 is not None]
    if rival.top1 is None or not known:
        said = "; ".join(compare(row, rival, ratio) for row, ratio in ranked)
        text = f"Accuracy is not known on both sides, so this is speed alone: {said}."
        return Answer("unknown", rival, text, *ranked[0], _doubtful(ranked[0][0], rival))
    able = [pair for pair in known if (pair[0].top1 or 0) >= rival.top1]
    if not able:
        row, ratio = max(known, key=lambda pair: pair[0].top1 or 0)
        text = (
            f"No {SUBJECT} measured here reaches its {percent(rival.top1)}. The most accurate has "
            f"{percent(row.top1)}: {compare(row, rival, ratio)}."
        )
        return Answer("out of reach", rival, text, row, ratio, _doubtful(row, rival))
    kind = _kind([ratio for _, ratio in able])
    row, ratio = next((pair for pair in able if pair[1].high < 1), able[0])
    text = f"{compare(row, rival, ratio)}. {accuracies(row, rival)}"
    return Answer(kind, rival, text, row, ratio, _doubtful(row, rival))


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


@dataclass(frozen=True)
class Headline:
    """The answer for the baseline over all groups.

    Args:
        word: A word or two, as `No.`
        lines: What it rests on: one line per group, or per answer where groups are many.
    """

    word: str
    lines: tuple[str, ...]


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
    word = _WORDS[kinds[0]] if len(kinds) == 1 else "It depends." if "faster" in kinds else "Not shown."
    if len(found) == 1:
        return Headline(word, (with_doubt(found[0][1]),))
    if len(found) <= MOST_LINES:
        return Headline(word, tuple(f"{_where(document, group)}: {with_doubt(answer)}" for group, answer in found))
    lines = []
    for kind in kinds:
        where = [_where(document, group) for group, answer in found if answer.kind == kind]
        lines.append(f"{_PLAIN[kind]} in {len(where)} of {len(found)} tables: {'; '.join(where)}.")
    return Headline(word, tuple(lines))


def with_doubt(answer: Answer) -> str:
    """The answer, and whose figures deserve doubt."""
    return f"{answer.text} Unstable: {', '.join(answer.doubtful)}." if answer.doubtful else answer.text


def _where(document: Document, group: GroupPart) -> str:
    """The fewest words that tell a group from the others."""
    parts = [group.precision]
    others = [other for other in document.groups if other is not group]
    if any(other.batch != group.batch for other in others):
        parts.append(f"batch {group.batch}")
    if any(other.input_size != group.input_size for other in others):
        parts.append(f"{group.input_size[1]}x{group.input_size[2]}")
    if any(other.backend != group.backend for other in others):
        parts.append(group.backend)
    return " ".join(parts)
