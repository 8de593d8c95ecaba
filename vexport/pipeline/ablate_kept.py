"""What earlier calls left in an ablation's folder: figures, failures, and runs that are still to be trained anew.

Figures count while the run's recipe is the same and its checkpoint is the one that they were taken from. So do those of
seeds that are not asked for this time: a table never becomes smaller by another call. A table is of one set of images:
what was trained on others is left out of it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vexport.engine.timing import write_atomically
from vexport.errors import InputError
from vexport.recipe import ImagesSection, Recipe, recipe_hash
from vexport.recipe.ablation import run_name
from vexport.workspace import mapped_os_errors, read_manifest

# Of a run, in its folder: what its files were trained by, its figures, why the last try brought none, and which
# checkpoint --force gave up.
RECIPE, RESULT, FAILURE, ANEW = "recipe.json", "result.json", "failure.json", "anew.json"
# Data that only the training package reads.
STREAMED = ("wds", "hfds")
Key = tuple[str, int]  # run and seed


@dataclass
class Kept:
    """What is there.

    Args:
        results: Figures and failures by run and seed, also of seeds that were not asked for.
        elsewhere: Runs that were trained on other images than these, and on which.
        other_recipes: Runs that have figures of another recipe.
        anew: Runs that a call with --force gave up and did not come to.
    """

    results: dict[Key, dict[str, Any]] = field(default_factory=dict)
    elsewhere: dict[Key, str] = field(default_factory=dict)
    other_recipes: list[Key] = field(default_factory=list)
    anew: set[Key] = field(default_factory=set)


def read_runs(folder: Path, plans: Mapping[Key, Recipe], *, export: bool) -> Kept:
    """Read what there is of the runs.

    Args:
        folder: Of the ablation.
        plans: The training recipe of each run and seed that is asked for; other seeds of them are found here.
        export: Whether graphs are asked for.

    Raises:
        InputError: no images are named, and the runs were trained on different ones.
        WorkspaceError: the folder cannot be read.
    """
    kept = Kept()
    others = dict(_other_seeds(folder, plans))
    for key, plan in {**plans, **others}.items():
        own, hashed = run_folder(folder, key), recipe_hash(plan)
        if _awaits_training(own, plan.name, hashed):
            kept.anew.add(key)
        found = read_run(own, plan.name, hashed, export=export)
        then, now = (found or {}).get("source"), source_of(plan)
        if now is not None and then is not None and then != now:
            kept.elsewhere[key] = then
        elif found is not None:
            kept.results[key] = found
        elif (_read_json(own / RESULT) or {}).get("recipe_hash", hashed) != hashed:
            kept.other_recipes.append(key)
    sources: dict[str, list[str]] = {}
    for key, one in kept.results.items():
        if one.get("source") is not None:
            sources.setdefault(one["source"], []).append(run_name(*key))
    if len(sources) > 1:
        raise InputError(
            "the runs were trained on different images",
            details=[f"{source}: {', '.join(names)}" for source, names in sources.items()],
            hint="say with --data DIR which of them are compared",
        )
    return kept


def _other_seeds(folder: Path, plans: Mapping[Key, Recipe]) -> Iterator[tuple[Key, Recipe]]:
    """The training recipes of seeds that have a folder and are not asked for."""
    any_seed = {run: plan for (run, _), plan in plans.items()}
    with mapped_os_errors(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        run, _, digits = name.rpartition(".s")
        if run not in any_seed or not re.fullmatch("0|[1-9][0-9]{0,9}", digits):
            continue
        key = (run, int(digits))
        if key not in plans and key[1] < 2**32:
            yield key, any_seed[run].model_copy(update={"name": name, "seed": key[1]})


def read_run(own: Path, name: str, hashed: str, *, export: bool) -> dict[str, Any] | None:
    """A run's figures, with the failure of the last try where there is more to do; None where there is neither."""
    figures = None if _awaits_training(own, name, hashed) else read_figures(own, name, hashed)
    failure = _read_json(own / FAILURE)
    if is_done(figures, export) or failure is None or failure.get("recipe_hash") != hashed:
        return figures
    return {**failure, **(figures or {})}


