"""Checkpoints while training goes on: the last after each epoch, the best once the network can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vexport.artifacts import Checkpoint, Manifest
from vexport.deps import needs
from vexport.train.module import TrainingModule
from vexport.workspace import load_artifact, stage

with needs("train"):
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.plugins.io import TorchCheckpointIO


@dataclass(frozen=True)
class Targets:
    """The two files that a run writes."""

    best: Path
    last: Path

    @classmethod
    def of(cls, name: str, folder: Path) -> Targets:
        """Those of the recipe `name` in `folder`."""
        return cls(best=folder / f"{name}.best.ckpt", last=folder / f"{name}.last.ckpt")


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes straight to the file, not through a copy in memory and in /tmp, and never unpickles code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded


class WriteCheckpoints(Callback):
    """Publishes both files atomically, each with its manifest.

    The best is the average with most right answers on held-out images (of equals, the one with the smaller loss) among
    epochs that end at slope 1, since only then can the network be merged. It carries weights and facts; the last
    carries the optimiser and the loops too, so that training can resume from it.

    Args:
        targets: Where.
        options: The request, for the manifests.
        facts: What is true of both files (network, form, preprocessing ...).
        versions: Likewise.
        force: Replace files that vexport did not write.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        options: Mapping[str, Any],
        facts: Mapping[str, Any],
        versions: Mapping[str, str],
        force: bool = False,
    ) -> None:
        self._targets, self._options, self._facts = targets, dict(options), dict(facts)
        self._versions, self._force = dict(versions), force
        self._best_key: list[float] | None = None
        self.best: Checkpoint | None = None
        self.last: Checkpoint | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best_key": self._best_key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far, if its file is still there."""
        best = load_artifact(self._targets.best)
        if isinstance(best, Checkpoint) and best.manifest.options == self._options:
            self.best, self._best_key = best, state_dict["best_key"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        score = pl_module.scores["ema"]
        key = [float(score.correct), -score.loss]
        if pl_module.slope == 1.0 and (self._best_key is None or key > self._best_key):
            self._best_key = key
            self.best = self._publish(self._targets.best, trainer, pl_module, weights_only=True)
        self.last = self._publish(self._targets.last, trainer, pl_module, weights_only=False)

    def _publish(self, target: Path, trainer: Trainer, module: TrainingModule, *, weights_only: bool) -> Checkpoint:
        ema, model = module.scores["ema"], module.scores["model"]
        facts = {
            **self._facts,
            "slope": module.slope,
            "epoch": trainer.current_epoch + 1,
            "top1": ema.top1,
            "correct": ema.correct,
            "total": ema.total,
            "top1_model": model.top1,
            "correct_model": model.correct,
        }

        def describe(sha256: str, size_bytes: int) -> Manifest:
            return Manifest(
                Checkpoint.kind, sha256, size_bytes, None, options=self._options, facts=facts, versions=self._versions
            )

        with stage(target, force=self._force) as staging:
            trainer.save_checkpoint(staging.path, weights_only=weights_only)
            return staging.publish(Checkpoint, describe)
