"""What an ablation recipe can say: a training recipe, the runs that change it, and the seeds of each.

Those that ship are named without a path (`vexport ablate techniques`). All runs are checked before the first one is
trained: what is wrong with a run's training recipe is told with the line of the ablation recipe that brought it.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from vexport.errors import InputError, RecipeError
from vexport.recipe.checks import Finding, Location
from vexport.recipe.load import find_recipe, load_as, load_recipe, recipe_hash, recipes_folder
from vexport.recipe.sections import Float, Int, Recipe, Section
from vexport.recipe.settings import are_related, as_settings, field_of, flatten, without

FOLDER = "ablation"
# Each run has its own.
OWN = {"name": "each run is named by its run and seed", "seed": "seeds are given by `seeds`, or with --seeds"}
SOURCE = "data.source"  # --data
RUN_FIELDS = ("row", "column", "set", "published")
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


def _no_field(_value: object) -> object:
    raise ValueError(f"is not a field here; fields are {', '.join(RUN_FIELDS)}")


def _fields_of(what: str, *, some: bool = False) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, (Mapping, Section)):
            raise ValueError(f"should be a section with {what}, not {type(value).__name__}")
        if some and not value:
            raise ValueError(f"should be a section with {what}, not empty")
        return value

    return BeforeValidator(check)


def _file_stem(name: str) -> str:
    allowed = name.isascii() and name.replace(".", "").replace("-", "").replace("_", "").isalnum()
    if not allowed or name[0] in ".-":
        raise ValueError("is not letters, digits, '_', '-' and '.': files are named by it")
    return name


Settings = Annotated[dict[str, Any], _fields_of("fields of the training recipe")]
Percent = Annotated[Float, Field(ge=0, le=100)]


class RunSection(Section):
    """One run: what it changes, where it stands in the table, and what the paper says of it.

    `published` is its top-1 on ImageNet, in per cent.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    # Each unknown field is an error at its own place; pydantic's own error would be described as a field of a section.
    __pydantic_extra__: dict[str, Annotated[Any, BeforeValidator(_no_field)]]

    row: str = ""
    column: str
    set: Settings = Field(default_factory=dict)
    published: Percent | None = None


Run = Annotated[RunSection, _fields_of(f"the fields {', '.join(RUN_FIELDS)}")]
RunName = Annotated[str, AfterValidator(_file_stem)]