def read_figures(own: Path, name: str, hashed: str) -> dict[str, Any] | None:
    """A run's figures, if its recipe is the same and its checkpoint still the one they were taken from."""
    result, manifest = _read_json(own / RESULT), read_manifest(own / f"{name}.last.ckpt")
    if result is None or manifest is None or result.get("recipe_hash") != hashed:
        return None
    return result if result.get("checkpoint_sha256") == manifest.sha256 else None


def is_done(result: Mapping[str, Any] | None, export: bool) -> bool:
    """Whether a run has all figures that are asked for."""
    found = result or {}
    deployed = found.get("deployed")
    return "top1" in found and (not export or (deployed is not None and "error" not in deployed))


def write_figures(own: Path, figures: Mapping[str, Any]) -> None:
    """Keep a run's figures; no earlier failure counts then.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    _write(own / RESULT, figures)
    with mapped_os_errors(own / FAILURE):
        for name in (FAILURE, ANEW):
            (own / name).unlink(missing_ok=True)


def write_failure(own: Path, hashed: str, source: str | None, failure: Mapping[str, Any]) -> None:
    """Keep why a run brought no figures, or no graph; figures that are there stay.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    _write(own / FAILURE, {"recipe_hash": hashed, "source": source, "folder": str(own), "failure": dict(failure)})


def give_up(own: Path, name: str, hashed: str) -> None:
    """Note that a run is to be trained anew, so that an interrupt does not bring its old figures back.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    manifest = read_manifest(own / f"{name}.last.ckpt")
    if manifest is not None:
        _write(own / ANEW, {"recipe_hash": hashed, "replaces": manifest.sha256})


def _awaits_training(own: Path, name: str, hashed: str) -> bool:
    """Whether the checkpoint is still the one that was given up for a run of this recipe."""
    note, manifest = _read_json(own / ANEW), read_manifest(own / f"{name}.last.ckpt")
    return note is not None and manifest is not None and note == {"recipe_hash": hashed, "replaces": manifest.sha256}


def require_same_recipes(folder: Path, plans: Mapping[Key, Recipe], chosen: Sequence[Key]) -> None:
    """Refuse what would write over runs of another recipe, or on other images: all at once.

    Raises:
        InputError: with each run and the fields that differ.
    """
    details = []
    for key in chosen:
        plan, own = plans[key], run_folder(folder, key)
        manifest = read_manifest(own / f"{plan.name}.last.ckpt")
        if manifest is None or _awaits_training(own, plan.name, recipe_hash(plan)):
            continue
        if manifest.options.get("recipe_hash") != recipe_hash(plan):
            before = _read_json(own / RECIPE)
            changed = _differences(before, plan.to_json()) if before else []
            # Only what shapes the weights makes another recipe of it.
            details.append(f"{plan.name}: {'; '.join(changed) or 'of another recipe'}")
        else:
            then, now = manifest.options.get("source"), source_of(plan)
            if None not in (then, now) and then != now and manifest.facts.get("epoch", 0) >= plan.epochs:
                details.append(f"{plan.name}: trained on {then}, now {now}")
    if details:
        count = f"{len(details)} run{'s are' if len(details) > 1 else ' is'}"
        raise InputError(
            f"{count} of another recipe",
            details=details,
            hint="undo the change, choose another --workspace, or give --force to train the chosen runs anew",
        )


def source_of(plan: Recipe) -> str | None:
    """Where a recipe's images lie, as checkpoints record it; None where it does not say or needs none."""
    source = plan.data.source if isinstance(plan.data, ImagesSection) else None
    if source is None or source.partition("/")[0] in STREAMED:
        return source
    return str(Path(source).expanduser().resolve())


def run_folder(folder: Path, key: Key) -> Path:
    """Where a run's files are."""
    return folder / run_name(*key)


def _differences(before: Any, now: Any, at: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys((*before, *now))
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))]
    return [] if before == now else [f"{at} {before} then, {now} now"]


def _write(path: Path, plain: Mapping[str, Any]) -> None:
    with mapped_os_errors(path):
        write_atomically(path, (json.dumps(plain, indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        data = json.loads(path.read_text(encoding="utf-8"))
        return data if isinstance(data, dict) else None
    return None
