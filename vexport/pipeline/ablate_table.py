"""From the figures of an ablation's runs to its table: mean and spread over seeds, and what differs beyond chance.

The runs of one seed begin with the same random state and see the images in the same order, so differences are taken
seed by seed (paired), and their interval is Student's t. Seeds tell the chance of training apart from an effect. All
are scored on the same held-out images, whose chance is not in the interval: an effect must also be larger than that
chance would be if each run had images of its own. With the same images it is smaller, so this errs to the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev
from types import MappingProxyType
from typing import Any

from vexport.deps import needs
from vexport.recipe.ablation import AblationRecipe

LEVEL = 0.95
NO_SPREAD = 1e-9  # points: what is left of equal differences after rounding
# (run, seed): figures as `do_run` gives them, a failure's {"failure": {...}}, or both where only the graph is missing.
Results = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """How much better a run is than its row's reference, in points of top-1.

    Args:
        value: Mean over the seeds that both have.
        low: Lower end of the interval; None with one seed, and where all differences are the same.
        high: Upper end, likewise.
        seeds: How many both have.
        images: That each was scored on; None where that is not recorded.
        chance: Up to which difference the choice of these images may be the cause, in points; None likewise.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    images: int | None = None
    chance: float | None = None

    @property
    def is_beyond_training(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def is_told_apart(self) -> bool:
        """Whether neither training nor the choice of images is likely to be the cause."""
        return self.is_beyond_training and abs(self.value) >= (self.chance or 0.0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": LEVEL if self.low is not None else None, "told_apart": self.is_told_apart}


@dataclass(frozen=True)
class TableRow:
    """One run of an ablation, over all seeds.

    Args:
        run: Its name.
        row: The row that it belongs to.
        column: What it is within that row.
        is_reference: Whether the others of the row are compared with it.
        top1: By seed, in per cent: of the averaged weights after the last epoch.
        mean: Over the seeds; None where none finished.
        std: Standard deviation over the seeds (n - 1); None with fewer than two.
        deployed_mean: Of the deployed graphs; None where not every seed has one.
        graph_max_rel: Largest difference of a graph's logits to its network's, relative to the largest logit.
        difference: To the reference; None where there is none.
        published: Of the paper, on ImageNet.
        published_difference: Likewise.
        failures: By seed, in words.
        missing: Seeds that have not been run.
        is_unlike: Whether something that the caller set reaches only one of it and its reference.
    """

    run: str
    row: str
    column: str
    is_reference: bool
    top1: Mapping[int, float]
    mean: float | None
    std: float | None
    deployed_mean: float | None
    graph_max_rel: float | None
    difference: Difference | None
    published: float | None
    published_difference: float | None
    failures: Mapping[int, str]
    missing: tuple[int, ...]
    is_unlike: bool = False

    @property
    def seeds(self) -> int:
        """How many finished."""
        return len(self.top1)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "top1": {str(seed): value for seed, value in self.top1.items()},
            "failures": {str(seed): text for seed, text in self.failures.items()},
            "missing": list(self.missing),
            "seeds": self.seeds,
            "difference": self.difference.to_json() if self.difference else None,
        }


def make_rows(
    recipe: AblationRecipe,
    seeds: Sequence[int],
    results: Results,
    refused: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> list[TableRow]:
    """One row of the table per run, in the recipe's order.

    Args:
        recipe: Which runs there are, and which is the reference.
        seeds: That each should have.
        results: What there is.
        refused: Fields that the caller set and a run goes without, by run. Only runs that go without the same ones are
            compared.
    """
    top1 = {
        name: {seed: float(results[name, seed]["top1"]) for seed in seeds if "top1" in results.get((name, seed), {})}
        for name in recipe.runs
    }
    references = {run.row: name for name, run in recipe.runs.items() if run.column == recipe.reference}
    rows = []
    for name, run in recipe.runs.items():
        own = top1[name]
        found = {seed: results[name, seed] for seed in seeds if (name, seed) in results}
        reference = references.get(run.row)
        other = reference if reference != name else None
        unlike = other is not None and set(refused.get(name, ())) != set(refused.get(other, ()))
        against = recipe.runs[other].published if other and not unlike else None
        rows.append(
            TableRow(
                run=name,
                row=run.row,
                column=run.column,
                is_reference=reference == name,
                top1=own,
                mean=fmean(own.values()) if own else None,
                std=stdev(own.values()) if len(own) > 1 else None,
                deployed_mean=_deployed_mean(found, len(own)),
                graph_max_rel=max(_of_deployed(found, "graph_max_rel"), default=None),
                difference=_compare_runs(name, other, top1, results) if other and not unlike else None,
                is_unlike=unlike,
                published=run.published,
                published_difference=None if None in (run.published, against) else run.published - against,  # type: ignore[operator]
                failures={seed: text for seed, one in found.items() if (text := _failure(one))},
                missing=tuple(seed for seed in seeds if seed not in found),
            )
        )
    return rows


def _failure(result: Mapping[str, Any]) -> str | None:
    if "failure" in result:
        text = str(result["failure"]["text"])
        return f"not deployed: {text}" if "top1" in result else text
    error = (result.get("deployed") or {}).get("error")
    return f"not deployed: {error}" if error else None


def _of_deployed(found: Mapping[int, Mapping[str, Any]], field: str) -> list[float]:
    deployed = [one.get("deployed") or {} for one in found.values()]
    return [float(one[field]) for one in deployed if one.get(field) is not None]


def _deployed_mean(found: Mapping[int, Mapping[str, Any]], seeds: int) -> float | None:
    values = _of_deployed(found, "top1")
    return fmean(values) if values and len(values) == seeds else None


def _compare_runs(
    name: str, other: str, top1: Mapping[str, Mapping[int, float]], results: Results
) -> Difference | None:
    shared = [(run, seed) for run in (name, other) for seed in top1[name] if seed in top1[other]]
    known = [int(results[key]["images"]) for key in shared if results[key].get("images") is not None]
    return compare_seeds(top1[name], top1[other], min(known) if known and len(known) == len(shared) else None)


def compare_seeds(own: Mapping[int, float], other: Mapping[int, float], images: int | None = None) -> Difference | None:
    """The mean difference over the seeds that both have, with its interval.

    Args:
        own: Top-1 by seed, in per cent.
        other: Of what it is compared with.
        images: That each was scored on, where that is known.

    Returns:
        The difference; None where they share no seed.
    """
    shared = [seed for seed in own if seed in other]
    if not shared:
        return None
    differences = [own[seed] - other[seed] for seed in shared]
    value, count = fmean(differences), len(differences)
    chance = image_chance([one[seed] for one in (own, other) for seed in shared], images) if images else None
    if count < 2:
        return Difference(value, None, None, count, images, chance)
    with needs("train"):
        from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it

    spread = stdev(differences)
    if spread < NO_SPREAD:  # an interval without width would promise that there is no chance in it
        return Difference(value, None, None, count, images, chance)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / count**0.5
    return Difference(value, value - half, value + half, count, images, chance)


def image_chance(top1: Sequence[float], images: int) -> float:
    """How far two accuracies may differ by the choice of their images, in points: at `LEVEL`, each with its own images.

    1.96 standard errors of the difference of two independent shares of N images, sqrt(2 p (1 - p) / N), p their mean.
    """
    share = fmean(top1) / 100
    return 100 * NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(2 * share * (1 - share) / images)


def tried(rows: Sequence[TableRow]) -> list[TableRow]:
    """Those of which at least one seed has been run."""
    return [row for row in rows if row.top1 or row.failures]


def describe(rows: Sequence[TableRow]) -> list[str]:
    """What each run that was tried shows against its row's reference, in plain words."""
    references = {row.row: row for row in rows if row.is_reference}
    compared = [row for row in tried(rows) if row.row in references and not row.is_reference]
    return [_verdict(row, references[row.row]) for row in compared]


def _verdict(row: TableRow, reference: TableRow) -> str:
    where = f" on {row.row}" if row.row else ""
    found = row.difference
    if found is None:
        lacking = row if row.mean is None else reference
        why = "failed" if lacking.failures else "has not been run" if lacking.mean is None else "shares no seed with it"
        if row.is_unlike:
            return f"{row.column}{where}: not compared with {reference.column}: what was set reaches only one of them"
        return f"{row.column}{where}: not compared with {reference.column}: {lacking.column} {why}"
    points = f"{found.value:+.2f} points"
    paper = f"; published on ImageNet: {row.published_difference:+.2f}" if row.published_difference is not None else ""
    if found.low is None or found.high is None:
        seeds = "one seed" if found.seeds == 1 else f"the same in all {found.seeds} seeds, so without an interval"
        return f"{row.column}: {points} over {reference.column}{where}, {seeds}: chance is not ruled out{paper}"
    interval = f"{found.low:+.2f} to {found.high:+.2f}, {found.seeds} seeds"
    if found.is_told_apart:
        word = "better" if found.value > 0 else "worse"
    else:
        word = "cannot be told apart"
        word += f": within the chance of {found.images:,} images" if found.is_beyond_training else ""
    return f"{row.column}: {points} ({interval}) over {reference.column}{where}: {word}{paper}"


def points(found: Difference | None) -> str:
    """A difference for a table's cell."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:+.2f}"
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
