"""Two processes train what one trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vexport.train.checkpoints import read_position
from vexport.train.log import read_log

RECIPE = """\
epochs: 3
batch_size: 512
device: cpu
network: {model: vanillanet_5, width: 0.015625, act_num: 1, drop_rate: 0.1}
deep_training: {decay_epochs: 1, per: step}
data: {name: digits, augment: {rotate_deg: 5, scale: 0.1, shift: 0.05}}
optimizer: {name: sgd, lr: 0.05}
schedule: {warmup_epochs: 1}
ema: {decay: 0.9}
compute: {micro_batch: 128}
"""


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(folder: Path, processes: int, *more: str) -> list[str]:
    """The command that trains in as many processes as said."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    python = [sys.executable, *(launch if processes > 1 else [])]
    return [*python, "-m", "vexport", "train", str(folder / "small.yaml"), "--json", *more]


def train(folder: Path, processes: int, *more: str) -> dict[str, object]:
    """Train in as many processes as said; what the first one prints."""
    where = [] if "--workspace" in more else ["--workspace", str(folder / str(processes))]
    done = subprocess.run(
        command(folder, processes, *more, *where), capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a launcher and for what it launched, which has sessions of its own."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    doomed = {process.pid}
    while more := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def assert_close(one: Path, other: Path) -> None:
    """As many steps, and the same weights but for the order of sums."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    assert a["global_step"] == b["global_step"] == 6
    for name, tensor in a["model"].items():
        # BatchNorm's statistics are those of the first process's images.
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(b["model"][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    """The same recipe: one process accumulates four micro-batches a step, two processes two each, over gloo."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    results = {count: train(tmp_path, count) for count in (1, 2)}
    rows = {}
    for count, result in results.items():
        assert result["epochs"] == 3
        rows[count] = [row for row in read_log(Path(str(result["log"]))) if "epoch" in row]
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one["step"] == two["step"]
        assert two["epoch_loss"] == pytest.approx(one["epoch_loss"], rel=1e-5)
        assert two["slope"] == one["slope"]
    assert_close(*(tmp_path / str(count) / "small.last.ckpt" for count in (1, 2)))
    assert results[1]["total"] == results[2]["total"] == 359, "each image is counted once"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found by /proc")
@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (1, 2)])
def test_killed_within_an_epoch_and_gone_on_with_by_others(tmp_path: Path, first: int, then: int) -> None:
    """The position is kept in steps: another number of processes takes the images that are left, and no others."""
    (tmp_path / "small.yaml").write_text(RECIPE + "checkpoint: {every_steps: 1}\n")
    whole = train(tmp_path, 1)
    out, last = tmp_path / "killed", tmp_path / "killed" / "small.last.ckpt"
    process = subprocess.Popen(
        command(tmp_path, first, "--workspace", str(out)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if last.exists() and read_position(last).epoch == 1 and read_position(last).steps:
            break
        time.sleep(0.001)
    kill_with_children(process)
    position = read_position(last)
    assert position.epoch < 3
    done = train(tmp_path, then, "--resume", "--workspace", str(out))
    assert done["resumed_from"] == position.epoch
    assert_close(Path(str(whole["last"])), Path(str(done["last"])))


@pytest.mark.slow
def test_what_one_process_meets_stops_all_with_one_message(tmp_path: Path) -> None:
    """A damaged image is in one process's share."""
    for split, count in (("train", 16), ("val", 2)):
        for number, name in enumerate(("blue", "green")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((32, 32, 3), 40 * number + index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    broken = tmp_path / "images" / "train" / "blue" / "3.png"
    broken.write_bytes(b"no image")
    images = "{name: images, image_size: 32, workers: 0, max_damaged: 0, source: " + str(tmp_path / "images") + "}"
    text = RECIPE.replace("batch_size: 512", "batch_size: 32").replace("micro_batch: 128", "micro_batch: 16")
    lines = [f"data: {images}" if line.startswith("data:") else line for line in text.splitlines()]
    (tmp_path / "small.yaml").write_text("\n".join(lines))
    done = subprocess.run(
        command(tmp_path, 2, "--workspace", str(tmp_path / "out")),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=200,
    )
    assert done.returncode != 0
    assert "1 images cannot be read, 0 are skipped" in done.stderr
    assert str(broken) in done.stderr
    assert "gloo" not in done.stderr
    assert "RuntimeError" not in done.stderr
