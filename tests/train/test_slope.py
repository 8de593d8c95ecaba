"""The slope of every step, by step and by epoch, in the network and in its average."""

from __future__ import annotations

from pathlib import Path

import pytest

from vexport.pipeline.train import train_recipe
from vexport.train.module import TrainingModule
from vexport.workspace import Workspace


def slopes_of(recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[float]:
    seen: list[float] = []
    honest = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        assert float(self.ema.module.slope) == self.slope
        assert self.network.training
        assert not self.ema.module.training
        seen.append(self.slope)
        return honest(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    train_recipe(recipe, workspace=Workspace(folder), overrides=overrides)
    return seen


def test_a_linear_ramp_per_step(tiny, tmp_path, monkeypatch):
    slopes = slopes_of(tiny, tmp_path / "out", monkeypatch)
    assert slopes == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_ramp_per_epoch(tiny, tmp_path, monkeypatch):
    slopes = slopes_of(tiny, tmp_path / "out", monkeypatch, "deep_training.per=epoch")
    assert slopes == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_a_cosine_ramp(tiny, tmp_path, monkeypatch):
    slopes = slopes_of(tiny, tmp_path / "out", monkeypatch, "deep_training.decay=cosine")
    assert slopes == pytest.approx([0.0, 0.1464466, 0.5, 0.8535534, 1.0, 1.0, 1.0, 1.0])
