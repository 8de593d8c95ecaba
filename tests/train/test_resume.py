"""Stopped anywhere and gone on with: the same weights, bit for bit, as of a run that was never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vexport.errors import InputError, RecipeError, TrainingError
from vexport.pipeline.train import train_recipe
from vexport.train.checkpoints import find_whole, read_position
from vexport.train.log import read_log
from vexport.train.module import TrainingModule
from vexport.workspace import Workspace, load_artifact, manifest_path

# Mixup draws from NumPy, the crops from Python, erasing and dropout from torch.
PICTURES = """\
epochs: 4
batch_size: 16
device: cpu
network: {model: vanillanet_5, width: 0.015625, act_num: 1, drop_rate: 0.2, stem_stride: 1}
deep_training: {decay_epochs: 2, per: step}
data:
  name: images
  image_size: 32
  workers: 0
  augment: {auto_augment: rand-m7-mstd0.5-inc1, random_erasing: 0.5, mixup: 0.4, cutmix: 1.0}
optimizer: {name: lamb, lr: 3.0e-3, weight_decay: 0.05, clip_norm: 1.0}
schedule: {warmup_epochs: 1}
ema: {decay: 0.9}
compute: {micro_batch: 4}
checkpoint: {every_steps: 1}
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise around a colour, and a recipe for them."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for number, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    (folder / "pictures.yaml").write_text(PICTURES + "name: pictures\n")
    return folder


