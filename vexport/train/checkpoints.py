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
from vexport.workspace import hash_file, read_manifest, stage

with needs("train"):
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.plugins.io import TorchCheckpointIO


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Args:
        epoch: Completed epochs.
        steps: Steps of the optimiser that are done of the next one.
        run: The run's number, for its log files.
        images: How many training images there were; None where the file does not say.
        class_names: Of the data.
    """

    epoch: int = 0
    steps: int = 0
    run: int = 1
    images: int | None = None
    class_names: tuple[str, ...] = ()


def read_position(checkpoint: Path) -> Position:
    """Where the run stood that wrote a last checkpoint.

    The file itself is asked: its manifest is written first, and after a crash may tell of the next one.
    """
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    card = loaded["vexport"]
    return Position(
        int(loaded["epoch"]),
        int(card.get("steps", 0)),
        int(card.get("run", 1)),
        card.get("images"),
        tuple(card.get("class_names", ())),
    )


def read_recipe(checkpoint: Path) -> dict[str, Any]:
    """The recipe that a checkpoint was trained by, as plain types."""
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return dict(loaded["vexport"].get("recipe", {}))


def same_recipe(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests are for the same weights, as far as the recipe says."""
    return all(one.get(key) == other.get(key) for key in ("recipe", "recipe_hash"))


def find_whole(path: Path) -> Manifest | None:
    """The manifest of a checkpoint that is whole: that of the file, or of the next one where a crash came between."""
    manifest = read_manifest(path)
    if manifest is None or manifest.kind != Checkpoint.kind or not path.is_file():
        return None
    return manifest if hash_file(path) in (manifest.sha256, manifest.replaces) else None


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
        every_steps: Write the last one within an epoch too, after so many steps.
        force: Replace files that vexport did not write.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        options: Mapping[str, Any],
        facts: Mapping[str, Any],
        versions: Mapping[str, str],
        every_steps: int | None = None,
        force: bool = False,
    ) -> None:
        self._targets, self._options, self._facts = targets, dict(options), dict(facts)
        self._versions, self._every_steps, self._force = dict(versions), every_steps, force
        self._best_key: list[float] | None = None
        self.best: Checkpoint | None = None
        self.last: Checkpoint | None = None
        self.wrote = False

    def state_dict(self) -> dict[str, Any]:
        return {"best_key": self._best_key}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far, if its file is still there."""
        manifest = find_whole(self._targets.best)
        if manifest is not None and same_recipe(manifest.options, self._options):
            self.best, self._best_key = Checkpoint(self._targets.best, manifest), state_dict["best_key"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, TrainingModule)
        due = self._every_steps is not None and trainer.global_step % self._every_steps == 0
        # The last step of an epoch is followed by the epoch's own checkpoint.
        if due and pl_module.ends_step(batch_idx) and batch_idx + 1 < trainer.num_training_batches:
            pl_module.require_sound(batch)  # a checkpoint of weights that have broken is none
            self._write(self._targets.last, trainer, pl_module, (batch_idx + 1) // pl_module.layout.accumulate)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.finished_epochs = trainer.current_epoch + 1
        score = pl_module.scores["ema"]
        key = [float(score.correct), -score.loss]
        if pl_module.slope == 1.0 and (self._best_key is None or key > self._best_key):
            self._best_key = key
            self.best = self._write(self._targets.best, trainer, pl_module, 0, weights_only=True)
        self.last = self._write(self._targets.last, trainer, pl_module, 0)

    def _write(
        self, target: Path, trainer: Trainer, module: TrainingModule, steps: int, *, weights_only: bool = False
    ) -> Checkpoint | None:
        """Every process takes part, the first one writes."""
        module.finished_steps = steps
        if not trainer.is_global_zero:
            trainer.save_checkpoint(target, weights_only=weights_only)
            self.wrote = True
            return None
        facts = {**self._facts, "slope": module.slope, "epoch": module.finished_epochs, **_scores(module)}
        if steps:
            facts["steps"] = steps

        def describe(sha256: str, size_bytes: int) -> Manifest:
            return Manifest(
                Checkpoint.kind, sha256, size_bytes, None, options=self._options, facts=facts, versions=self._versions
            )

        with stage(target, force=self._force) as staging:
            trainer.save_checkpoint(staging.path, weights_only=weights_only)
            self.wrote = True
            return staging.publish(Checkpoint, describe)


def _scores(module: TrainingModule) -> dict[str, Any]:
    """Right answers on held-out images, as of the last epoch's end."""
    if not module.scores:
        return {}
    ema, model = module.scores["ema"], module.scores["model"]
    return {
        "top1": ema.top1,
        "correct": ema.correct,
        "total": ema.total,
        "top1_model": model.top1,
        "correct_model": model.correct,
    }
