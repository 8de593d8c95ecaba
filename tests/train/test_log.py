"""What a run tells: its log files, the picture, and the lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vexport.cli.app import app
from vexport.pipeline.epochs import describe_epoch, duration, epoch_share
from vexport.pipeline.train import train_recipe
from vexport.train.log import draw_curves, next_run, read_log
from vexport.workspace import Workspace


def write_csv(folder: Path, version: int, text: str) -> None:
    path = folder / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_a_later_start_supersedes_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    write_csv(tmp_path, 0, "step,loss,epoch\n1,5.0,\n2,4.0,1.0\n3,9.0,\n4,9.0,2.0\n")
    write_csv(tmp_path, 2, "step,loss,epoch\n3,3.0,\n4,2.0,2.0\n")
    write_csv(tmp_path, 10, "step,loss,epoch\n5,1.0,\n")
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [(1, 5), (2, 4), (3, 3), (4, 2), (5, 1)]
    assert "epoch" not in read_log(tmp_path)[0]


def test_nothing_logged_is_no_picture(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    assert draw_curves(tmp_path, "nothing") is None


def test_numbers_of_runs(tmp_path: Path) -> None:
    assert next_run(tmp_path, "mine") == 1
    for name in ("run-1", "run-9", "run-x", "notes"):
        (tmp_path / "mine.log" / name).mkdir(parents=True)
    assert next_run(tmp_path, "mine") == 10


def test_a_run_leaves_its_log_and_a_picture(tiny: Path, tmp_path: Path) -> None:
    result = train_recipe(tiny, workspace=Workspace(tmp_path / "out"), overrides=["batch_size=64"])
    assert result is not None
    assert result.log is not None
    assert result.curves is not None
    rows = read_log(result.log)
    epochs = [row for row in rows if "epoch" in row]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    for row in epochs:
        assert row["images_per_s"] > 0
        assert 0 <= row["data_wait"] <= 1
        assert row["loss" if "loss" in row else "epoch_loss"] > 0
    assert epochs[-1]["top1"] == pytest.approx(result.last.facts["top1"])
    assert {row["slope"] for row in epochs[2:]} == {1.0}
    by_step = [row for row in rows if "loss" in row]
    assert [row["step"] for row in by_step] == [20, 40, 60, 80]
    assert by_step[0]["lr"] > by_step[-1]["lr"]
    assert list(result.log.glob("version_0/events.out.tfevents.*"))
    pixels = np.asarray(Image.open(result.curves).convert("L"))
    assert pixels.shape == (640, 1000)
    assert (pixels < 128).mean() > 0.005, "something is drawn"


def test_validation_tells_that_it_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run whose validation is long would look hung."""
    monkeypatch.setattr("vexport.train.log.REFRESH_S", 0.0)
    seen: list[tuple[int, Mapping[str, float]]] = []
    train_recipe(
        tiny, workspace=Workspace(tmp_path / "out"), on_progress=lambda epoch, _, figures: seen.append((epoch, figures))
    )
    for epoch in range(4):
        steps = [(figures["step"], figures["steps"]) for done, figures in seen if done == epoch and "step" in figures]
        batches = int(steps[0][1])
        assert [step for step, _ in steps[:batches]] == list(range(1, batches + 1)), "training"
        assert steps[batches:], "validation tells too"
        assert set(steps[batches:]) == {(batches, batches)}


def test_lines_for_people() -> None:
    within = {"step": 50.0, "steps": 200.0, "images_per_s": 812.4, "data_wait": 0.034, "eta_s": 4000.0}
    assert describe_epoch(3, 10, within) == "epoch 3/10: batch 50/200, 812 images/s, 3% waiting for data, 67 min left"
    assert epoch_share(3, 10, within) == pytest.approx(0.325)
    ends = {"loss": 1.5, "slope": 0.3, "top1": 61.25, "top1_model": 60.0}
    assert describe_epoch(3, 10, ends) == "epoch 3/10: loss 1.500, slope 0.30, held-out 61.2 % (weights 60.0 %)"
    assert epoch_share(10, 10, ends) == 1
    assert describe_epoch(0, 10, {}) == "epoch 0/10"
    assert [duration(seconds) for seconds in (5, 89, 90, 5399, 5400)] == ["5 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_the_command(tiny: Path, tmp_path: Path) -> None:
    """One line an epoch where there is no terminal; the second time it is up to date; typos are listed."""
    command = ["train", str(tiny), "--workspace", str(tmp_path / "out"), "--resume"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert "there is no run" in done.stderr
    assert "images/s" in lines[0]
    assert "curves.png" in done.stdout
    again = CliRunner().invoke(app, command)
    assert again.stdout.startswith("up to date: ")


def test_where_the_images_are(tmp_path: Path) -> None:
    """--data is short for data.source, whatever is in the path."""
    place = tmp_path / "it's: {here} #1"
    done = CliRunner().invoke(app, ["train", "cifar10", "--data", str(place), "--workspace", str(tmp_path)])
    assert done.exit_code == 1
    assert str(done.exception).startswith(f"data.source {place} does not exist") or str(place) in done.output
