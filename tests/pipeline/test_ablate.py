"""Ablations: figures and intervals, processes that fail, what is kept, what is refused; a small one for real."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from colours import save_images
from filelock import FileLock

from vexport.errors import InputError, MissingDependencyError, RecipeError, TrainingError, WorkspaceError
from vexport.pipeline.ablate import AblationOutcome, run_ablation
from vexport.pipeline.ablate_document import _notes, as_markdown, table_cells
from vexport.pipeline.ablate_kept import read_figures
from vexport.pipeline.ablate_process import HEADER, STOP_S, Failure, Running, do_runs, is_divergence
from vexport.pipeline.ablate_progress import Progress
from vexport.pipeline.ablate_run import Job, do_run
from vexport.pipeline.ablate_table import compare_seeds, describe, make_rows
from vexport.recipe import recipe_hash
from vexport.recipe.ablation import AblationRecipe, load_ablation
from vexport.workspace import Workspace, read_manifest

from . import ablate_works as works

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

HEAD = """\
title: Mine
base: quickstart
seeds: [0, 1]
reference: n = 0
set:
  epochs: 2
  batch_size: 512
  device: cpu
  network.width: 0.015625
  deep_training.decay_epochs: 1
  schedule.warmup_epochs: 0
runs:
"""
TWO = """\
  n0: {row: V5, column: n = 0, set: {network.act_num: 0}, published: 60.53}
  n1: {row: V5, column: n = 1, set: {network.act_num: 1}, published: 74.53}
