"""The table of an ablation: what it takes from earlier calls, what it does not write over, what it can tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vexport.artifacts import Manifest
from vexport.errors import WorkspaceError
from vexport.pipeline.ablate import run_ablation
from vexport.pipeline.ablate_document import make_document, require_own, table_cells, write_document
from vexport.pipeline.ablate_kept import Kept, read_runs, run_folder, write_failure, write_figures
from vexport.pipeline.ablate_table import TableRow, compare_seeds, describe, image_chance, make_rows
from vexport.recipe import recipe_hash
from vexport.recipe.ablation import Ablation, AblationRecipe, load_ablation
from vexport.workspace import Workspace, manifest_path

from . import ablate_works as works

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

MINE = """\
base: quickstart
seeds: [3, 0, 1, 2]
reference: n = 0
set: {epochs: 9}
runs:
  n0: {row: V5, column: n = 0, set: {network.act_num: 0}}
  n1: {row: V5, column: n = 1, set: {network: {act_num: 1}}}
"""
TOP1 = {"n0": 50.0, "n1": 60.0}

Load = Callable[..., Ablation]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(*overrides: str, seeds: Sequence[int] | None = None, text: str = MINE) -> Ablation:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_ablation(path, overrides, seeds=seeds)

    return loaded


def keep(ablation: Ablation, folder: Path, run: str, seed: int, **more: Any) -> None:
    """Leave what a run leaves."""
    plan = ablation.plan(run, seed)
    own = run_folder(folder, (run, seed))
    own.mkdir(parents=True)
    manifest = Manifest("checkpoint", f"of {run} {seed}", 1, None, {"recipe_hash": recipe_hash(plan)}, {"epoch": 9})
    manifest_path(own / f"{plan.name}.last.ckpt").write_text(json.dumps(manifest.to_json()))
    figures = {"top1": TOP1[run] + seed**2 / 10, "recipe_hash": recipe_hash(plan), "source": None, **more}
    write_figures(own, {"checkpoint_sha256": manifest.sha256, **figures})


def read(ablation: Ablation, folder: Path) -> Kept:
    plans = {(run, seed): ablation.plan(run, seed) for run in ablation.recipe.runs for seed in ablation.seeds}
    return read_runs(folder, plans, export=False)


def table(ablation: Ablation, folder: Path) -> tuple[dict[str, Any], list[TableRow]]:
    kept = read(ablation, folder)
    return make_document(
        ablation,
        kept.results,
        command="vexport ablate",
        jobs=1,
        export=False,
        left_out=kept.elsewhere,
        other_recipes=kept.other_recipes,
    )


# What earlier calls left


def test_seeds_of_earlier_calls_stay_in_the_table(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for run in TOP1:
        for seed in (0, 1, 12):
            keep(load(), folder, run, seed)
    document, rows = table(load(seeds=[12]), folder)
    assert document["seeds"] == [0, 1, 12]
    assert [dict(row.top1) for row in rows] == [{0: 50.0, 1: 50.1, 12: 64.4}, {0: 60.0, 1: 60.1, 12: 74.4}]
    assert "from earlier calls, of the same recipe: seed 0, 1" in document["notes"]
    assert document["complete"] is True
    assert document["repeat"].endswith("mine.yaml --seeds 0,1,12 --no-export")
    assert [(one["run"], one["seed"]) for one in document["runs"]] == [(r, s) for r in TOP1 for s in (0, 1, 12)]
    whole, _ = table(load(seeds=[2, 3]), folder)
    assert whole["seeds"] == [3, 0, 1, 2, 12], "the recipe's first, in its order"
    none, _ = table(load(seeds=[12, 0, 1]), folder)
    assert none["seeds"] == [12, 0, 1], "as they were asked for"
    assert not any("earlier calls" in line for line in none["notes"])


def test_what_an_earlier_call_did_not_finish_is_said(load: Load, tmp_path: Path) -> None:
    keep(load(), tmp_path, "n0", 5)
    plan = load().plan("n1", 6)
    own = tmp_path / plan.name
    own.mkdir()
    write_failure(own, recipe_hash(plan), None, {"kind": "diverged", "text": "not finite"})
    document, rows = table(load(seeds=[7]), tmp_path)
    assert document["seeds"] == [5, 6, 7]
    assert rows[1].failures == {6: "not finite"}, "a failure is a result"
    assert "not run yet: n0.s6, n0.s7, n1.s5, n1.s7" in document["notes"]
    assert document["complete"] is False


def test_other_seeds_of_another_recipe_are_left_out_and_named(load: Load, tmp_path: Path) -> None:
    for seed in (0, 1):
        keep(load(), tmp_path, "n0", seed)
    keep(load("epochs=12"), tmp_path, "n0", 2)
    document, rows = table(load("epochs=12", seeds=[4]), tmp_path)
    assert document["seeds"] == [2, 4]
    assert rows[0].top1 == {2: 50.4}
    assert "left out, of another recipe: n0.s0, n0.s1" in document["notes"]


@pytest.mark.parametrize(
    "name", ["n0.s01", "n0.s-1", "n0.s", "n0.s4294967296", "n2.s1", "n0s1", "n0.s1.s", "n0.s\u0661"]
)
def test_other_folders_are_no_runs(load: Load, tmp_path: Path, name: str) -> None:
    keep(load(), tmp_path, "n0", 1)
    (tmp_path / "n0.s1").rename(tmp_path / name)
    kept = read(load(seeds=[3]), tmp_path)
    assert (kept.results, kept.other_recipes) == ({}, [])


def test_a_run_whose_name_looks_like_anothers_seed(load: Load, tmp_path: Path) -> None:
    text = MINE.replace("  n1:", "  n0.s1:")
    ablation = load(text=text)
    plan = ablation.plan("n0.s1", 8)
    keep(ablation, tmp_path, "n0", 8)
    own = tmp_path / "n0.s1.s8"
    own.mkdir()
    write_failure(own, recipe_hash(plan), None, {"kind": "failed", "text": "x"})
    assert set(read(load(text=text, seeds=[3]), tmp_path).results) == {("n0", 8), ("n0.s1", 8)}


def test_another_call_makes_no_table_smaller(load: Load, tmp_path: Path) -> None:
    load()
    options: dict[str, Any] = {"workspace": Workspace(tmp_path / "out"), "work": works.with_checkpoint}
    run_ablation(tmp_path / "mine.yaml", seeds=[0, 1], runs=["n0"], **options)
    outcome = run_ablation(tmp_path / "mine.yaml", seeds=[2], runs=["n0"], **options)
    assert (outcome.trained, outcome.kept, outcome.failures) == (1, 0, ())
    assert outcome.rows[0].top1 == {0: 50.0, 1: 51.0, 2: 52.0}
    assert json.loads(outcome.files[0].read_text())["seeds"] == [0, 1, 2]


# What is not written over


def written(ablation: Ablation, folder: Path, results: Mapping[tuple[str, int], Any]) -> Path:
    folder.mkdir(exist_ok=True)
    document, rows = make_document(ablation, results, command="vexport ablate", jobs=1, export=False)
    return write_document(folder, document, rows)[0]


def test_a_table_of_other_runs_is_not_written_over(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(load(), folder, {("n0", 0): {"top1": 50.0}, ("n1", 0): {"top1": 60.0}})
    other = load(text=MINE.replace("  n1:", "  n2:")).recipe
    with pytest.raises(WorkspaceError, match=r"ablation\.json is in the way: it has figures of runs") as caught:
        require_own(folder, force=False, recipe=other)
    assert caught.value.details == ("n1: not a run of this recipe",)
    assert "--force" in caught.value.hint
    require_own(folder, force=True, recipe=other)
    require_own(folder, force=False)


def test_a_table_of_the_same_runs_is(load: Load, tmp_path: Path) -> None:
    path = written(load(), tmp_path, {("n0", 0): {"top1": 50.0}, ("n1", 0): {"failure": {"text": "x"}}})
    more = MINE.replace("{network.act_num: 0}", "{network: {act_num: 0}}").replace("column: n = 0", "column: none")
    more = more.replace("reference: n = 0\n", "") + "  n2: {column: n = 2, set: {network.act_num: 2}}\n"
    require_own(tmp_path, force=False, recipe=load(text=more).recipe)
    require_own(tmp_path, force=False, recipe=load(text=MINE.replace("{act_num: 1}", "{act_num: 7}")).recipe)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({field: document[field] for field in ("tool", "kind")}))
    require_own(tmp_path, force=False, recipe=load().recipe)


# What can be told


def rows_of(own: Sequence[float], other: Sequence[float], images: int | None) -> list[TableRow]:
    runs = {"a": {"column": "none"}, "b": {"column": "deep"}}
    recipe = AblationRecipe.model_validate({"name": "x", "base": "quickstart", "reference": "none", "runs": runs})
    known = {} if images is None else {"images": images}
    figures = {("a", seed): value for seed, value in enumerate(other)}
    figures |= {("b", seed): value for seed, value in enumerate(own)}
    return make_rows(recipe, range(len(own)), {key: {"top1": value, **known} for key, value in figures.items()})


def test_the_chance_of_images_is_that_of_two_shares() -> None:
    # p = 0.5: sqrt(2 * 0.25 / 5000) = 0.01.
    assert image_chance([40.0, 60.0], 5000) == pytest.approx(1.959964, abs=1e-6)
    assert image_chance([100.0, 100.0], 5000) == 0.0
    found = compare_seeds({0: 60.0, 1: 60.0, 9: 0.0}, {0: 40.0, 1: 40.0}, 5000)
    assert found is not None
    assert found.images == 5000
    assert found.chance == pytest.approx(1.959964, abs=1e-6)


def test_a_difference_of_a_few_images_is_not_told_apart() -> None:
    """Three, three and four of 2,000 images: seeds alone would tell it apart."""
    other = [50.0, 51.0, 52.0]
    rows = rows_of([50.15, 51.15, 52.2], other, 2000)
    difference = rows[1].difference
    assert difference is not None
    assert (difference.is_beyond_training, difference.is_told_apart) == (True, False)
    assert describe(rows) == [
        "deep: +0.17 points (+0.09 to +0.24, 3 seeds) over none: "
        "cannot be told apart: within the chance of 2,000 images"
    ]
    plain = rows[1].to_json()["difference"]
    assert (plain["told_apart"], plain["images"]) == (False, 2000)
    assert plain["chance"] == pytest.approx(3.0990, abs=1e-3)
    assert describe(rows_of([50.15, 51.15, 52.2], other, 2_000_000))[0].endswith(" over none: better")
    assert describe(rows_of([50.15, 51.15, 52.2], other, None))[0].endswith(" over none: better"), "not recorded"
    assert describe(rows_of([45.0, 46.1, 47.0], other, 2000))[0].endswith(" over none: worse")
    assert describe(rows_of([45.0, 54.0, 52.5], other, 2000))[0].endswith(": cannot be told apart")


def test_the_fewest_images_count(load: Load) -> None:
    recipe = load().recipe
    results = {(run, seed): {"top1": TOP1[run] + seed, "images": 2000} for run in TOP1 for seed in (0, 1, 2)}
    results["n0", 1]["images"] = 500
    results["n1", 8] = {"top1": 1.0, "images": 3}  # which the other has not
    _, row = make_rows(recipe, (0, 1, 2, 8), results)
    assert row.difference is not None
    assert row.difference.images == 500
    del results["n1", 2]["images"]
    _, row = make_rows(recipe, (0, 1, 2, 8), results)
    assert row.difference is not None
    assert (row.difference.images, row.difference.chance) == (None, None)


def test_the_notes_say_what_counts(load: Load) -> None:
    def notes(**more: Any) -> list[str]:
        results = {(run, seed): {"top1": top1 + seed * (run == "n1"), **more}
                   for run, top1 in TOP1.items() for seed in (0, 1, 2)}  # fmt: skip
        document, _ = make_document(load(), results, command="x", jobs=1, export=False)
        return [line for line in document["notes"] if "chance of 2,000" in line]

    (line,) = notes(images=2000)
    assert line == (
        "better or worse is only what is also beyond the chance of 2,000 held-out images, here up to 3.08 points: 95%, "
        "as if each run had images of its own"
    )
    assert notes() == [], "old figures"


def test_the_error_of_the_graph_is_called_what_it_is(load: Load) -> None:
    results = {("n0", 0): {"top1": 50.0, "deployed": {"top1": 50.0, "graph_max_rel": 2e-7}}}
    columns, cells = table_cells(make_rows(load().recipe, (0,), results))
    assert dict(zip(columns, cells[0], strict=True))["logit error of the graph"] == "2e-07"
