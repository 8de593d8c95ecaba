"""Two processes train what one trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def train(folder: Path, processes: int, *more: str) -> dict[str, object]:
    """Train in as many processes as said; what the first one prints."""
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launch, "-m", "vexport", "train", str(folder / "small.yaml"), "--json", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--workspace", str(folder / str(processes))], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


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
    weights = [torch.load(tmp_path / str(count) / "small.last.ckpt", weights_only=True)["model"] for count in (1, 2)]
    for name, tensor in weights[0].items():
        if "running" not in name:  # each process has its own, and the first one's are kept
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert results[1]["total"] == results[2]["total"] == 359, "each image is counted once"


@pytest.mark.slow
def test_two_processes_resume_and_fail_together(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    first = train(tmp_path, 2)
    assert train(tmp_path, 2)["up_to_date"] is True
    more = ["--set", "epochs=5", "--force"]
    longer = train(tmp_path, 2, *more)
    assert longer["epochs"] == 5
    assert first["best"] == longer["best"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vexport"]
    refused = subprocess.run(
        [*command, "train", str(tmp_path / "small.yaml"), "--set", "batch_size=511"], capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr.split("torch.distributed")[0]