"""

Make = Callable[..., AblationOutcome]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + TWO)
    return path


@pytest.fixture
def make(mine: Path, tmp_path: Path) -> Make:
    """Run the ablation, with stand-ins for the training."""

    def run(*names: str, text: str | None = None, **options: Any) -> AblationOutcome:
        if text is not None:
            mine.write_text(text)
        elif names:
            rows = [f"  {name}: {{column: {name}, set: {{network.act_num: {n}}}}}\n" for n, name in enumerate(names)]
            mine.write_text(HEAD.replace("reference: n = 0", f"reference: {names[0]}") + "".join(rows))
        return run_ablation(mine, **{"workspace": Workspace(tmp_path / "out"), "work": works.by_name, **options})

    return run


def job(folder: Path, run: str = "n0", seed: int = 0, **more: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(run, seed, folder, folder / "none.yaml", (), "", **more)


# The table


def test_the_interval_is_students_t_of_the_pairs() -> None:
    found = compare_seeds({0: 10.0, 1: 12.0, 2: 14.0, 7: 99.0}, {0: 9.0, 1: 10.0, 2: 11.0, 8: 0.0})
    assert found is not None
    # Differences 1, 2, 3: their deviation is 1, and t(0.975, 2) = 4.302653.
    assert (found.value, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert not found.is_told_apart


def test_one_seed_has_no_interval() -> None:
    found = compare_seeds({0: 10.0}, {0: 9.0, 1: 8.0})
    assert found is not None
    assert (found.value, found.low, found.high, found.is_told_apart) == (1.0, None, None, False)
    assert compare_seeds({0: 10.0}, {1: 8.0}) is None


def test_differences_without_spread_have_no_interval() -> None:
    found = compare_seeds({0: 50.1, 1: 60.3, 2: 55.7}, {0: 40.1, 1: 50.3, 2: 45.7})
    assert found is not None
    assert found.value == pytest.approx(10.0)
    assert (found.low, found.high, found.is_told_apart, found.seeds) == (None, None, False, 3)
    (said,) = describe(rows_of({"a": [50.1, 60.3, 55.7], "c": [60.1, 70.3, 65.7]}))
    assert said == (
        "deep: +10.00 points over none on V6, the same in all 3 seeds, so without an interval: chance is not ruled out"
    )


RUNS = {
    "a": {"row": "V6", "column": "none", "published": 59.58},
    "b": {"row": "V6", "column": "series", "published": 75.23},
    "c": {"row": "V6", "column": "deep"},
    "d": {"row": "R50", "column": "none"},
    "e": {"row": "R50", "column": "series"},
}


def rows_of(values: dict[str, Sequence[float | None]]) -> Any:
    recipe = AblationRecipe.model_validate({"name": "x", "base": "quickstart", "reference": "none", "runs": RUNS})
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for run, figures in values.items():
        for seed, value in enumerate(figures):
            failure = {"failure": {"kind": "failed", "text": "it broke"}}
            results[run, seed] = failure if value is None else {"top1": value}
    return make_rows(recipe, (0, 1, 2), results)


def test_the_table_has_the_largest_error_of_the_graphs() -> None:
    recipe = AblationRecipe.model_validate({"name": "x", "base": "quickstart", "runs": {"a": RUNS["a"]}})
    errors = {0: 2e-7, 1: 3e-6, 2: 1e-8}
    results = {("a", n): {"top1": 50.0, "deployed": {"top1": 50.0, "graph_max_rel": e}} for n, e in errors.items()}
    (row,) = make_rows(recipe, (0, 1, 2), results)
    assert row.graph_max_rel == 3e-6


def test_mean_spread_and_what_is_missing() -> None:
    rows = rows_of({"a": [50.0, 52.0, 54.0], "b": [60.0, None, 64.5], "d": [None, None, None]})
    a, b, c, d, _ = rows
    assert (a.mean, a.std, a.seeds, a.is_reference, a.difference) == (52.0, 2.0, 3, True, None)
    assert (b.mean, b.seeds, b.failures, b.missing) == (62.25, 2, {1: "it broke"}, ())
    assert b.difference.value == pytest.approx(10.25), "over the seeds that both have"
    assert b.published_difference == pytest.approx(15.65)
    assert (c.mean, c.missing, c.published_difference) == (None, (0, 1, 2), None)
    assert (d.mean, len(d.failures)) == (None, 3)


def test_the_verdicts_say_what_can_be_told() -> None:
    better = describe(rows_of({"a": [50.0, 51.0, 52.0], "b": [60.0, 61.2, 61.9], "c": [50.5, 49.8, 52.3]}))
    assert better == [
        "series: +10.03 points (+9.65 to +10.41, 3 seeds) over none on V6: better; published on ImageNet: +15.65",
        "deep: -0.13 points (-2.44 to +2.17, 3 seeds) over none on V6: cannot be told apart",
    ]
    worse = describe(rows_of({"a": [60.0, 61.0, 62.0], "b": [50.0], "c": [50.0, 51.2, 51.9], "d": [None], "e": [5.0]}))
    assert worse == [
        "series: -10.00 points over none on V6, one seed: chance is not ruled out; published on ImageNet: +15.65",
        "deep: -9.97 points (-10.35 to -9.59, 3 seeds) over none on V6: worse",
        "series on R50: not compared with none: none failed",
    ]


def test_columns_that_would_be_empty_are_left_out() -> None:
    columns, cells = table_cells(rows_of({"a": [50.0], "b": [60.0], "d": [None]}))
    assert columns == ["", "run", "top-1 %", "seeds", "difference", "published, ImageNet %"]
    assert [row[2] for row in cells] == ["50.00", "60.00", "failed"], "nor what was not run"
    assert cells[0] == ["V6", "none", "50.00", "1", "reference", "59.58"]
    assert cells[1] == ["V6", "series", "60.00", "1", "+10.00", "75.23"]


# Processes


def test_a_run_that_fails_costs_no_other(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    names = ("n0", "exit", "abort", "killed", "memory", "diverge", "bug", "undeployed", "n1")
    outcome = make(*names, seeds=[0], jobs=3, tell=said.append)
    rows = {row.run: row for row in outcome.rows}
    assert (rows["n0"].mean, rows["n1"].mean, rows["undeployed"].mean) == (50.0, 60.0, 40.0)
    texts = {name: row.failures[0] for name, row in rows.items() if row.failures}
    assert texts == {
        "exit": "crashed: it ended with exit code 3",
        "abort": "crashed: signal 6 (SIGABRT)",
        "killed": "killed by signal 9 (out of memory?)",
        "memory": "out of memory: MemoryError",
        "diverge": "the loss of step 7 is not finite",
        "bug": "ZeroDivisionError: one by none",
        "undeployed": "not deployed: the graph disagrees with the network",
    }
    assert len(outcome.failures) == 7
    with pytest.raises(TrainingError, match="7 runs failed"):
        outcome.require_complete()
    document = json.loads(outcome.files[0].read_text())
    assert document["complete"] is False
    kinds = {one["run"]: one["failure"]["kind"] for one in document["runs"] if one.get("failure")}
    assert kinds == {"exit": "crashed", "abort": "crashed", "killed": "out of memory", "memory": "out of memory",
                     "diverge": "diverged", "bug": "failed"}  # fmt: skip
    assert any("hint: lower the rate" in line for line in said)
    output = (tmp_path / "out/ablation/mine/bug.s0/output.txt").read_text()
    assert "about to begin" in output
    assert "Traceback" in output, "what a run says is kept"
    assert "- bug.s0: ZeroDivisionError: one by none" in outcome.files[1].read_text()


def test_each_try_adds_to_what_a_run_said(make: Make, tmp_path: Path) -> None:
    told: list[str] = []
    make("exit", "n0", seeds=[0], runs=["exit"])
    make("exit", "n0", seeds=[0], runs=["exit"], tell=told.append)
    lines = (tmp_path / "out/ablation/mine/exit.s0/output.txt").read_text().splitlines()
    assert [line.startswith(HEADER) for line in lines] == [True, False, True, False]
    assert lines[1] == lines[3] == "about to begin"
    assert sum("about to begin" in line for line in told) == 1, "of this try alone"


def test_a_run_that_says_nothing_is_hung(tmp_path: Path) -> None:
    ended: list[Any] = []
    began = time.monotonic()
    do_runs([job(tmp_path / "hang", "hang")], works.by_name, at_once=1, patience_s=4.0,
            on_end=lambda job, answer, seconds: ended.append(answer))  # fmt: skip
    assert isinstance(ended[0], Failure)
    assert ended[0].kind == "hung"
    assert time.monotonic() - began < 300, "it would sleep for ten minutes"


@pytest.mark.parametrize("work", [works.obedient, works.stubborn])
def test_ctrl_c_stops_the_processes(tmp_path: Path, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.pipeline.ablate_process.STOP_S", 2.0 if work is works.stubborn else STOP_S)
    seen: list[int] = []

    def interrupt(running: Sequence[Running], waiting: int) -> None:
        assert waiting == 1, "as many at once as were asked for"
        if all(one.step.isdigit() for one in running):
            seen.extend(int(one.step) for one in running)
            raise KeyboardInterrupt

    jobs = [job(tmp_path / f"r{n}", f"r{n}") for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        do_runs(jobs, work, at_once=2, patience_s=300, on_end=lambda *_: None, on_tick=interrupt)
    assert len(seen) == 2
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    stopped = [(tmp_path / f"r{n}/stopped.json").exists() for n in range(3)]
    assert stopped == ([True, True, False] if work is works.obedient else [False] * 3)


def test_runs_share_the_cores(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.pipeline.ablate.usable_cores", lambda: 7)
    document = make(seeds=[0], jobs=2).document
    assert [(one["threads"], one["omp"]) for one in document["runs"]] == [(3, "3"), (3, "3")]
    (settings,) = {tuple(one["settings"][-2:]) for one in document["runs"][:1]}
    assert settings == ("name=n0.s0", "seed=0")


def test_threads_are_set_before_anything_reads_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.pipeline.ablate.usable_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (run,) = (one for one in make(seeds=[0], runs=["n0"], work=works.with_threads).document["runs"] if one["top1"])
    assert (run["early"], run["torch_threads"]) == ([], 1)


def test_what_is_told(make: Make, tmp_path: Path) -> None:
    """What is about to be done, each epoch, each run; and what goes on, without a second guess at the time."""
    folder = tmp_path / "out/ablation/mine"
    told: list[str] = []
    epochs: list[str] = []
    steps: list[str] = []
    make(seeds=[0], runs=["n1"])
    make(seeds=[0], jobs=2, work=works.by_epochs, tell=told.append, on_epoch=epochs.append,
         on_step=lambda text, _share: steps.append(text))  # fmt: skip
    assert told[0] == f"2 runs, 2 at once, into {folder}; each one's output: {folder}/<run>/output.txt"
    for name in ("n0.s0", "n1.s0"):
        assert f"{name} epoch 1/2: 31.0 %; 0/2 done, about 1 s left" in epochs
    assert len(epochs) == 4, "once each"
    assert any(text.startswith("0/2 runs: n0.s0 epoch 1/2") for text in steps)
    assert not any(" left" in text for text in steps)
    assert steps[-1] == "2/2 runs: writing the table"
    steps.clear()
    make(seeds=[0, 1], runs=["n0"], on_step=lambda text, _share: steps.append(text))
    assert "1/2 runs: starting the next" in steps


def test_what_is_kept_is_counted(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "out/ablation/mine"
    told: list[str] = []
    options: dict[str, Any] = {"seeds": [0], "work": works.with_checkpoint, "tell": told.append}
    make(runs=["n1"], **options)
    assert told[0] == f"1 run, into {folder}; each one's output: {folder}/<run>/output.txt"
    told.clear()
    make(**options)
    assert told[0] == f"2 runs (1 kept), into {folder}; each one's output: {folder}/<run>/output.txt"
    told.clear()
    make(**options)
    assert told == ["2 of 2 runs are done already"]


def test_the_table_is_whole_after_the_first_seed(make: Make) -> None:
    order: list[str] = []
    make(tell=lambda line: order.append(line.split()[1].rstrip(":")) if line.startswith("[") else None)
    assert order == ["n0.s0", "n1.s0", "n0.s1", "n1.s1"]


def test_the_time_that_is_left() -> None:
    jobs = [job(Path("/tmp"), run, seed) for seed in (0, 1) for run in ("a", "b")]
    progress = Progress(jobs, {"a": "x", "b": "y"}, at_once=1)
    assert progress.left_s(()) is None, "nothing is known yet"
    progress.end(jobs[0], 10.0, failed=False)
    assert progress.left_s(()) == pytest.approx(30.0), "others count as what is known"
    progress.end(jobs[1], 50.0, failed=False)
    assert progress.left_s(()) == pytest.approx(60.0), "the same run with another seed takes as long"
    now = time.monotonic()
    going = Running(jobs[2], None, None, now - 4, now, share=0.25, eta_s=12.0)  # type: ignore[arg-type]
    assert progress.left_s([going]) == pytest.approx(62.0, abs=0.5)
    assert progress.share([going]) == pytest.approx(2.25 / 4)
    two = Progress(jobs, {"a": "x", "b": "y"}, at_once=2)
    two.end(jobs[0], 10.0, failed=False)
    two.end(jobs[1], 50.0, failed=False)
    assert two.left_s(()) == pytest.approx(30.0), "two at once"
    assert two.left_s([going]) == pytest.approx(31.0, abs=0.5)
    two.end(jobs[2], 10.0, failed=False)
    assert two.left_s(()) == pytest.approx(50.0), "the last one is alone"


# What is there already, and what is in the way


def test_what_is_chosen(make: Make) -> None:
    outcome = make(runs=["n1"], seeds=[4])
    assert [row.mean for row in outcome.rows] == [None, 64.0]
    assert (outcome.rows[0].missing, outcome.failures) == ((4,), ())
    assert outcome.document["complete"] is False
    assert "not run yet: n0.s4" in outcome.document["notes"]
    assert [row.mean for row in make(runs=["n*"], seeds=[4]).rows] == [54.0, 64.0]
    with pytest.raises(InputError, match="mine has no run 'n2'"):
        make(runs=["n2"])
    with pytest.raises(InputError, match="--jobs 0"):
        make(jobs=0)


def test_files(make: Make, mine: Path) -> None:
    outcome = make(command="vexport ablate mine.yaml --force --jobs 2 --runs n0", overrides=["optimizer.lr=1e-3"])
    assert [path.name for path in outcome.files] == ["ablation.json", "ablation.md", "ablation.svg", "ablation.png"]
    assert json.loads(outcome.files[0].read_text()) == json.loads(json.dumps(outcome.document))
    text = outcome.files[1].read_text()
    assert text == as_markdown(outcome.document, outcome.rows)
    assert "| V5 | n = 1 | 60.50 | 0.71 | 2 | +10.00 | 60.00 | 1e-07 | 74.53 |" in text
    assert f"Repeat: `vexport ablate {mine} --set optimizer.lr=1e-3`\n" in text
    assert outcome.document["command"].endswith("--force --jobs 2 --runs n0"), "as it was given"
    assert "no epoch was chosen by looking at them" in text
    assert outcome.files[2].read_text().startswith("<?xml")
    assert outcome.files[3].read_bytes().startswith(b"\x89PNG")
    assert make().files[2].read_bytes() == outcome.files[2].read_bytes(), "the same figures give the same picture"


def test_one_process_at_a_time(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "out/ablation/mine"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(WorkspaceError, match="another process works on"):
        make()
    assert make(seeds=[0]).failures == ()


def test_a_folder_that_may_not_be_written(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WorkspaceError, match="no permission to write"):
        make()


def test_a_file_of_somebody_else_is_not_written_over(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "out/ablation/mine/ablation.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": true}')
    with pytest.raises(WorkspaceError, match="is in the way"):
        make()
    assert path.read_text() == '{"mine": true}'
    assert make(seeds=[0], force=True).files[0] == path


def test_images_that_are_not_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say where its images are") as caught:
        run_ablation("slope", workspace=Workspace(tmp_path / "out"))
    assert caught.value.hint.startswith("--data DIR")
    with pytest.raises(InputError, match="there are no images at nowhere"):
        run_ablation("slope", workspace=Workspace(tmp_path / "out"), overrides=["data.source=nowhere"])


def test_images_that_every_run_would_refuse_are_refused_first(make: Make, tmp_path: Path) -> None:
    place = tmp_path / "images"
    save_images(place / "train", each=1)
    text = HEAD.replace("quickstart", "cifar10").replace("  network.width: 0.015625\n", "") + TWO
    options: dict[str, Any] = {"text": text, "overrides": [f"data.source='{place}'"]}
    with pytest.raises(RecipeError, match="there is no split 'val' in"):
        make(**options)
    save_images(place / "val", each=1)
    (place / "val/red").rename(place / "val/grey")
    with pytest.raises(RecipeError, match="has classes that the training images have not: grey"):
        make(**options)
    assert not list((tmp_path / "out/ablation/mine").glob("n*")), "nothing was begun"
    (place / "val/grey").rename(place / "val/red")
    assert make(seeds=[0], **options).trained == 2


def test_a_package_that_every_run_needs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    make(seeds=[0], work=works.with_checkpoint)

    def hide(name: str, *more: Any) -> Any:
        return None if name == "lightning" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(MissingDependencyError, match="'lightning' is not installed") as caught:
        make()
    assert "pip install 'vexport[train]'" in caught.value.hint
    assert not (tmp_path / "out/ablation/mine/n0.s1").exists(), "nothing was begun"
    assert make(seeds=[0], work=works.with_checkpoint).kept == 2, "what is there needs none"


def test_a_refusal_of_every_run_stops_all(make: Make, tmp_path: Path) -> None:
    told: list[str] = []
    names = ("same0", "bug", "same1", "n1")
    with pytest.raises(TrainingError, match="the images are odd") as caught:
        make(*names, seeds=[0], tell=told.append)
    assert (caught.value.details, caught.value.hint) == (("all of them",), "even them out")
    assert told[-1] == "    hint: even them out"
    document = json.loads((tmp_path / "out/ablation/mine/ablation.json").read_text())
    assert "not run yet: n1.s0" in document["notes"]
    failed = {one["run"]: one["failure"]["text"] for one in document["runs"] if one.get("failure")}
    assert failed == {"same0": "the images are odd", "bug": "ZeroDivisionError: one by none",
                      "same1": "the images are odd"}  # fmt: skip
    outcome = make("n1", *names[:3], seeds=[0])
    assert (outcome.rows[0].mean, len(outcome.failures)) == (60.0, 3), "not where a run has figures"


def test_where_all_failed_there_is_no_table(make: Make) -> None:
    with pytest.raises(TrainingError, match=r"^2 runs failed\n"):
        make("bug", "diverge", seeds=[0]).require_complete()
    with pytest.raises(TrainingError, match="1 run failed; the table is of the others"):
        make("n0", "diverge", seeds=[0]).require_complete()


def test_an_unknown_network(make: Make, mine: Path) -> None:
    text = HEAD + TWO.replace("{network.act_num: 1}", "{network.model: vanilanet_6}")
    with pytest.raises(InputError, match="run n1: unknown model 'vanilanet_6'") as caught:
        make(text=text)
    assert caught.value.hint == "did you mean vanillanet_6?"


# What earlier calls left


def test_a_failure_is_remembered(make: Make) -> None:
    first = make("n0", "diverge", seeds=[0])
    again = make(seeds=[0], runs=["n0"])
    assert again.rows[1].failures == first.rows[1].failures == {0: "the loss of step 7 is not finite"}
    assert again.rows[1].missing == ()
    assert again.failures == (), "it was not chosen"
    assert "- diverge.s0: the loss of step 7 is not finite" in again.files[1].read_text()
    other = make(seeds=[0], runs=["n0"], overrides=["optimizer.lr=1e-3"])
    assert (other.rows[1].failures, other.rows[1].missing) == ({}, (0,)), "with another recipe it says nothing"


def test_a_failed_deployment_leaves_the_figures(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "out/ablation/mine"
    folder.mkdir(parents=True)
    (folder / "during.txt").write_text("n1.s0 after")
    killed = {0: "not deployed: killed by signal 9 (out of memory?)"}
    outcome = make(seeds=[0], work=works.with_checkpoint)
    for when in ("after", "training"):  # a retry that is killed takes nothing away
        assert (outcome.rows[1].mean, outcome.rows[1].failures) == (60.0, killed)
        assert outcome.failures == ("n1.s0: not deployed: killed by signal 9 (out of memory?)",)
        seen = make(seeds=[0], runs=["n0"], work=works.with_checkpoint)
        assert (seen.rows[1].mean, seen.rows[1].failures) == (60.0, killed)
        (folder / "during.txt").write_text(f"n1.s0 {when}")
        outcome = make(seeds=[0], work=works.with_checkpoint)
    assert make(seeds=[0], work=works.with_checkpoint, export=False).failures == (), "no graph is asked for"
    (folder / "during.txt").unlink()
    whole = make(seeds=[0], work=works.with_checkpoint)
    assert (whole.rows[1].mean, whole.rows[1].deployed_mean, whole.rows[1].failures) == (60.0, 59.5, {})
    assert (folder / "n1.s0/trained.txt").read_text() == "1", "trained once"
    assert make(seeds=[0], work=works.with_checkpoint).kept == 2


def test_a_table_is_of_one_set_of_images(make: Make, mine: Path, tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        for split in ("train", "val"):
            save_images(place / split, each=1)
    a, b = ([f"data.source='{place}'"] for place in places)
    text = HEAD.replace("quickstart", "cifar10").replace("  network.width: 0.015625\n", "") + TWO
    options: dict[str, Any] = {"seeds": [0], "work": works.with_checkpoint}
    make(text=text, runs=["n0"], overrides=a, **options)
    other = make(runs=["n1"], overrides=b, **options)
    assert [row.mean for row in other.rows] == [None, 60.0]
    assert other.rows[1].difference is None
    notes = other.document["notes"]
    assert f"left out, trained on {places[0]}: n0.s0" in notes
    assert not any(line.startswith("not run yet") for line in notes)
    with pytest.raises(InputError, match="trained on different images") as caught:
        make(**options)
    assert caught.value.details == (f"{places[0]}: n0.s0", f"{places[1]}: n1.s0")
    with pytest.raises(InputError, match="1 run is of another recipe") as caught:
        make(overrides=b, **options)
    assert caught.value.details == (f"n0.s0: trained on {places[0]}, now {places[1]}",)
    both = make(overrides=b, runs=["n0"], force=True, **options)
    assert [row.mean for row in both.rows] == [50.0, 60.0]
    assert not any("left out" in line for line in both.document["notes"])
    last = make(**options)
    assert (last.kept, last.document["source"]) == (2, str(places[1]))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no such signals")
@pytest.mark.parametrize("number", [getattr(signal, name, 0) for name in ("SIGTERM", "SIGHUP")])
def test_a_signal_ends_with_a_table(make: Make, tmp_path: Path, number: int) -> None:
    def not_held(number: int, frame: object) -> None:
        raise AssertionError("nobody held the signal")

    (tmp_path / "out/ablation/mine").mkdir(parents=True)
    told: list[str] = []
    seen: list[int] = []

    def on_step(text: str, share: float | None) -> None:
        seen[:] = [int(pid) for pid in re.findall(r"n\d\.s0 (\d+)", text)]
        if len(seen) == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # a terminal that closes sends more than one

    make(seeds=[1], runs=["n0"], work=works.with_checkpoint)
    before = signal.signal(number, not_held)
    try:
        with pytest.raises(SystemExit) as caught:
            make(jobs=2, work=works.obedient, on_step=on_step, tell=told.append)
        assert signal.getsignal(number) is not_held
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number
    assert told[-1] == "0 of 3 runs were done; the same command goes on with the others"
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    folder = tmp_path / "out/ablation/mine"
    assert all((folder / f"{name}/stopped.json").exists() for name in ("n0.s0", "n1.s0"))
    document = json.loads((folder / "ablation.json").read_text())
    assert (document["seeds"], document["rows"][0]["mean"]) == ([0, 1], 51.0)


def test_a_full_disk_stops_no_other_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vexport.pipeline import ablate, ablate_process

    full = WorkspaceError("the disk is full", hint="make room")
    write, start = ablate.write_figures, ablate_process._start

    def refuse_to_write(own: Path, figures: Any) -> None:
        if own.name == "n0.s0":
            raise full
        write(own, figures)

    def refuse_to_start(job: Job, work: Any, running: list[Running]) -> Failure | None:
        if job.name == "n1.s0":
            return Failure("failed", full.message, hint=full.hint)
        return start(job, work, running)

    monkeypatch.setattr(ablate, "write_figures", refuse_to_write)
    monkeypatch.setattr(ablate_process, "_start", refuse_to_start)
    told: list[str] = []
    with pytest.raises(WorkspaceError, match="the disk is full"):
        make(tell=told.append)
    assert "note: the disk is full" in told
    document = json.loads((tmp_path / "out/ablation/mine/ablation.json").read_text())
    assert {one["name"]: one["top1"] for one in document["runs"] if one.get("top1")} == {
        "n0.s0": 50.0, "n0.s1": 51.0, "n1.s1": 61.0
    }  # fmt: skip
    assert [one["failure"]["text"] for one in document["runs"] if one.get("failure")] == ["the disk is full"]


def test_an_interrupt_under_force_goes_on_without_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"seeds": [0], "work": works.with_checkpoint}
    make(**options)
    changed = {**options, "overrides": ["optimizer.lr=1e-3"]}

    def stop_after_one(jobs: Sequence[Job], *args: Any, **more: Any) -> None:
        do_runs(jobs[:1], *args, **more)
        raise KeyboardInterrupt

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("vexport.pipeline.ablate.do_runs", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            make(force=True, tell=told.append, **changed)
    assert told[-1] == "1 of 2 runs were done; the same command without --force goes on with the others"
    document = json.loads((tmp_path / "out/ablation/mine/ablation.json").read_text())
    assert "not run yet: n1.s0" in document["notes"]
    on = make(**changed)
    assert (on.kept, on.trained, on.again) == (1, 1, "the same command")
    times = [(tmp_path / f"out/ablation/mine/{name}/trained.txt").read_text() for name in ("n0.s0", "n1.s0")]
    assert times == ["2", "2"], "each once more"
    assert make(**changed).kept == 2


def test_a_run_that_fails_under_force_is_tried_again_without_it(make: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": [0], "work": works.with_checkpoint}
    make(**options)
    during = tmp_path / "out/ablation/mine/during.txt"
    during.write_text("n1.s0 training")
    outcome = make(force=True, **options)
    assert outcome.rows[1].mean is None, "its old figures were given up"
    with pytest.raises(TrainingError) as caught:
        outcome.require_complete()
    assert "the same command without --force tries the failed ones again" in caught.value.hint
    during.unlink()
    again = make(**options)
    assert (again.kept, again.trained, again.rows[1].mean) == (1, 1, 60.0)
    assert (tmp_path / "out/ablation/mine/n1.s0/trained.txt").read_text() == "2"


def test_fields_that_do_not_reach_each_run_are_said(make: Make) -> None:
    said: list[str] = []
    text = HEAD + TWO.replace("{network.act_num: 1}", "{network.act_num: 1, epochs: 3}")
    outcome = make(text=text, seeds=[0], overrides=["epochs=4"], tell=said.append)
    line = "--set epochs has no effect on n1: set there"
    assert f"note: {line}" in said
    assert line in outcome.document["notes"]


OTHER = (
    "  alex: {row: A, column: n = 0, set: {network.model: alexnet, network.stem_stride: 1, network.width: 0.0625}}\n"
)


def test_runs_that_were_not_chosen_do_not_block(make: Make, mine: Path) -> None:
    """AlexNet is drawn as its library draws it; it was not chosen, and stays in the recipe as it is."""
    mine.write_text(HEAD + TWO + OTHER)
    changes = {"overrides": ["network.init=lecun_normal"], "seeds": [0]}
    with pytest.raises(RecipeError, match="error"):
        make(**changes)
    outcome = make(runs=["n*"], **changes)
    assert outcome.trained == 2
    assert any("network.init has no effect on alex" in note for note in outcome.document["notes"])
    assert outcome.document["repeat"].endswith("--runs 'n*'")


def test_runs_that_were_set_otherwise_are_not_compared(make: Make, mine: Path) -> None:
    """What is set reaches n1 alone: ablation networks have no layer groups."""
    mine.write_text(HEAD + TWO.replace("network.act_num: 0", "network.techniques: deep"))
    document = make(runs=["n1"], overrides=["optimizer.layer_decay=0.7"], seeds=[0]).document
    (verdict,) = document["verdicts"]
    assert verdict.startswith("n = 1 on V5: not compared with n = 0: ")
    assert all(row["difference"] is None and row["published_difference"] is None for row in document["rows"])


def test_a_table_that_would_lose_runs_is_not_written(make: Make, tmp_path: Path) -> None:
    make(seeds=[0, 1], work=works.with_checkpoint)
    path = tmp_path / "out/ablation/mine/ablation.json"
    before = path.read_bytes()
    changed: dict[str, Any] = {"overrides": ["batch_size=256"], "work": works.with_checkpoint}
    for options in ({"seeds": [7], "runs": ["n0"]}, {"seeds": [7]}):
        with pytest.raises(InputError, match="the table would lose 4 runs of another recipe"):
            make(**options, **changed)
    assert path.read_bytes() == before
    document = make(seeds=[7], force=True, **changed).document
    assert document["seeds"] == [7]
    assert any("left out, of another recipe: " in note for note in document["notes"])


def test_another_recipe_of_that_name_does_not_replace_the_tables(make: Make, tmp_path: Path) -> None:
    make(seeds=[0], work=works.with_checkpoint)
    before = (tmp_path / "out/ablation/mine/ablation.json").read_bytes()
    with pytest.raises(WorkspaceError, match="figures of runs that another recipe named mine brought"):
        make("b0", "b1", seeds=[0])
    assert (tmp_path / "out/ablation/mine/ablation.json").read_bytes() == before
    assert make("b0", "b1", seeds=[0], force=True).trained == 2


def test_seeds_of_earlier_calls_stay_in_the_table(make: Make) -> None:
    make(seeds=[0, 1], work=works.with_checkpoint)
    document = make(seeds=[2], work=works.with_checkpoint).document
    assert document["seeds"] == [0, 1, 2]
    assert "from earlier calls, of the same recipe: seed 0, 1" in " ".join(document["notes"])


def test_how_many_comparisons_there_are() -> None:
    def notes(**values: Sequence[float]) -> list[str]:
        found = _notes(rows_of(values), {}, {})
        return [line for line in found if "comparisons" in line or "no interval" in line]

    a, b = [50.0, 51.0, 52.0], [60.0, 61.2, 61.9]
    assert notes(a=a, b=b) == [], "one needs no word"
    assert notes(a=a, b=b, c=[50.5, 49.8, 52.3]) == [
        "2 comparisons, each at 95%: the more there are, the likelier one is told apart by chance"
    ]
    (line,) = notes(a=a, b=[60.0, 61.0, 62.0])
    assert line.startswith("differences that are the same in each seed have no interval")


def test_where_runs_were_trained(make: Make) -> None:
    outcome = make(seeds=[0])
    document = {**outcome.document, "environment": {"cpu": "of the table"}, "versions": {"torch": "of the table"}}
    n0, n1 = ({**one} for one in document["runs"])
    n0 |= {"device": "NVIDIA H200", "versions": {"torch": "2.9"}}
    n1 |= {"device": "cpu", "cpu": "Xeon", "versions": {"torch": "2.15"}}
    n1["deployed"] = {**n1["deployed"], "versions": {"onnx": "1.19"}}
    text = as_markdown({**document, "runs": [n0, n1]}, outcome.rows)
    assert "Trained on NVIDIA H200, cpu (Xeon); torch 2.9 and 2.15, onnx 1.19." in text
    assert "of the table" not in text
    assert "a device that is not recorded" in as_markdown({**document, "runs": [{**n0, "device": None}]}, outcome.rows)


# For real


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of two, trained and deployed by this process."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine.yaml").write_text(HEAD + TWO)
    return folder


@pytest.mark.slow
def test_a_run_that_was_trained_outside_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(HEAD.replace("[0, 1]", "[0]") + TWO)
    one = real_job(tmp_path, export=False)
    found = do_run(one, lambda _: None)
    last = one.folder / "n0.s0.last.ckpt"
    (one.folder / "result.json").unlink()
    before = last.stat().st_mtime_ns, last.read_bytes()
    outcome = run_ablation(tmp_path / "mine.yaml", workspace=Workspace(tmp_path / "out"), runs=["n0"])
    assert (outcome.trained, outcome.failures) == (1, ())
    assert (last.stat().st_mtime_ns, last.read_bytes()) == before, "not trained anew"
    run = outcome.document["runs"][0]
    assert (run["top1"], run["checkpoint_sha256"]) == (found["top1"], found["checkpoint_sha256"])
    assert run["deployed"]["correct"] == found["correct"]
    assert (run["train_s"], run["device"]) == (None, None), "nobody knows"
    assert "was trained before: for how long and on which device is not recorded" in run["notes"]


def real_job(folder: Path, run: str = "n0", *overrides: str, **more: Any) -> Job:
    ablation = load_ablation(folder / "mine.yaml", overrides)
    plan = ablation.plan(run, 0)
    own = folder / "out/ablation/mine" / plan.name
    own.mkdir(parents=True, exist_ok=True)
    return Job(run, 0, own, ablation.base, tuple(ablation.settings(run, 0)), recipe_hash(plan), **more)


def test_a_run_is_trained_and_deployed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[Any, ...]] = []
    one = real_job(trained)
    found = do_run(one, told.append)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0].rpartition(" ")[0] for line in said if line.startswith("epoch")] == [
        "epoch 1/2: loss", "epoch 2/2: loss",
    ], "what one looks for in output.txt"  # fmt: skip
    manifest = read_manifest(one.folder / "n0.s0.last.ckpt")
    assert manifest is not None
    assert (found["top1"], found["correct"]) == (manifest.facts["top1"], manifest.facts["correct"])
    assert (found["epochs"], manifest.facts["epoch"]) == (2, 2), "the last epoch, not the best"
    deployed = found["deployed"]
    assert deployed["correct"] == found["correct"], "the graph answers as the averaged weights do"
    assert deployed["images"] == found["images"] > 300
    assert 0 <= deployed["graph_max_rel"] < 1e-5
    assert 0 < deployed["merge_max_rel"] < 1e-5
    assert Path(deployed["graph"]).name == "n0.s0.last.onnx"
    assert sorted(Path(found["log"]).glob("version_*/metrics.csv"))
    assert json.loads((one.folder / "recipe.json").read_text())["network"]["act_num"] == 0
    epochs = [rest for kind, *rest in told if kind == "epoch"]
    assert epochs[-1][:2] == [2, 2]
    again = do_run(one, told.append)
    assert again["checkpoint_sha256"] == found["checkpoint_sha256"]
    assert (again["deployed"], again["log"]) == (deployed, found["log"])
    for field in ("train_s", "resumed_from", "damaged", "device", "cpu", "threads", "notes"):
        assert again[field] == found[field], "of the training, not of the call that found it done"
    assert found["train_s"] > 0
    kept = read_figures(one.folder, one.name, one.recipe_hash)
    assert kept is not None
    assert kept["train_s"] == found["train_s"]


def test_a_run_on_a_folder_of_images(tmp_path: Path) -> None:
    save_images(tmp_path / "images/train", each=8)
    save_images(tmp_path / "images/val", each=5, first=8)
    head = HEAD.replace("quickstart", "cifar10").replace("batch_size: 512", "batch_size: 8")
    (tmp_path / "mine.yaml").write_text(head + TWO)
    found = do_run(real_job(tmp_path, "n0", f"data.source='{tmp_path / 'images'}'", "data.workers=0"), lambda _: None)
    deployed = found["deployed"]
    assert deployed["images"] == found["images"] == 15
    assert deployed["correct"] == found["correct"], "the graph answers as the averaged weights do"
    assert deployed["top1"] == pytest.approx(found["top1"])
    assert found["source"] == str((tmp_path / "images").resolve())


def test_a_run_that_diverges_says_so(trained: Path) -> None:
    one = real_job(trained, "n1", "optimizer.lr=1.0e+30", "optimizer.name=sgd", export=False)
    with pytest.raises(TrainingError, match="the loss is nan at step 1") as caught:
        do_run(one, lambda _: None)
    assert is_divergence(caught.value)
    assert not is_divergence(TrainingError("the device's memory is too small", hint="lower it"))


@pytest.mark.slow
def test_a_small_ablation_from_end_to_end(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(HEAD.replace("[0, 1]", "[0]") + TWO)
    work = Workspace(tmp_path / "out")
    said: list[str] = []
    outcome = run_ablation(mine, workspace=work, jobs=2, tell=said.append)
    assert (outcome.trained, outcome.kept, outcome.failures) == (2, 0, ())
    for row in outcome.rows:
        assert row.deployed_mean == row.mean
    assert outcome.document["complete"] is True

    kept = run_ablation(mine, workspace=work, work=works.by_name)
    assert (kept.trained, kept.kept) == (0, 2)
    assert [row.mean for row in kept.rows] == [row.mean for row in outcome.rows]

    with pytest.raises(InputError, match="2 runs are of another recipe") as caught:
        run_ablation(mine, workspace=work, overrides=["epochs=3"], work=works.by_name)
    assert caught.value.details == ("n0.s0: epochs 2 then, 3 now", "n1.s0: epochs 2 then, 3 now")
    last = work.root / "ablation/mine/n0.s0/n0.s0.last.ckpt.json"
    last.write_text(last.read_text().replace('"sha256": "', '"sha256": "0', 1))
    changed = run_ablation(mine, workspace=work, runs=["n0"], work=works.by_name)
    assert (changed.trained, changed.kept) == (1, 0), "figures of another checkpoint do not count"
    one = run_ablation(
        mine, workspace=work, overrides=["optimizer.lr=1e-3"], runs=["n1"], force=True, work=works.by_name
    )
    assert (one.trained, one.kept, one.rows[1].mean) == (1, 0, 60.0)
    assert one.document["runs"][1]["anew"] is True
    assert one.rows[0].missing == (0,), "what is there of n0 is of another recipe"

    with pytest.raises(InputError, match="the table would lose 1 run of another recipe"):
        run_ablation(mine, workspace=work, runs=["n0"], work=works.by_name)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="has no signal masks")
@pytest.mark.parametrize("blocked", [set(), {signal.SIGINT, signal.SIGUSR1}])
def test_the_signal_mask_is_as_before(make: Make, blocked: set[signal.Signals]) -> None:
    """Ctrl-C is held back while a process starts, and not a moment longer."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        make(seeds=[0], runs=["n0"])
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
