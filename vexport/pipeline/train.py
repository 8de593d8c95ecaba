"""Recipe to checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Checkpoint, Manifest
from vexport.deps import needs, tool_versions
from vexport.errors import TrainingError
from vexport.workspace import Workspace, require_clear, stage, up_to_date

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vexport.recipe import Recipe

LIBRARIES = ("torch", "lightning", "timm", "scikit-learn")


@dataclass(frozen=True)
class TrainResult:
    """What training left.

    Args:
        best: The checkpoint whose moving average answers best, of those with slope 1.
        last: The last one.
        up_to_date: Whether they were there already.
        seconds: Time taken.
    """

    best: Checkpoint
    last: Checkpoint
    up_to_date: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "best": {"path": str(self.best.path), "manifest": self.best.manifest.to_json()},
            "last": {"path": str(self.last.path), "manifest": self.last.manifest.to_json()},
            "up_to_date": self.up_to_date,
            "seconds": self.seconds,
        }


def train_recipe(
    name_or_path: str,
    *,
    workspace: Workspace,
    overrides: Sequence[str] = (),
    force: bool = False,
    on_epoch: Callable[[int, int, dict[str, float]], None] = lambda _epoch, _epochs, _metrics: None,
) -> TrainResult:
    """Train by a recipe; writes `<recipe>.last.ckpt` and, once the slope is 1, `<recipe>.best.ckpt`.

    Args:
        name_or_path: A shipped recipe's name, or a path.
        workspace: Where the checkpoints go.
        overrides: `optimizer.lr=1e-3` and the like.
        force: Overwrite files that vexport did not write.
        on_epoch: Told epochs done, epochs in all, and figures.

    Raises:
        RecipeError: the recipe has errors.
        MissingDependencyError: the extra `train` is not installed.
        TrainingError: the loss is not finite, or the slope never reached 1.
        WorkspaceError: a checkpoint cannot be written.
    """
    from vexport.model.variants import make_spec
    from vexport.recipe import load_recipe, recipe_hash, recipe_name

    recipe, name = load_recipe(name_or_path, overrides), recipe_name(name_or_path)
    targets = {role: workspace.root / f"{name}.{role}.ckpt" for role in ("best", "last")}
    options, versions = {"recipe": recipe_hash(recipe)}, tool_versions(*LIBRARIES)
    done = _finished(recipe, targets, options, versions)
    if done is not None:
        return done
    for target in targets.values():
        require_clear(target, force=force)
    with needs("train"):
        from vexport.train.data import load_data
        from vexport.train.fit import fit

    data = load_data(recipe.data)
    spec = make_spec(
        recipe.model,
        width=recipe.width,
        act_num=recipe.act_num,
        num_classes=len(data.class_names),
        in_chans=data.preprocessing.input_size[0],
    )
    written: dict[str, Checkpoint] = {}

    def save(role: str, trainer: Trainer, metrics: dict[str, float]) -> None:
        facts = {
            "model": recipe.model,
            "form": "training",
            "role": role,
            "network": spec.to_json(),
            "preprocessing": data.preprocessing.to_json(),
            "class_names": list(data.class_names),
            "recipe": name,
            "epochs": recipe.epochs,
            **{key: value if key in ("loss", "slope") else int(value) for key, value in metrics.items()},
        }
        with stage(targets[role], force=force) as staging:
            trainer.save_checkpoint(staging.path)
            written[role] = staging.publish(
                Checkpoint,
                lambda sha256, size: Manifest("checkpoint", sha256, size, None, options, facts, versions=versions),
            )

    started = time.perf_counter()
    fit(recipe, name, spec, data, save, on_epoch)
    if "best" not in written:
        raise TrainingError(
            "training ended before the slope reached 1: no checkpoint can be merged",
            hint="let deep_training.decay_epochs end before epochs",
        )
    return TrainResult(written["best"], written["last"], False, time.perf_counter() - started)


def _finished(
    recipe: Recipe, targets: dict[str, Path], options: dict[str, str], versions: dict[str, str]
) -> TrainResult | None:
    """The checkpoints of the same recipe, if it ran to its end."""
    best, last = (
        up_to_date(Checkpoint, targets[role], parent=None, options=options, versions=versions)
        for role in ("best", "last")
    )
    if best is None or last is None or last.facts["epoch"] != recipe.epochs:
        return None
    return TrainResult(best, last, True, 0.0)