class AblationRecipe(Section):
    """An ablation.

    `base` names the training recipe, `set` changes it for all runs. Runs of one row are compared with the one in the
    column `reference`. A run that tells nothing for `patience_s` counts as hung; outside of epochs, if it computes
    nothing too.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    title: str = ""
    base: str
    set: Settings = Field(default_factory=dict)
    seeds: Annotated[tuple[Annotated[Int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0, 1, 2)
    reference: str | None = None
    runs: Annotated[dict[RunName, Run], _fields_of("the runs by name", some=True)]
    patience_s: Annotated[Float, Field(gt=0)] = 1800.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, every field filled in."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        return plain


@dataclass(frozen=True)
class Ablation:
    """An ablation recipe with what the caller set, checked.

    Args:
        recipe: The ablation.
        file: Where it stands.
        base: The training recipe's file.
        overrides: `section.field=value` for all runs: stronger than `set`, weaker than what a run itself sets.
        seeds: Of each run.
        runs: Names or patterns of the runs that were chosen; none where all are.
        refused: Fields that the caller set and that a run which was not chosen cannot have, by run: it goes without.
    """

    recipe: AblationRecipe
    file: Path
    base: Path
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[str, ...] = ()
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def settings(self, run: str, seed: int) -> list[str]:
        """What a run sets in the training recipe, as `section.field=value`; the last of two for one field counts."""
        own = [f"name={run_name(run, seed)}", f"seed={seed}"]
        return [*_settings_of(self.recipe, run, without(self.overrides, self.refused.get(run, ()))), *own]

    def plan(self, run: str, seed: int) -> Recipe:
        """A run's training recipe."""
        return load_recipe(self.base, self.settings(run, seed))

    def list_unreached(self) -> list[str]:
        """For each field that the caller set, in words, the runs that it does not change."""
        lines = []
        for name in dict.fromkeys(map(field_of, self.overrides)):
            if runs := [run for run, section in self.recipe.runs.items() if name in _fields(section)]:
                lines.append(f"--set {name} has no effect on {', '.join(runs)}: set there")
            if runs := [run for run, names in self.refused.items() if name in names]:
                lines.append(f"--set {name} has no effect on {', '.join(runs)}: not chosen, and not possible there")
        return lines

    def repeat(self) -> list[str]:
        """The words of a command that does the runs of this ablation, as what was set changes them.

        All of them, unless some cannot have what was set: then those that were chosen.
        """
        shipped = self.file.parent == recipes_folder() / FOLDER
        words = ["vexport", "ablate", self.recipe.name if shipped else str(self.file)]
        settings = {field_of(text): text for text in self.overrides}  # the last of two counts
        source = yaml.safe_load(settings.pop(SOURCE).partition("=")[2]) if SOURCE in settings else None
        words += ["--data", str(source)] if source is not None else []
        for text in settings.values():
            words += ["--set", text]
        if self.seeds != self.recipe.seeds:
            words += ["--seeds", ",".join(map(str, self.seeds))]
        for pattern in self.runs if self.refused else ():
            words += ["--runs", pattern]
        return words

    @property
    def sha256(self) -> str:
        """Hash of what shapes the weights of all runs."""
        hashes = {name: recipe_hash(self.plan(name, seed)) for name in self.recipe.runs for seed in self.seeds[:1]}
        text = json.dumps({"runs": hashes, "seeds": self.seeds}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def run_name(run: str, seed: int) -> str:
    """What a run of one seed is called: its folder, and the stem of its files."""
    return f"{run}.s{seed}"


def load_ablation(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int] | None = None,
    runs: Sequence[str] = (),
) -> Ablation:
    """Read and check an ablation recipe and the training recipes of all its runs.

    Args:
        name_or_path: A shipped recipe's name, or a path.
        overrides: `section.field=value`, for the training recipe of every run. Chosen runs must be able to have them;
            the others go without those that they cannot have.
        seeds: In place of the recipe's.
        runs: Names or patterns (`alexnet_*`) of the chosen runs; none chooses all.

    Raises:
        RecipeError: there is no such recipe, or it has errors; each is a line of `details`.
        InputError: the seeds do not fit, or there is no such run.
    """
    file = find_recipe(name_or_path, FOLDER)
    _require_seeds(seeds)
    given: list[str] = []  # errors of what the caller set
    refused: dict[str, tuple[str, ...]] = {}

    def check(recipe: AblationRecipe) -> list[Finding]:
        findings = [*_check_table(recipe), *_check_settings(recipe)]
        chosen = choose_runs(recipe, runs if overrides else ())
        given.extend(_without_effect(recipe, overrides, chosen))
        base = _find_base(recipe.base, file)
        if isinstance(base, str):
            return [*findings, (("base",), base)]
        # What is refused already is not told a second time by the training recipe.
        if findings := findings or list(dict.fromkeys(_check_runs(recipe, base, overrides, chosen, given))):
            return findings
        others = [] if given else [name for name in recipe.runs if name not in chosen]
        left_out = {name: _refused_by(recipe, base, name, overrides) for name in others}
        refused.update({name: fields for name, fields in left_out.items() if fields})
        wrong = [name for name, fields in left_out.items() if fields is None]  # whatever the caller sets
        if wrong:
            return list(dict.fromkeys(_check_runs(recipe, base, (), wrong, given)))
        return list(_check_twins(recipe, base, overrides, chosen, left_out))

    given += [f"--set {name}: {OWN[name]}" for name in map(field_of, overrides) if name in OWN]
    overrides = [text for text in overrides if field_of(text) not in OWN]
    details: Sequence[str] = ()
    recipe = None
    try:
        recipe = load_as(AblationRecipe, file, (), check)
    except RecipeError as error:
        if not error.details:
            raise
        details = error.details
    if given or recipe is None:
        details = [*dict.fromkeys(given), *details]
        what = f"{file} with what was set" if given else str(file)
        count = f"{len(details)} error{'s' if len(details) > 1 else ''}"
        raise RecipeError(f"{what} has {count}", details=details, hint="correct the lines above")
    base = _find_base(recipe.base, file)
    assert isinstance(base, Path), "checked above"
    choose_runs(recipe, runs)
    own_seeds = tuple(recipe.seeds if seeds is None else seeds)
    return Ablation(recipe, file, base, tuple(overrides), own_seeds, tuple(runs), refused)


