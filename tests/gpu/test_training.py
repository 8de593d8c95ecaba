"""Training on a GPU: mixed precision, channels-last, compilation, resuming, several devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from vexport.errors import TrainingError  # noqa: E402
from vexport.pipeline.fuse import fuse_checkpoint  # noqa: E402
from vexport.pipeline.train import train_recipe  # noqa: E402
from vexport.train.module import TrainingModule  # noqa: E402
from vexport.workspace import Workspace  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

RECIPE = """\
epochs: 14
batch_size: 128
network: {model: vanillanet_5, width: 0.0625}
deep_training: {decay_epochs: 5, per: step}
data: {name: digits, augment: {rotate_deg: 10, scale: 0.1, shift: 0.06}}
optimizer: {name: adamw, lr: 3.0e-3, weight_decay: 0.05}
schedule: {warmup_epochs: 1}
ema: {decay: 0.9}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("compute.precision=fp16", "compute.channels_last=true"),
        ("compute.precision=bf16",),
        ("compute.compile=true",),
        ("compute.micro_batch=32",),
    ],
    ids=["fp32", "fp16-channels-last", "bf16", "compiled", "accumulated"],
)
def test_it_learns_and_merges(recipe: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    workspace = Workspace(tmp_path / "out")
    result = train_recipe(recipe, workspace=workspace, overrides=[*overrides, "compute.devices=1"])
    assert result is not None
    assert result.top1 > 80
    assert fuse_checkpoint(result.best.path, workspace=workspace).artifact.path.is_file()


def test_a_stopped_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Kernels on a GPU may add in another order, so the weights are close and not equal."""
    workspace, straight = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")

    def stop(done: int, _: int, figures: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    one = ["compute.devices=1"]
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, workspace=workspace, overrides=one, on_progress=stop)
    resumed = train_recipe(recipe, workspace=workspace, overrides=one, resume=True)
    whole = train_recipe(recipe, workspace=straight, overrides=one)
    assert resumed is not None
    assert whole is not None
    assert resumed.resumed_from == 3
    assert abs(resumed.top1 - whole.top1) < 2


def test_a_loss_that_is_not_finite_is_named_by_its_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is asked every so often; the step that is named is the one that broke."""
    honest = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        loss = honest(self, batch, batch_idx)
        if self.global_step == 13:
            self.network.stem1[0].weight.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    with pytest.raises(TrainingError, match="at step 14 "):
        train_recipe(recipe, workspace=Workspace(tmp_path / "out"), overrides=["compute.devices=1"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
@pytest.mark.parametrize("sync", ["true", "false"])
def test_two_devices(recipe: Path, tmp_path: Path, sync: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vexport"]
    more = ["--set", f"compute.sync_bn={sync}", "--workspace", str(tmp_path / "out"), "--json"]
    done = subprocess.run([*command, "train", str(recipe), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"] > 80
