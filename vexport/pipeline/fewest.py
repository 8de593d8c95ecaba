"""The fewest layers of a ranking without which a gate holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Of so few layers that are left out, each is tried once more: is it needed beside the others?
MOST_TRIED_AGAIN = 8


def fewest_left_out(
    ranked: Sequence[str], passes: Callable[[Sequence[str]], bool], on_try: Callable[[int], None] = lambda _: None
) -> list[str] | None:
    """The fewest layers of a ranking without which a gate holds.

    First the shortest beginning of the ranking, found by doubling and halving as if more layers never did harm; then,
    where that is at most 8 layers, each is put back if the gate holds without it. That is not every subset: another
    one as small may exist.

    Args:
        ranked: Layers, the worst first.
        passes: Whether the gate holds with these left out.
        on_try: Told how many are left out, before each try.

    Returns:
        In the order of the ranking; None where not even all but the last would do.
    """

    def holds(layers: Sequence[str]) -> bool:
        on_try(len(layers))
        return passes(layers)

    most, count, too_few = len(ranked) - 1, 1, 0
    if most < 1:
        return None
    while not holds(ranked[:count]):
        if count == most:
            return None
        too_few, count = count, min(2 * count, most)
    enough = count
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if holds(ranked[:middle]):
            enough = middle
        else:
            too_few = middle
    needed = list(ranked[:enough])
    if len(needed) <= MOST_TRIED_AGAIN:
        # The last one is needed: without it the gate was missed.
        for layer in needed[-2::-1]:
            rest = [other for other in needed if other != layer]
            if rest and holds(rest):
                needed = rest
    return needed