def choose_runs(recipe: AblationRecipe, patterns: Sequence[str]) -> list[str]:
    """The runs of these names or patterns, in the recipe's order; all where none is given.

    Raises:
        InputError: there is no such run.
    """
    names: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(recipe.runs, pattern)
        if not found:
            raise unknown_run(pattern, recipe)
        names.update(found)
    return [name for name in recipe.runs if not patterns or name in names]


def _require_seeds(seeds: Sequence[int] | None) -> None:
    if seeds is None:
        return
    if not seeds:
        raise InputError("there is no seed", hint="as in --seeds 0,1,2")
    for index, seed in enumerate(seeds):
        if seed in seeds[:index]:
            raise InputError(f"seed {seed} is given twice: its two runs would be the same", hint="give each seed once")
        if not 0 <= seed < 2**32:
            raise InputError(f"seed {seed} is not within 0 and 2**32 - 1", hint="as in --seeds 0,1,2")


def _find_base(named: str, file: Path) -> Path | str:
    """The training recipe's file, a path also beside the ablation's; or what is wrong."""
    beside = file.parent / named
    if Path(named).suffix in (".yaml", ".yml") and beside.is_file():
        return beside
    try:
        return find_recipe(named)
    except RecipeError as error:
        return f"{error.message}; {error.hint}"


def _check_table(recipe: AblationRecipe) -> list[Finding]:
    findings: list[Finding] = []
    places: dict[tuple[str, str], str] = {}
    for name, run in recipe.runs.items():
        place = (run.row, run.column)
        if place in places:
            findings.append((("runs", name, "column"), f"{' '.join(place).strip()} is where {places[place]} stands"))
        places.setdefault(place, name)
    columns = list(dict.fromkeys(run.column for run in recipe.runs.values()))
    if recipe.reference is not None and recipe.reference not in columns:
        findings.append((("reference",), f"no run has this column; there are {', '.join(columns)}"))
    for index, seed in enumerate(recipe.seeds):
        if seed in recipe.seeds[:index]:
            findings.append((("seeds", str(index)), f"{seed} is given before: its two runs would be the same"))
    return findings


def _check_settings(recipe: AblationRecipe) -> list[Finding]:
    """Refuse what each run has of its own."""
    places: list[tuple[Location, Mapping[str, Any]]] = [(("set",), recipe.set)]
    places += [(("runs", name, "set"), run.set) for name, run in recipe.runs.items()]
    return [((*at, name), OWN[name]) for at, settings in places for name in settings if name in OWN]


