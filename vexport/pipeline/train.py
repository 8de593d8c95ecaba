"""Recipe to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.artifacts import Checkpoint
from vexport.deps import tool_versions
from vexport.recipe import load_recipe, recipe_hash
from vexport.workspace import Workspace, up_to_date

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """What training a recipe gave.

    Args:
        best: The averaged weights with most right answers on held-out images, at slope 1.
        last: The state after the last epoch.
        top1: Of the best, averaged weights, on held-out images, per cent.
        seconds: What this call took.
        up_to_date: The same recipe, options and versions had been trained before: nothing was done.
        resumed_from: Epochs that an earlier, interrupted run had finished; 0 for none.
    """

    best: Checkpoint
    last: Checkpoint
    top1: float
    seconds: float
    up_to_date: bool
    resumed_from: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "best": str(self.best.path),
            "last": str(self.last.path),
            "model": self.best.model,
            "epoch": self.best.facts["epoch"],
            "epochs": self.last.facts["epoch"],
            "slope": self.best.facts["slope"],
            "top1": self.top1,
            "correct": self.best.facts["correct"],
            "total": self.best.facts["total"],
            "top1_model": self.best.facts["top1_model"],
            "seconds": round(self.seconds, 3),
            "up_to_date": self.up_to_date,
            "resumed_from": self.resumed_from,
        }


def train_recipe(
    recipe: str | Path,
    *,
    workspace: Workspace,
    overrides: Sequence[str] = (),
    force: bool = False,
    on_progress: Progress | None = None,
) -> TrainResult:
    """Train a recipe into the workspace; a run that was interrupted goes on after its last finished epoch.

    Args:
        recipe: A shipped recipe's name, or a path.
        workspace: Where `<recipe>.best.ckpt` and `<recipe>.last.ckpt` go.
        overrides: `section.field=value`, each over the recipe's own.
        force: Replace files that vexport did not write.
        on_progress: Called with the epochs done, all epochs, and the last epoch's loss, slope, top1 and top1_model.

    Raises:
        RecipeError: there is no such recipe, or it has errors.
        InputError: its model is unknown, or its images are too small for it.
        MissingDependencyError: the training extra is not installed.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
        WorkspaceError: a file is in the way, the disk is full or the folder may not be written.
    """
    started = time.perf_counter()
    plan = load_recipe(recipe, overrides)
    options = {"recipe": plan.name, "recipe_hash": recipe_hash(plan)}
    versions = tool_versions("torch", "timm", "lightning", "scikit-learn", "numpy")
    before = {
        which: up_to_date(
            Checkpoint,
            workspace.root / f"{plan.name}.{which}.ckpt",
            parent=None,
            options=options,
            versions=versions,
        )
        for which in ("best", "last")
    }
    best, last = before["best"], before["last"]
    done = int(last.facts["epoch"]) if last is not None else 0
    if best is not None and last is not None and done >= plan.epochs:
        return TrainResult(best, last, best.facts["top1"], time.perf_counter() - started, up_to_date=True)

    # Here, and not above: importing Lightning takes seconds that an up-to-date run need not wait for.
    from vexport.train.fit import fit

    resume = last.path if last is not None and 0 < done < plan.epochs else None
    trained = fit(
        plan,
        workspace.root,
        options=options,
        versions=versions,
        progress=on_progress,
        resume=resume,
        force=force,
    )
    return TrainResult(
        trained.best,
        trained.last,
        trained.best.facts["top1"],
        time.perf_counter() - started,
        up_to_date=False,
        resumed_from=done if resume else 0,
    )
