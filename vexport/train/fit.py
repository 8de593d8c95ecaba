"""From a recipe to its trained checkpoints."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from vexport.artifacts import Checkpoint
from vexport.deps import needs
from vexport.errors import RecipeError, TrainingError
from vexport.model.build import build_network
from vexport.model.variants import NetworkSpec, make_spec
from vexport.recipe import Recipe
from vexport.train.checkpoints import PlainCheckpointIO, Targets, WriteCheckpoints
from vexport.train.data import Data, RandomAffine, load_data, make_loaders
from vexport.train.module import SmoothedBCE, TrainingModule
from vexport.train.slope import SlopeSchedule
from vexport.workspace import stage

with needs("train"):
    from lightning.pytorch import Callback, Trainer

Progress = Callable[[int, int, Mapping[str, float]], None]
CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@dataclass(frozen=True)
class Trained:
    """The checkpoints of a finished run: the best and the last."""

    best: Checkpoint
    last: Checkpoint


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    progress: Progress | None = None,
    resume: Path | None = None,
    force: bool = False,
) -> Trained:
    """Train a recipe's network; the same recipe gives the same weights on one machine.

    Args:
        recipe: What to train.
        folder: Where `<recipe>.best.ckpt` and `<recipe>.last.ckpt` go, each with its manifest.
        options: The request, for the manifests.
        versions: Of the libraries that shape the weights, likewise.
        progress: Called with the epochs done, all epochs, and figures of the last epoch (none before the first).
        resume: A last checkpoint of the same recipe to go on from.
        force: Replace files that vexport did not write.

    Raises:
        RecipeError: the recipe does not fit its data or this machine.
        InputError: the recipe's model is unknown, or its images are too small for it.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
        WorkspaceError: a file is in the way, the disk is full or the folder may not be written.
        KeyboardInterrupt: the user stopped it; the last finished epoch is kept.
    """
    targets = Targets.of(recipe.name, folder)
    for target in (targets.best, targets.last):
        with stage(target, force=force):
            pass  # what would refuse the files after the first epoch refuses them now
    data = load_data(recipe.data)
    train_loader, held_out_loader = make_loaders(data, recipe.batch_size, recipe.seed)
    spec = _spec(recipe, data)
    writer = WriteCheckpoints(targets, options=options, facts=_facts(spec, data), versions=versions, force=force)
    ramp = recipe.deep_training
    callbacks = [SlopeSchedule(ramp.decay_epochs, decay=ramp.decay, per=ramp.per), writer]
    if progress is not None:
        callbacks.append(_Report(progress))
    with _quiet(), _interrupts_pass(), torch.random.fork_rng(devices=[0] if torch.cuda.is_available() else []):
        torch.manual_seed(recipe.seed)
        module = _module(recipe, spec, data, versions)
        trainer = _trainer(recipe, callbacks)
        try:
            trainer.fit(module, train_loader, held_out_loader, ckpt_path=resume)
        except TrainingError as error:
            error.details = (*error.details, _kept(writer, targets))
            raise
    assert writer.best is not None, "load_recipe leaves an epoch at slope 1"
    assert writer.last is not None
    return Trained(writer.best, writer.last)


def _spec(recipe: Recipe, data: Data) -> NetworkSpec:
    network = recipe.network
    channels, height, width = data.preprocessing.input_size
    spec = make_spec(
        network.model,
        width=network.width,
        act_num=network.act_num,
        num_classes=len(data.class_names),
        in_chans=channels,
    )
    with torch.device("meta"):
        build_network(spec).feature_sizes(height, width)  # refuses images that are too small
    return spec


def _facts(spec: NetworkSpec, data: Data) -> dict[str, Any]:
    return {
        "model": spec.variant,
        "form": "training",
        "network": spec.to_json(),
        "preprocessing": data.preprocessing.to_json(),
        "classes": list(data.class_names),
    }


def _module(recipe: Recipe, spec: NetworkSpec, data: Data, versions: Mapping[str, str]) -> TrainingModule:
    def make_optimizer(network: nn.Module) -> Optimizer:
        chosen = recipe.optimizer
        made: Optimizer = create_optimizer_v2(
            network, opt=chosen.name, lr=chosen.lr, weight_decay=chosen.weight_decay, momentum=0.9
        )
        return made

    smoothing = recipe.loss.label_smoothing
    moves, preprocessing = recipe.data.augment, data.preprocessing
    return TrainingModule(
        build_network(spec, drop_rate=recipe.network.drop_rate),
        loss=SmoothedBCE(smoothing) if recipe.loss.name == "bce" else nn.CrossEntropyLoss(label_smoothing=smoothing),
        make_optimizer=make_optimizer,
        augment=RandomAffine(
            rotate_deg=moves.rotate_deg,
            scale=moves.scale,
            shift=moves.shift,
            fill=-preprocessing.mean[0] / preprocessing.std[0],
        ),
        ema_decay=recipe.ema.decay,
        ema_warmup=recipe.ema.warmup,
        warmup_epochs=recipe.schedule.warmup_epochs,
        min_lr=recipe.schedule.min_lr,
        seed=recipe.seed,
        card={
            "network": spec.to_json(),
            "preprocessing": preprocessing.to_json(),
            "class_names": list(data.class_names),
            "recipe": recipe.to_json(),
            "recipe_name": recipe.name,
            "versions": dict(versions),
        },
    )


def _trainer(recipe: Recipe, callbacks: list[Callback]) -> Trainer:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda was asked for, and there is none", hint="--set device=auto")
    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    return Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=1,
        max_epochs=recipe.epochs,
        callbacks=callbacks,
        plugins=[PlainCheckpointIO()],
        # Everything that would write into the user's folder or to the terminal.
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _kept(writer: WriteCheckpoints, targets: Targets) -> str:
    if writer.last is not None:
        return f"{targets.last} holds the state after epoch {writer.last.facts['epoch']}"
    return "no epoch was finished, so there is no checkpoint of this run"


class _Report(Callback):
    """Tells the caller how far training is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._progress(trainer.current_epoch, trainer.max_epochs or 0, {})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        figures = {
            "loss": pl_module.mean_loss,
            "slope": pl_module.slope,
            "top1": pl_module.scores["ema"].top1,
            "top1_model": pl_module.scores["model"].top1,
        }
        self._progress(trainer.current_epoch + 1, trainer.max_epochs or 0, figures)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's tips and its advice on workers; errors still come through."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interrupts_pass() -> Iterator[None]:
    """Let KeyboardInterrupt through, where Lightning exits with code 1 and ignores further SIGINTs.

    Raises:
        SystemExit: on SIGTERM, with the code that says so; Lightning's own has none, and would pass for success.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        if error.code is None:
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
