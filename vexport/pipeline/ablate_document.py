"""What an ablation leaves: `ablation.json` with every figure, the table as Markdown, and the picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vexport.bench.environment import describe_environment
from vexport.deps import tool_versions
from vexport.engine.timing import write_atomically
from vexport.errors import WorkspaceError
from vexport.pipeline.ablate_picture import PICTURES, draw_rows
from vexport.pipeline.ablate_table import LEVEL, Results, TableRow, describe, make_rows, points, tried
from vexport.recipe import ImagesSection, Recipe
from vexport.recipe.ablation import Ablation, AblationRecipe, run_name
from vexport.workspace import mapped_os_errors

SCHEMA = 1
STEM = "ablation"
LIBRARIES = ("torch", "torchvision", "timm", "lightning", "onnx", "onnxruntime", "numpy", "scikit-learn")
ACCURACY = (
    "top-1 of the averaged weights after the last epoch, on the held-out images: no epoch was chosen by looking at them"
)


def make_document(
    ablation: Ablation,
    results: Results,
    *,
    command: str,
    jobs: int,
    export: bool,
    left_out: Mapping[tuple[str, int], str] = MappingProxyType({}),
    other_recipes: Sequence[tuple[str, int]] = (),
) -> tuple[dict[str, Any], list[TableRow]]:
    """Everything that is known of an ablation, as plain values; and its table.

    Its seeds are those of the ablation and those of which there are results.

    Args:
        ablation: Which.
        results: By run and seed.
        command: That was given.
        jobs: Runs at once.
        export: Whether graphs were asked for.
        left_out: Runs that were trained on other images, and on which.
        other_recipes: Runs that are of another recipe, so without results.
    """
    recipe, asked = ablation.recipe, ablation.seeds
    ablation = replace(ablation, seeds=_all_seeds(recipe.seeds, asked, results))
    rows = make_rows(recipe, ablation.seeds, results, ablation.refused)
    plan = ablation.plan(next(iter(recipe.runs)), ablation.seeds[0])
    document = {
        "schema": SCHEMA,
        "tool": "vexport",
        "kind": "ablation",
        "name": recipe.name,
        "title": recipe.title,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "repeat": shlex.join([*ablation.repeat(), *([] if export else ["--no-export"])]),
        "complete": not any(row.failures or row.missing for row in rows),
        "accuracy": ACCURACY,
        "data": plan.data.name,
        "source": _source(plan, results),
        "recipe": recipe.to_json(),
        "recipe_sha256": ablation.sha256,
        "base": str(ablation.base),
        "set": list(ablation.overrides),
        "seeds": list(ablation.seeds),
        "jobs": jobs,
        "exported": export,
        "level": LEVEL,
        "environment": describe_environment(),
        "versions": tool_versions(*LIBRARIES),
        "rows": [row.to_json() for row in rows],
        "verdicts": describe(rows),
        "notes": [
            *_notes(rows, results, left_out, other_recipes),
            *_describe_seeds(asked, ablation.seeds),
            *ablation.list_unreached(),
        ],
        "runs": [
            {
                "run": name,
                "seed": seed,
                "name": run_name(name, seed),
                "recipe": ablation.plan(name, seed).to_json(),
                **(results.get((name, seed)) or {"failure": None, "top1": None}),
            }
            for name in recipe.runs
            for seed in ablation.seeds
        ],
    }
    return document, rows


def _all_seeds(usual: Sequence[int], asked: Sequence[int], results: Results) -> tuple[int, ...]:
    """Seeds that were asked for; where there are others too, all of them, the recipe's first in its order."""
    wanted = {*asked, *(seed for _, seed in results)}
    if wanted == {*asked}:
        return tuple(asked)
    return tuple(dict.fromkeys([*(seed for seed in usual if seed in wanted), *sorted(wanted)]))


def _describe_seeds(asked: Sequence[int], seeds: Sequence[int]) -> list[str]:
    """Which seeds earlier calls brought."""
    before = ", ".join(str(seed) for seed in seeds if seed not in asked)
    return [f"from earlier calls, of the same recipe: seed {before}"] if before else []


