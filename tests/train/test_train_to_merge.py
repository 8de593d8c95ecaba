"""What training leaves can be merged from slope 1 on, and only from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from vexport.errors import FusionError, RecipeError
from vexport.model.checkpoint import load_checkpoint
from vexport.pipeline.check import check_parity
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.train import train_recipe
from vexport.workspace import Workspace, read_manifest


def stop_after(epochs: int) -> object:
    def progress(done: int, _: int, __: Mapping[str, float]) -> None:
        if done == epochs:
            raise KeyboardInterrupt

    return progress


def test_the_best_is_taken_and_merged(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "out")
    trained = train_recipe(tiny, workspace=workspace)
    fused = fuse_checkpoint(workspace=workspace)
    assert fused.artifact.path.name == "tiny.best.deploy.safetensors"
    assert fused.artifact.manifest.parent == trained.best.as_parent()
    assert fused.artifact.facts["slope"] == "1"
    assert fused.artifact.facts["weights"] == "ema"
    assert fused.notes == ()
    assert fused.artifact.facts["class_names"] == [str(digit) for digit in range(10)]
    assert check_parity(trained.best.path, fused.artifact.path).parity.passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.yaml"], "no lightning_logs, nothing else"


def test_before_slope_1_there_is_no_best_and_no_merge(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, on_progress=stop_after(1))  # type: ignore[arg-type]
    last = workspace.root / "tiny.last.ckpt"
    names = sorted(path.name for path in workspace.root.iterdir())
    assert names == ["tiny.last.ckpt", "tiny.last.ckpt.json", "tiny.log"]
    manifest = read_manifest(last)
    assert manifest is not None
    slopes = {which: load_checkpoint(last, weights_from=which).slope for which in ("ema", "model")}
    assert slopes["ema"] == slopes["model"] == manifest.facts["slope"], "the average's slope is never averaged"
    assert 0 < manifest.facts["slope"] < 1
    with pytest.raises(FusionError, match="the activation slope is 0"):
        fuse_checkpoint(workspace=workspace)
    assert not list(workspace.root.glob("*.deploy.*"))


def test_a_run_that_never_reaches_slope_1_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        train_recipe(tiny, workspace=Workspace(tmp_path / "out"), overrides=["deep_training.decay_epochs=4"])
    assert "leaves no epoch of 4 at slope 1" in caught.value.details[0]
    assert not (tmp_path / "out").exists()