def _without_effect(recipe: AblationRecipe, overrides: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """What the caller sets and every chosen run sets anew."""
    own = [_fields(recipe.runs[name]) for name in chosen]
    which = "every run" if len(chosen) == len(recipe.runs) else "every chosen run"
    names = [name for name in map(field_of, overrides) if all(name in fields for fields in own)]
    return [f"--set {name}: {which} sets this itself: it is what they are compared by" for name in names]


def _fields(run: RunSection) -> set[str]:
    """Dotted fields of the training recipe that a run sets."""
    return {".".join(keys) for keys, _ in flatten(run.set)}


def _check_runs(
    recipe: AblationRecipe, base: Path, overrides: Sequence[str], names: Sequence[str], given: list[str]
) -> Iterator[Finding]:
    """What is wrong with the training recipes of some runs; what is the caller's fault goes into `given`."""
    hashes: dict[str, str] = {}
    of_base: dict[str, list[str]] = {}  # runs by line
    for name in names:
        try:
            plan = load_recipe(base, [*_settings_of(recipe, name, overrides), "name=run", "seed=0"])
        except RecipeError as error:
            for line in error.details or (error.message,):
                if not line.startswith("--set "):
                    of_base.setdefault(line, []).append(name)
                elif (found := _blame(line, recipe, name, overrides)) is None:
                    given.append(line)
                else:
                    yield found
            continue
        same = hashes.setdefault(recipe_hash(plan), name)
        if same != name:
            yield ("runs", name), f"is the same training as {same}: nothing that it sets makes a difference"
    for line, where in of_base.items():
        # A field of the base that does not go with what is set: by a run, or for all of them.
        yield from [(("base",), line)] if len(where) == len(names) else [(("runs", name), line) for name in where]


def _check_twins(
    recipe: AblationRecipe,
    base: Path,
    overrides: Sequence[str],
    chosen: Sequence[str],
    others: Mapping[str, Collection[str] | None],
) -> Iterator[Finding]:
    """Chosen runs that are the same training as one that was not chosen."""
    trained = {_hash_of(recipe, base, name, without(overrides, fields or ())): name for name, fields in others.items()}
    for name in chosen:
        if same := trained.get(_hash_of(recipe, base, name, overrides)):
            yield ("runs", name), f"is the same training as {same}: nothing that it sets makes a difference"


def _refused_by(recipe: AblationRecipe, base: Path, run: str, overrides: Sequence[str]) -> tuple[str, ...] | None:
    """The fewest fields of the caller's without which a run's training recipe is right; None where nothing helps."""
    names = list(dict.fromkeys(map(field_of, overrides)))
    if _hash_of(recipe, base, run, ()) is None:
        return None
    every = (fields for count in range(len(names) + 1) for fields in combinations(names, count))
    return next(fields for fields in every if _hash_of(recipe, base, run, without(overrides, fields)) is not None)


def _hash_of(recipe: AblationRecipe, base: Path, run: str, overrides: Sequence[str]) -> str | None:
    """Of a run's training recipe, whatever its name; None where it is wrong."""
    try:
        return recipe_hash(load_recipe(base, [*_settings_of(recipe, run, overrides), "name=run", "seed=0"]))
    except RecipeError:
        return None


def _blame(line: str, recipe: AblationRecipe, run: str, overrides: Sequence[str]) -> Finding | None:
    """Where an error of what a run's training recipe was set to comes from; None for the caller's."""
    name, _, message = line.removeprefix("--set ").partition(": ")
    places: list[tuple[Location, Mapping[str, Any]]] = [
        (("runs", run, "set"), recipe.runs[run].set),
        (("set",), recipe.set),
    ]
    for at, settings in places:
        for keys, _ in flatten(settings):
            if are_related(name, ".".join(keys)):
                return (*at, *keys), message if name == ".".join(keys) else f"{name}: {message}"
        if any(are_related(name, field_of(text)) for text in overrides):  # between a run's own and what all have
            return None
    return ("runs", run), f"{name}: {message}"


def _settings_of(recipe: AblationRecipe, run: str, overrides: Sequence[str]) -> list[str]:
    """`section.field=value` of the ablation, the caller and a run, the strongest last."""
    return [*as_settings(recipe.set), *overrides, *as_settings(recipe.runs[run].set)]


def unknown_run(name: str, recipe: AblationRecipe) -> InputError:
    """The refusal of a run that an ablation does not have."""
    near = difflib.get_close_matches(name, list(recipe.runs), n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipe.runs)}"
    return InputError(f"{recipe.name} has no run '{name}'", hint=guess)