def _source(plan: Recipe, results: Results) -> str | None:
    """Where the images lie: as the recipe says, else as the runs say."""
    if not isinstance(plan.data, ImagesSection) or plan.data.source is not None:
        return plan.data.source if isinstance(plan.data, ImagesSection) else None
    return next((str(one["source"]) for one in results.values() if one.get("source") is not None), None)


def _notes(
    rows: Sequence[TableRow],
    results: Results,
    left_out: Mapping[tuple[str, int], str],
    other_recipes: Sequence[tuple[str, int]] = (),
) -> list[str]:
    """What a reader of the table should know."""
    notes = [f"the figures are {ACCURACY}"]
    known = {*left_out, *other_recipes}
    if missing := [run_name(row.run, seed) for row in rows for seed in row.missing if (row.run, seed) not in known]:
        notes.append(f"not run yet: {_shown(missing)}")
    for source in dict.fromkeys(left_out.values()):
        notes.append(
            f"left out, trained on {source}: {_shown([run_name(*key) for key in left_out if left_out[key] == source])}"
        )
    if others := [run_name(*key) for key in other_recipes if key not in results]:
        notes.append(f"left out, of another recipe: {_shown(others)}")
    differences = [row.difference for row in rows if row.difference]
    if told := sum(one.low is not None for one in differences):
        notes.append(
            f"in brackets: {LEVEL:.0%} intervals of the mean difference, Student's t over pairs of one seed; they hold "
            "the chance of training, not that of the held-out images"
        )
    if images := sorted({one.images for one in differences if one.images is not None and one.low is not None}):
        count = " or ".join(f"{number:,}" for number in images)
        most = max(one.chance for one in differences if one.chance is not None and one.low is not None)
        notes.append(
            f"better or worse is only what is also beyond the chance of {count} held-out images, here up to {most:.2f} "
            f"points: {LEVEL:.0%}, as if each run had images of its own"
        )
    if told > 1:
        notes.append(
            f"{told} comparisons, each at {LEVEL:.0%}: the more there are, the likelier one is told apart by chance"
        )
    if any(one.seeds == 1 for one in differences):
        notes.append("differences of one seed have no interval")
    if any(one.seeds > 1 and one.low is None for one in differences):
        notes.append("differences that are the same in each seed have no interval: nothing tells how much is chance")
    if any(row.published is not None for row in rows):
        notes.append("published: on ImageNet at full scale, by the paper; another data set, so only directions compare")
    devices = sorted({_device(one) for one in results.values() if one.get("device")})
    if len(devices) > 1:
        notes.append(f"trained on different devices: {', '.join(devices)}")
    for (name, seed), one in results.items():
        notes += [f"{run_name(name, seed)}: {line}" for line in one.get("notes", ())]
    return notes


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"])


def _device(run: Mapping[str, Any]) -> str:
    return f"cpu ({run['cpu']})" if run["device"] == "cpu" and run.get("cpu") else str(run["device"])


def _trained_on(runs: Sequence[Mapping[str, Any]]) -> str:
    """On what the runs were trained, and by which libraries; the table may have been written elsewhere."""
    done = [run for run in runs if run.get("top1") is not None]
    devices = sorted({_device(run) for run in done if run.get("device")})
    if any(not run.get("device") for run in done):
        devices.append("a device that is not recorded")
    versions: dict[str, dict[str, None]] = {}
    for run in done:
        for name, version in {**((run.get("deployed") or {}).get("versions") or {}), **run.get("versions", {})}.items():
            versions.setdefault(name, {})[version] = None
    libraries = ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())
    return f"Trained on {', '.join(devices)}{'; ' if libraries else ''}{libraries}." if done else ""