def states(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: both kinds of weights and what the optimiser remembers."""
    content = torch.load(path, weights_only=True)
    tensors = {f"{key}.{name}": value for key in ("model", "model_ema") for name, value in content[key].items()}
    for number, state in content["optimizer_states"][0]["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors


def assert_same(one: Path, other: Path) -> None:
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class Stop:
    """Ctrl+C in the middle of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        honest = TrainingModule.training_step
        self.armed = True

        def training_step(module, batch, batch_idx):
            if self.armed and module.global_step == step:
                raise KeyboardInterrupt
            return honest(module, batch, batch_idx)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_stopped_within_an_epoch(pictures: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """42 images: two steps of 16 an epoch, each of four micro-batches."""
    source = [f"data.source={pictures}"]
    straight = train_recipe(pictures / "pictures.yaml", workspace=Workspace(tmp_path / "a"), overrides=source)
    workspace = Workspace(tmp_path / "b")
    stop = Stop(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=source)
    stop.armed = False
    kept = workspace.root / "pictures.last.ckpt"
    position = read_position(kept)
    assert (position.epoch, position.steps) == (step // 2, step % 2)
    resumed = train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=source, resume=True)
    assert straight is not None
    assert resumed is not None
    assert resumed.resumed_from == step // 2
    assert_same(resumed.last.path, straight.last.path)
    assert resumed.best.facts == straight.best.facts
    assert resumed.last.facts == straight.last.facts


def test_a_moved_start_is_a_version_of_its_own_in_the_log(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, source = Workspace(tmp_path), [f"data.source={pictures}"]
    stop = Stop(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=source)
    stop.armed = False
    resumed = train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=source, resume=True)
    assert resumed is not None
    assert sorted(path.name for path in (tmp_path / "pictures.log" / "run-1").iterdir()) == [
        "curves.png",
        "version_0",
        "version_1",
    ]
    anew = train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=[*source, "seed=1"], force=True)
    assert anew is not None
    assert anew.log == tmp_path / "pictures.log" / "run-2"


def test_weights_that_have_broken_are_not_written_within_an_epoch(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is of the weights before it: finite, while the weights after it are not."""

    def break_at(module: TrainingModule, optimizer: object) -> None:
        if module.global_step == 1:
            module.network.stem1[0].weight.data.fill_(1e30)

    monkeypatch.setattr(TrainingModule, "on_before_zero_grad", break_at)
    workspace = Workspace(tmp_path)
    with pytest.raises(TrainingError) as caught:
        train_recipe(pictures / "pictures.yaml", workspace=workspace, overrides=[f"data.source={pictures}"])
    assert "not finite" in caught.value.message or "loss is" in caught.value.message
    kept = workspace.root / "pictures.last.ckpt"
    position = read_position(kept)
    assert (position.epoch, position.steps) in ((0, 1), (1, 0))
    assert str(kept) in caught.value.details[-1]
    assert all(tensor.abs().max() < 1e6 for tensor in states(kept).values() if tensor.is_floating_point())


def test_moved_images_are_the_same_images_and_others_are_not(pictures: Path, tmp_path: Path) -> None:
    def stop(done: int, _: int, figures: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    workspace, moved = Workspace(tmp_path / "out"), tmp_path / "moved"
    shutil.copytree(pictures, moved)
    recipe = pictures / "pictures.yaml"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, workspace=workspace, overrides=[f"data.source={pictures}"], on_progress=stop)
    (moved / "train" / "red" / "0.png").rename(moved / "0.png")
    with pytest.raises(RecipeError, match="began with 42 training images of 3 classes; there are 41 of 3 now"):
        train_recipe(recipe, workspace=workspace, overrides=[f"data.source={moved}"], resume=True)
    (moved / "0.png").rename(moved / "train" / "red" / "0.png")
    more = [f"data.source={moved}", "data.max_damaged=3", "checkpoint.every_steps=2"]
    resumed = train_recipe(recipe, workspace=workspace, overrides=more, resume=True)
    straight = train_recipe(recipe, workspace=Workspace(tmp_path / "b"), overrides=[f"data.source={pictures}"])
    assert resumed is not None
    assert straight is not None
    assert_same(resumed.last.path, straight.last.path)
    assert resumed.best.facts == straight.best.facts
    again = train_recipe(recipe, workspace=workspace, overrides=more)
    assert again is not None
    assert again.up_to_date
    with pytest.raises(InputError, match="it was trained on"):
        train_recipe(recipe, workspace=workspace, overrides=[f"data.source={pictures}"])


def test_without_resume_an_unfinished_run_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")

    def stop(done: int, _: int, figures: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, on_progress=stop)
    kept = (workspace.root / "tiny.last.ckpt").read_bytes()
    with pytest.raises(InputError, match=r"unfinished run of this recipe \(epoch 1 of 4\)") as caught:
        train_recipe(tiny, workspace=workspace)
    assert "--resume" in caught.value.hint
    for resume in (False, True):
        with pytest.raises(InputError, match="unfinished run, after 1 epochs, of another recipe") as caught:
            train_recipe(tiny, workspace=workspace, overrides=["optimizer.lr=0.5"], resume=resume)
        assert caught.value.details == ("changed: optimizer.lr: 0.003 then, 0.5 now",)
    assert (workspace.root / "tiny.last.ckpt").read_bytes() == kept
    anew = train_recipe(tiny, workspace=workspace, overrides=["optimizer.lr=0.5"], force=True)
    assert anew is not None
    assert anew.resumed_from is None


def test_resume_without_a_run_starts_anew_and_says_so(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    result = train_recipe(tiny, workspace=Workspace(tmp_path / "out"), resume=True, tell=told.append)
    assert result is not None
    assert result.resumed_from is None
    assert "starts anew" in told[0]


def test_other_versions_are_told(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")

    def stop(done: int, _: int, figures: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, on_progress=stop)
    beside = manifest_path(workspace.root / "tiny.last.ckpt")
    facts = json.loads(beside.read_text())
    facts["versions"]["timm"] = "0.9"
    beside.write_text(json.dumps(facts))
    told: list[str] = []
    result = train_recipe(tiny, workspace=workspace, resume=True, tell=told.append)
    assert result is not None
    assert result.resumed_from == 2
    assert told[0].startswith("note: timm (0.9 then) changed since")


def test_a_crash_between_manifest_and_file_costs_nothing(tiny: Path, tmp_path: Path) -> None:
    """The manifest moves first. It knows the hash of the file that it replaces, so that file is still the run's."""
    workspace = Workspace(tmp_path / "out")
    last = workspace.root / "tiny.last.ckpt"
    before: list[bytes] = []

    def stop(done: int, _: int, figures: object) -> None:
        if done == 2:
            before.append(last.read_bytes())
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, on_progress=stop)
    last.write_bytes(before[0])
    assert load_artifact(last) is None
    assert find_whole(last) is not None
    resumed = train_recipe(tiny, workspace=workspace, resume=True)
    straight = train_recipe(tiny, workspace=Workspace(tmp_path / "straight"))
    assert resumed is not None
    assert straight is not None
    assert resumed.resumed_from == 2
    assert_same(resumed.last.path, straight.last.path)
    last.write_bytes(b"neither")
    assert find_whole(last) is None


KILLS = 10


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL while images are read, steps are taken, checkpoints are written and published."""
    arguments = ["train", str(pictures / "pictures.yaml"), "--data", str(pictures), "--set", "epochs=24", "--resume"]
    command = [sys.executable, "-m", "vexport", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workspace, straight = tmp_path / "killed", tmp_path / "straight"
    last, draw = workspace / "pictures.last.ckpt", random.Random(0)

    def stamp() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    positions = []
    for _ in range(KILLS):
        before = stamp()
        process = subprocess.Popen(
            [*command, "--workspace", str(workspace)], stderr=subprocess.DEVNULL, env=environment
        )
        deadline = time.monotonic() + 120
        while stamp() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.25))
        process.kill()
        assert process.wait() == -9, "it was still training"
        assert find_whole(last) is not None, "the last checkpoint is whole, and known"
        position = read_position(last)
        positions.append((position.epoch, position.steps))
    assert positions == sorted(positions)
    assert len({steps for _, steps in positions}) > 1, "some kills fell within an epoch"
    for folder in (workspace, straight):
        done = subprocess.run(
            [*command, "--workspace", str(folder), "--json"], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
    assert_same(last, straight / "pictures.last.ckpt")
    logs = [read_log(folder / "pictures.log" / "run-1") for folder in (workspace, straight)]
    epochs = [[row["epoch"] for row in rows if "epoch" in row] for rows in logs]
    assert epochs == [list(range(1, 25))] * 2, "a kill costs no line of the log"
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in logs]
    assert losses[0] == losses[1]
    best = [load_artifact(folder / "pictures.best.ckpt") for folder in (workspace, straight)]
    assert best[0] is not None
    assert best[1] is not None
    assert best[0].facts == best[1].facts
    assert not [path for path in straight.iterdir() if path.name.startswith(".vexport-")]
