"""Ablation recipes: every error at once with its line, the runs' training recipes, the sets that ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vexport.errors import InputError, RecipeError
from vexport.recipe import Recipe, recipe_hash, shipped_recipes
from vexport.recipe.ablation import FOLDER, choose_runs, load_ablation, run_name, unknown_run

GOOD = """\
title: Mine
base: quickstart
seeds: [3, 5]
reference: n = 0
set:
  epochs: 9
  network: {width: 0.03125}
runs:
  n0: {row: V5, column: n = 0, set: {network.act_num: 0}, published: 60.53}
  n1:
    row: V5
    column: n = 1
    set: {network: {act_num: 1}, epochs: 10}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def details(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_ablation(path, overrides)
    assert caught.value.hint
    return [line.replace(f"{path}:", "") for line in caught.value.details]


def test_each_run_is_a_training_recipe(write: Write) -> None:
    ablation = load_ablation(write(GOOD), ["loss.label_smoothing=0.2"])
    assert ablation.seeds == (3, 5)
    one, other = ablation.plan("n0", 3), ablation.plan("n1", 5)
    assert (one.name, one.seed, one.epochs, one.network.act_num) == ("n0.s3", 3, 9, 0)
    assert (other.name, other.seed, other.epochs, other.network.act_num) == ("n1.s5", 5, 10, 1)
    for plan in (one, other):
        assert (plan.network.model, plan.network.width) == ("vanillanet_5", 0.03125)
        assert plan.loss.label_smoothing == 0.2
    assert recipe_hash(one) != recipe_hash(ablation.plan("n0", 5))


def test_what_a_run_sets_itself_is_the_strongest(write: Write) -> None:
    ablation = load_ablation(write(GOOD), ["epochs=12"], seeds=[8])
    assert ablation.seeds == (8,)
    assert [ablation.plan(run, 8).epochs for run in ("n0", "n1")] == [12, 10]
    (found,) = details(write(GOOD), "network.act_num=2")
    assert found == "--set network.act_num: every run sets this itself: it is what they are compared by"


def test_runs_that_a_field_does_not_reach_are_named(write: Write) -> None:
    ablation = load_ablation(write(GOOD), ["epochs=12", "optimizer.lr=1e-3", "epochs=13"])
    assert ablation.list_unreached() == ["--set epochs has no effect on n1: set there"]
    assert load_ablation(write(GOOD)).list_unreached() == []
    ablation = load_ablation("techniques", ["network.model=vanillanet_7"])
    (line,) = ablation.list_unreached()
    others = [name for name in ablation.recipe.runs if not name.startswith("vanillanet")]
    assert line == f"--set network.model has no effect on {', '.join(others)}: set there"


def test_the_command_that_repeats_it(write: Write) -> None:
    path = write(GOOD)
    assert load_ablation(path).repeat() == ["vexport", "ablate", str(path)]
    given = ["data.source='it''s here'", "epochs=12", "epochs=13"]
    assert load_ablation("slope", given, seeds=[4, 2]).repeat() == [
        "vexport", "ablate", "slope", "--data", "it's here", "--set", "epochs=13", "--seeds", "4,2",
    ]  # fmt: skip
    assert load_ablation("slope", seeds=[0, 1, 2]).repeat() == ["vexport", "ablate", "slope"], "as the recipe says"


def test_the_hash_is_of_the_runs_recipes(write: Write) -> None:
    before = load_ablation(write(GOOD)).sha256
    assert load_ablation(write(GOOD.replace("title: Mine", "title: Other"))).sha256 == before
    assert load_ablation(write(GOOD.replace("epochs: 9", "epochs: 8"))).sha256 != before


@pytest.mark.parametrize("value", ["0.00001", "[0.9, 0.99]", "null", "'it''s: #1'"])
def test_values_arrive_as_they_are(write: Write, value: str) -> None:
    field = {"0.00001": "optimizer.lr", "[0.9, 0.99]": "optimizer.betas", "null": "optimizer.clip_norm"}
    name = field.get(value, "network.init_from")
    ablation = load_ablation(write(GOOD.replace("  epochs: 9", f"  epochs: 9\n  {name}: {value}")))
    section, _, last = name.partition(".")
    found = getattr(getattr(ablation.plan("n0", 3), section), last)
    assert found == {"optimizer.lr": 1e-5, "optimizer.betas": (0.9, 0.99), "optimizer.clip_norm": None}.get(
        name, "it's: #1"
    )


def test_the_base_may_stand_beside_it(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("inherits: quickstart\nepochs: 11\n", "own.yaml")
    path = write(
        GOOD.replace("base: quickstart", "base: own.yaml").replace("  epochs: 9\n", "").replace(", epochs: 10", "")
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_ablation(path).plan("n0", 0).epochs == 11


MERGED = """\
base: quickstart
reference: n = 0
runs:
  n0: {row: V5, column: n = 0, set: &usual {network.act_num: 0, epochs: 9, optimizer.lr: 2.0e-3}}
  n1:
    row: V5
    column: n = 1
    set:
      <<: *usual
      network.act_num: 1
"""


def test_what_stands_beside_a_merged_section_takes_its_place(write: Write) -> None:
    ablation = load_ablation(write(MERGED))
    one, other = (ablation.plan(run, 0) for run in ("n0", "n1"))
    assert (one.network.act_num, other.network.act_num) == (0, 1)
    assert one.epochs == other.epochs == 9
    twice = details(write(MERGED + "      network.act_num: 2\n"))
    assert twice == ["11: runs.n1.set.network.act_num: given before, on line 10"]
    (wrong,) = details(write(MERGED + "      epochs: none\n"))
    assert wrong.startswith("11: runs.n1.set.epochs: ")


def test_sections_merged_in_place(write: Write) -> None:
    text = MERGED.replace("<<: *usual", "<<: {epochs: 9, batch_size: 8}\n      epochs: 10")
    plan = load_ablation(write(text)).plan("n1", 0)
    assert (plan.epochs, plan.batch_size) == (10, 8)


def test_a_chosen_run_that_is_another_ones_training(write: Write) -> None:
    text = GOOD.replace("set: {network.act_num: 0}", "set: {network.act_num: 1, epochs: 12}").replace(
        ", epochs: 10", ""
    )
    assert load_ablation(write(text)).plan("n1", 0).epochs == 9
    with pytest.raises(RecipeError) as caught:
        load_ablation(write(text), ["epochs=12"], runs=["n1"])
    assert "is the same training as n0" in caught.value.details[0]


def test_errors_of_the_ablation_itself(write: Write) -> None:
    text = """\
bse: quickstart
seeds: [1, -1, two]
patience_s: 0
set: many
runs:
  n0: {row: V5, colum: n = 0, sets: {}}
  n1: V5
  ../n2: {column: x, published: 101}
  n3: {column: 3}
"""
    found = details(write(text))
    assert "1: base: needed, and not given" in found
    assert any(line.startswith("1: bse: no such field; did you mean base?") for line in found)
    assert any(line.startswith("2: seeds.1: ") for line in found)
    assert any(line.startswith("2: seeds.2: ") for line in found)
    assert any(line.startswith("3: patience_s: ") for line in found)
    assert any(
        line.startswith("4: set: should be a section with fields of the training recipe, not str") for line in found
    )
    wrong = "is not a field here; fields are row, column, set, published"
    assert any(line.startswith(f"6: runs.n0.colum: {wrong}") for line in found)
    assert any(line.startswith(f"6: runs.n0.sets: {wrong}") for line in found)
    assert "6: runs.n0.column: needed, and not given" in found
    assert any(line.startswith("7: runs.n1: should be a section with the fields row, column, set, ") for line in found)
    assert any(line.startswith("8: runs.../n2: is not letters, digits") for line in found)
    assert any(line.startswith("8: runs.../n2.published: ") for line in found)
    assert any(line.startswith("9: runs.n3.column: ") for line in found)
    assert len(found) == 13


@pytest.mark.parametrize("runs", ["{}", "[]", "5", "null"])
def test_no_runs(write: Write, runs: str) -> None:
    head = GOOD.partition("runs:")[0].replace("reference: n = 0\n", "")
    (found,) = details(write(f"{head}runs: {runs}\n"))
    assert "runs: should" in found


def test_errors_in_what_is_set(write: Write) -> None:
    text = GOOD.replace("epochs: 9", "epochs: 9\n  networks.width: 1").replace("act_num: 1}", "act_nm: 1}")
    found = details(write(text))
    assert [line.partition(";")[0] for line in found] == [
        "7: set.networks.width: networks: no such field",
        "14: runs.n1.set.network.act_nm: no such field",
    ]
    assert "did you mean act_num?" in found[1]


def test_fields_that_do_not_go_together(write: Write) -> None:
    (found,) = details(write(GOOD.replace("epochs: 10", "epochs: 5")))
    assert found.startswith("10: runs.n1: ")
    assert "leaves no epoch of 5" in found
    (found,) = details(
        write(GOOD.replace("epochs: 9", "epochs: 5").replace("epochs: 10", "seed: 0").replace(", seed: 0", ""))
    )
    assert found.startswith("2: base: ")


def test_errors_of_the_caller(write: Write) -> None:
    path = write(GOOD.replace("act_num: 0}", "act_nm: 0}"))
    found = details(path, "epoch=3", "seed=1", "name=other", "nonsense")
    assert "--set seed: seeds are given by `seeds`, or with --seeds" in found
    assert any(line.startswith("--set name: each run is named") for line in found)
    assert any(line.startswith("--set epoch: no such field; did you mean epochs?") for line in found)
    assert "--set nonsense: should be section.field=value" in found
    assert any(line.startswith("9: runs.n0.set.network.act_nm: no such field") for line in found)
    assert len(found) == 5


def test_what_each_run_has_of_its_own(write: Write) -> None:
    found = details(write(GOOD.replace("epochs: 9", "seed: 9").replace("epochs: 10", "name: x")))
    assert [line.split(": ")[1] for line in found] == ["set.seed", "runs.n1.set.name"]


def test_runs_that_make_no_difference(write: Write) -> None:
    text = GOOD.replace("{act_num: 1}, epochs: 10", "{act_num: 0}")
    assert details(write(text)) == ["10: runs.n1: is the same training as n0: nothing that it sets makes a difference"]


def test_the_table_has_each_place_once(write: Write) -> None:
    found = details(
        write(GOOD.replace("column: n = 1", "column: n = 0").replace("reference: n = 0", "reference: none"))
    )
    assert found == [
        "4: reference: no run has this column; there are n = 0",
        "12: runs.n1.column: V5 n = 0 is where n0 stands",
    ]


def test_seeds_differ(write: Write) -> None:
    (found,) = details(write(GOOD.replace("[3, 5]", "[3, 5, 3]")))
    assert found.startswith("3: seeds.2: 3 is given before")
    for seeds, said in (
        ([1, 2, 1], "seed 1 is given twice"),
        ([-1], "seed -1 is not within"),
        ([], "there is no seed"),
    ):
        with pytest.raises(InputError, match=said):
            load_ablation(write(GOOD), seeds=seeds)


def test_an_unknown_base(write: Write) -> None:
    (found,) = details(write(GOOD.replace("quickstart", "quikstart")))
    assert found == "2: base: unknown recipe 'quikstart'; did you mean quickstart?"


def test_an_unknown_set() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'technique'") as caught:
        load_ablation("technique")
    assert caught.value.hint == "did you mean techniques?"


def test_an_unknown_run(write: Write) -> None:
    recipe = load_ablation(write(GOOD)).recipe
    assert unknown_run("n2", recipe).hint in ("did you mean n0?", "did you mean n1?")
    assert unknown_run("zebra", recipe).hint == "there are n0, n1"


# Runs that were not chosen


def test_runs_that_were_not_chosen_go_without_what_they_cannot_have() -> None:
    given = ["data.source=here", "network.init=lecun_normal", "epochs=9"]
    with pytest.raises(RecipeError, match="2 errors"):
        load_ablation("techniques", given)
    ablation = load_ablation("techniques", given, runs=["vanillanet_*"], seeds=[4])
    plans = {run: ablation.plan(run, 4) for run in ablation.recipe.runs}
    assert len(plans) == 12
    inits = {plan.network.model: plan.network.init for plan in plans.values()}
    assert inits == {"vanillanet_6": "lecun_normal", "alexnet": "published", "resnet50": "published"}
    others = {(plan.epochs, getattr(plan.data, "source", None)) for plan in plans.values()}
    assert others == {(9, "here")}, "the other fields hold for all of them"
    names = ", ".join(run for run in plans if not run.startswith("vanillanet"))
    assert ablation.list_unreached() == [
        f"--set network.init has no effect on {names}: not chosen, and not possible there"
    ]
    assert ablation.repeat() == ["vexport", "ablate", "techniques", "--data", "here", "--set", given[1], "--set",
                                 given[2], "--seeds", "4", "--runs", "vanillanet_*"]  # fmt: skip


def test_runs_that_were_not_chosen_have_what_was_set_where_they_can() -> None:
    """So that the runs of one table may be done by several calls."""
    ablation = load_ablation("series_terms", ["epochs=30"], runs=["n0"])
    assert {ablation.plan(run, 0).epochs for run in ablation.recipe.runs} == {30}
    assert "--runs" not in ablation.repeat(), "all of them can be repeated"


def test_what_chosen_runs_cannot_have_is_refused(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_ablation("techniques", ["network.init=lecun_normal"], runs=["vanillanet_none", "alexnet_none"])
    assert caught.value.details == (
        "--set network.init: should be published: alexnet is drawn as its library draws it",
    )
    with pytest.raises(RecipeError) as caught:
        load_ablation(write(GOOD), ["epochs=12"], runs=["n1"])
    assert caught.value.details == ("--set epochs: every chosen run sets this itself: it is what they are compared by",)
    assert load_ablation(write(GOOD), ["epochs=12"], runs=["n0"]).plan("n0", 0).epochs == 12


def test_errors_of_the_recipe_count_wherever_they_stand(write: Write) -> None:
    path = write(GOOD.replace("{act_num: 1}", "{act_nm: 1}"))
    for overrides in ([], ["epochs=12"]):
        with pytest.raises(RecipeError) as caught:
            load_ablation(path, overrides, runs=["n0"])
        (line,) = caught.value.details
        assert line.startswith(f"{path}:13: runs.n1.set.network.act_nm: no such field")


def test_runs_that_were_not_chosen_may_be_made_alike(write: Write) -> None:
    path = write(
        "base: quickstart\nruns:\n  n0: {column: a}\n  n1: {column: b, set: {epochs: 10}}\n"
        "  n2: {column: c, set: {optimizer.lr: 1.0e-3}}\n"
    )
    given = ["epochs=10"]
    assert details(path, *given) == ["4: runs.n1: is the same training as n0: nothing that it sets makes a difference"]
    assert load_ablation(path, given, runs=["n2"]).plan("n0", 0).epochs == 10


def test_which_runs_are_chosen(write: Write) -> None:
    recipe = load_ablation(write(GOOD)).recipe
    assert choose_runs(recipe, []) == choose_runs(recipe, ["n1", "n*"]) == ["n0", "n1"]
    assert choose_runs(recipe, ["?1"]) == ["n1"]
    for overrides in ([], ["epochs=12"]):
        with pytest.raises(InputError, match=r"mine has no run 'm\*'"):
            load_ablation(write(GOOD), overrides, runs=["n0", "m*"])


# The paper's top-1 on ImageNet, by what a run is.
TECHNIQUES = {
    "vanillanet_6": {"none": 59.58, "deep": 60.53, "series": 75.23, "both": 76.36},
    "alexnet": {"none": 57.52, "deep": 59.09, "series": 61.12, "both": 63.59},
    "resnet50": {"none": 76.13, "deep": 76.16, "series": 76.30, "both": 76.27},
}
PUBLISHED: dict[str, Callable[[Recipe], float | None]] = {
    "techniques": lambda plan: TECHNIQUES[plan.network.model][plan.network.techniques],
    "shortcuts": lambda plan: {"none": 76.36, "before": 75.92, "after": 75.72}[plan.network.shortcut],
    "series_terms": lambda plan: {0: 60.53, 1: 74.53, 2: None, 3: 76.36, 4: None}[plan.network.act_num],
    "slope": lambda plan: None,
    "maps": lambda plan: None,
    "techniques_lecun": lambda plan: TECHNIQUES[plan.network.model][plan.network.techniques],
}
COUNTS = {"techniques": 12, "shortcuts": 3, "series_terms": 5, "slope": 3, "techniques_lecun": 4, "maps": 2}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_sets_that_ship(name: str) -> None:
    ablation = load_ablation(name)
    for run, section in ablation.recipe.runs.items():
        assert section.published == PUBLISHED[name](ablation.plan(run, 0)), run
    assert len(ablation.recipe.runs) == COUNTS[name]
    assert ablation.recipe.reference in {run.column for run in ablation.recipe.runs.values()}
    assert ablation.file.read_text().startswith(f"# vexport ablate {name} --data DIR\n")
    assert run_name("n0", 3) == ablation.plan(next(iter(ablation.recipe.runs)), 3).name.replace(
        next(iter(ablation.recipe.runs)), "n0"
    )


def test_all_sets_that_ship_are_known_here() -> None:
    assert shipped_recipes(FOLDER) == sorted(PUBLISHED)


def test_the_two_sets_of_techniques_differ_in_the_first_weights_alone() -> None:
    usual, by_fan_in = load_ablation("techniques"), load_ablation("techniques_lecun", ["network.init=published"])
    for run in by_fan_in.recipe.runs:
        one, other = usual.plan(f"vanillanet_{run}", 0), by_fan_in.plan(run, 0)
        assert other.to_json() | {"name": ""} == one.to_json() | {"name": ""}


def test_the_techniques_are_crossed() -> None:
    ablation = load_ablation("techniques")
    networks = [ablation.plan(run, 0).network for run in ablation.recipe.runs]
    assert {(one.model, one.techniques) for one in networks} == {
        (model, techniques)
        for model in ("vanillanet_6", "alexnet", "resnet50")
        for techniques in ("none", "deep", "series", "both")
    }