def require_own(folder: Path, *, force: bool, recipe: AblationRecipe | None = None) -> None:
    """Refuse to write over an `ablation.json` that is not ours, or that would lose figures.

    Args:
        folder: Of the ablation.
        force: Write over it all the same.
        recipe: The ablation that would be written; None looks at no figures.

    Raises:
        WorkspaceError: there is one, or its folder cannot be read.
    """
    path = folder / f"{STEM}.json"
    with mapped_os_errors(path):
        if force or not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            data = None
    if not isinstance(data, dict) or (data.get("tool"), data.get("kind")) != ("vexport", "ablation"):
        raise WorkspaceError(
            f"{path} is in the way: it was not written by vexport", hint="move it, or give --force to write over it"
        )
    if recipe is not None and (lost := _lost_runs(data, recipe)):
        raise WorkspaceError(
            f"{path} is in the way: it has figures of runs that another recipe named {recipe.name} brought",
            details=lost,
            hint="rename the recipe's file, choose another --workspace, or give --force to write over it",
        )


def _lost_runs(document: Mapping[str, Any], recipe: AblationRecipe) -> list[str]:
    """Runs of a document that have figures and that the recipe does not have, in words."""
    names = dict.fromkeys(one.get("run") for one in document.get("runs") or () if one.get("top1") is not None)
    return [f"{name}: not a run of this recipe" for name in names if name not in recipe.runs]


def write_document(folder: Path, document: dict[str, Any], rows: Sequence[TableRow]) -> tuple[Path, ...]:
    """Write the document, the table and, where there is a figure to draw, the picture.

    Returns:
        The files; `ablation.json` first.

    Raises:
        WorkspaceError: the folder cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    files = {"md": as_markdown(document, rows).encode()}
    if any(row.mean is not None for row in rows):
        files |= draw_rows(tried(rows), document["title"] or document["name"])
    paths = {suffix: folder / f"{STEM}.{suffix}" for suffix in ("json", "md", *PICTURES) if suffix in ("json", *files)}
    document["files"] = {suffix: str(path) for suffix, path in paths.items()}
    files["json"] = (json.dumps(document, indent=2) + "\n").encode()
    for suffix, path in paths.items():
        with mapped_os_errors(path):
            write_atomically(path, files[suffix])
    return tuple(paths.values())


def as_markdown(document: Mapping[str, Any], rows: Sequence[TableRow]) -> str:
    """The table, what it shows, and what to know of it."""
    columns, cells = table_cells(rows)
    lines = [f"# {document['title'] or document['name']}", ""]
    if not cells:
        lines.append("No run has been done yet.")
    else:
        aligned = [" --- " if index < 2 else " ---: " for index in range(len(columns))]
        lines += [f"| {' | '.join(columns)} |", f"|{'|'.join(aligned)}|"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    lines += ["", *(f"- {line}" for line in document["verdicts"])]
    if failures := list_failures(rows):
        lines += ["", "Failed:", "", *(f"- {line}" for line in failures)]
    lines += ["", *(f"- note: {line}" for line in document["notes"])]
    lines += ["", f"Repeat: `{document['repeat']}`"]
    if trained := _trained_on(document["runs"]):
        lines += ["", trained]
    return "\n".join(lines) + "\n"


def table_cells(rows: Sequence[TableRow]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the table of what was tried; columns that would be empty are left out."""
    rows = tried(rows)
    found: dict[str, list[str]] = {
        "": [row.row for row in rows],
        "run": [row.column for row in rows],
        "top-1 %": [_mean(row) for row in rows],
        "sd": [_figure(row.std) for row in rows],
        "seeds": [str(row.seeds) for row in rows],
        "difference": ["reference" if row.is_reference else points(row.difference) for row in rows],
        "deployed top-1 %": [_figure(row.deployed_mean) for row in rows],
        "logit error of the graph": ["-" if row.graph_max_rel is None else f"{row.graph_max_rel:.0e}" for row in rows],
        "published, ImageNet %": [_figure(row.published) for row in rows],
    }
    kept = {header: cells for header, cells in found.items() if any(cell not in ("-", "") for cell in cells)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def _mean(row: TableRow) -> str:
    if row.mean is None:
        return "failed" if row.failures else "not run"
    return f"{row.mean:.2f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def list_failures(rows: Sequence[TableRow]) -> list[str]:
    """Runs that failed, in words."""
    return [f"{run_name(row.run, seed)}: {text}" for row in rows for seed, text in row.failures.items()]
