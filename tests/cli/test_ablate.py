"""`vexport ablate`: the table, JSON, exit codes, refusals; Ctrl-C and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vexport.pipeline import ablate as pipeline

from .conftest import Invoke, files_of

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

RECIPE = """\
title: Mine
base: quickstart
seeds: [0, 1]
reference: n = 0
set:
  batch_size: 512
  device: cpu
  epochs: 2
  network.width: 0.015625
  deep_training.decay_epochs: 1
  schedule.warmup_epochs: 0
runs:
  n0: {row: V5, column: n = 0, set: {network.act_num: 0}, published: 60.53}
  n1: {row: V5, column: n = 1, set: {network.act_num: 1}, published: 74.53}
"""


@pytest.fixture
def mine(folder: Path) -> Path:
    (folder / "mine.yaml").write_text(RECIPE)
    return Path("mine.yaml")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs end at once with these, in place of processes."""
    found: dict[str, Any] = {"n0": 50.0, "n1": 60.0}

    def end_at_once(jobs: Any, work: Any, *, on_end: Callable[..., None], **_: Any) -> None:
        for job in jobs:
            figure = found[job.run]
            if isinstance(figure, pipeline.Failure):
                on_end(job, figure, 3.0)
            else:
                deployed = {"top1": figure, "graph_max_rel": 2e-8}
                on_end(
                    job,
                    {
                        "top1": figure + job.seed * (1.1 if job.run == "n1" else 1),
                        "deployed": deployed,
                        "device": "cpu",
                    },
                    100.0,
                )

    monkeypatch.setattr(pipeline, "do_runs", end_at_once)
    return found


def test_the_table(invoke: Invoke, mine: Path, figures: dict[str, Any]) -> None:
    result = invoke("ablate", mine)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "Mine" in lines[0]
    assert any(line.startswith("V5 n = 0 50.50 0.71 2 reference") and line.endswith("60.53") for line in lines)
    # t(0.975, 1) = 12.7062, and the differences are 10 and 10.1.
    assert any(line.startswith("V5 n = 1 60.55 0.78 2 +10.05 (+9.41 to +10.69)") for line in lines)
    verdict = "n = 1: +10.05 points (+9.41 to +10.69, 2 seeds) over n = 0 on V5: better; published on ImageNet: +14.00"
    assert verdict in lines
    out = "vexport-out/ablation/mine/ablation"
    assert lines[-1] == f"figures: {out}.json, table: {out}.md, picture: {out}.png"
    assert "[1/4] n0.s0: 50.00 %, deployed 50.00 %, 2 min; about 5 min left" in result.stderr
    assert "no epoch was chosen by looking at them" in result.stderr


def test_one_seed_is_said_to_be_one(invoke: Invoke, mine: Path, figures: dict[str, Any]) -> None:
    result = invoke("ablate", mine, "--seeds", "7", "--runs", "n0", "--runs", "n1")
    assert "n = 1: +10.70 points over n = 0 on V5, one seed: chance is not ruled out" in result.stdout
    assert "differences of one seed have no interval" in result.stderr
    both = invoke("ablate", mine, "--seeds", "7", "--runs", "n0,n1")
    assert both.stdout == result.stdout


def test_epochs_are_lines_where_there_is_no_terminal(
    invoke: Invoke, mine: Path, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    end_at_once = pipeline.do_runs

    def look_once(jobs: Any, work: Any, *, on_tick: Callable[..., None], **more: Any) -> None:
        now = time.monotonic()
        going = pipeline.Running(jobs[0], None, None, now, now, ended=[(1, 2, 31.44)], eta_s=120.0)  # type: ignore[arg-type]
        on_tick([going], len(jobs) - 1)
        end_at_once(jobs, work, **more)

    monkeypatch.setattr(pipeline, "do_runs", look_once)
    assert "n0.s0 epoch 1/2: 31.4 %; 0/4 done, about 8 min left\n" in invoke("ablate", mine).stderr
    assert "epoch 1/2" not in invoke("ablate", mine, "--json").stderr


def test_a_run_that_failed_exits_with_1(invoke: Invoke, mine: Path, figures: dict[str, Any]) -> None:
    figures["n0"] = pipeline.Failure("diverged", "the loss is nan at step 1", ("hint: lower it",))
    result = invoke("ablate", mine)
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "60.55" in result.stdout, "the table is shown"
    assert "n = 1 on V5: not compared with n = 0: n = 0 failed" in result.stdout
    assert "error: 2 runs failed; the table is of the others\n  n0.s0: the loss is nan at step 1\n" in result.stderr
    assert "    hint: lower it" in result.stderr
    as_json = invoke("ablate", mine, "--json")
    assert as_json.exit_code == 1
    said = json.loads(as_json.stdout)
    assert said["failures"] == ["n0.s0: the loss is nan at step 1", "n0.s1: the loss is nan at step 1"]
    assert (said["trained"], said["rows"][1]["mean"]) == (2, pytest.approx(60.55))


def test_json_is_one_document(invoke: Invoke, mine: Path, figures: dict[str, Any]) -> None:
    said = json.loads(invoke("ablate", mine, "--json").stdout)
    document = json.loads(Path(said["files"]["json"]).read_text())
    assert {key: said[key] for key in document} == document
    assert (document["schema"], document["kind"], document["complete"]) == (1, "ablation", True)
    assert [one["name"] for one in document["runs"]] == ["n0.s0", "n0.s1", "n1.s0", "n1.s1"]
    assert document["runs"][0]["recipe"]["network"]["act_num"] == 0
    assert len(document["recipe_sha256"]) == 64


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["technique"], "hint: did you mean techniques?"),
        (["nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["slope"], "hint: --data DIR"),
        (["slope", "--data", "nowhere"], "there are no images at nowhere"),
        (["mine.yaml", "--runs", "n3"], "mine has no run 'n3'"),
        (["mine.yaml", "--seeds", "1,2,1"], "seed 1 is given twice"),
        (["mine.yaml", "--seeds", "one"], "--seeds one are not whole numbers"),
        (["mine.yaml", "--seeds", ""], "there is no seed"),
        (["mine.yaml", "--jobs", "0"], "--jobs 0 is not positive"),
        (["mine.yaml", "--set", "epoch=3"], "--set epoch: no such field; did you mean epochs?"),
        (["mine.yaml", "--set", "network.model=vanilanet_5"], "hint: did you mean vanillanet_5?"),
        (["mine.yaml", "--data", "x"], "--set data.source: no such field"),
    ],
)
def test_bad_input(
    refused: Callable[..., str], mine: Path, folder: Path, args: list[str], said: str, figures: dict[str, Any]
) -> None:
    # The folder is made, and locked, once the recipe has been checked.
    (folder / "vexport-out/ablation/slope").mkdir(parents=True)
    (folder / "vexport-out/ablation/slope/.lock").touch()
    assert said in refused("ablate", *args)


def test_a_recipe_with_typos(refused: Callable[..., str], folder: Path) -> None:
    wrong = RECIPE.replace("epochs: 2", "epoch: 2").replace("{network.act_num: 1}", "{netwrk.act_num: 1}")
    (folder / "mine.yaml").write_text(wrong)
    said = refused("ablate", "mine.yaml").splitlines()
    assert said[0] == "error: mine.yaml has 2 errors"
    assert said[1].startswith("  mine.yaml:8: set.epoch: no such field; did you mean epochs?")
    assert said[2].startswith("  mine.yaml:14: runs.n1.set.netwrk.act_num: netwrk: no such field")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_an_interrupted_run_goes_on(folder: Path, mine: Path) -> None:
    """Ctrl-C, as a terminal sends it: to the whole group of processes."""
    text = RECIPE.replace("epochs: 2", "epochs: 12").replace("seeds: [0, 1]", "seeds: [0]")
    (folder / "mine.yaml").write_text(text)
    command = [sys.executable, "-m", "vexport", "ablate", "mine.yaml", "--runs", "n1", "--no-export"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's & ignores it
    )
    own = folder / "vexport-out/ablation/mine/n1.s0"
    deadline = time.monotonic() + 300
    while not (own / "n1.s0.last.ckpt.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "0 of 1 runs were done; the same command goes on with the others" in said
    assert "Traceback" not in said
    assert _is_gone(process.pid), "no process of its group is left"
    assert not [name for name in files_of(own) if name.startswith(".vexport-")], "nothing is half-written"
    assert "Traceback" not in (own / "output.txt").read_text()
    document = json.loads((folder / "vexport-out/ablation/mine/ablation.json").read_text())
    assert document["complete"] is False
    assert "No run has been done yet." in (folder / "vexport-out/ablation/mine/ablation.md").read_text()

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    result = json.loads((own / "result.json").read_text())
    assert 1 <= result["resumed_from"] < 12
    assert result["epochs"] == 12
    assert "[1/1] n1.s0: " in again.stderr
    once_more = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "1 of 1 runs are done already" in once_more.stderr


def _is_gone(group: int) -> bool:
    """Python's own helper process ends a moment after the one that it helps."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
