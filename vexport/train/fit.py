"""Run a recipe: Lightning's trainer with our schedule, and checkpoints at the end of every epoch."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from vexport.deps import needs, tool_versions
from vexport.model.variants import NetworkSpec
from vexport.recipe import Recipe
from vexport.train.data import ImageData, held_out_loader, train_loader

with needs("train"):
    from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

    from vexport.train.module import DeepTraining
    from vexport.train.slope import SlopeSchedule

Metrics = dict[str, float]


class Save(Protocol):
    """Writes a checkpoint under a role, `best` or `last`."""

    def __call__(self, role: str, trainer: Trainer, metrics: Metrics) -> None: ...


class _EveryEpoch(Callback):
    """After each validation: report, keep the last, and keep the best once the slope is 1."""

    def __init__(self, held_out: int, save: Save, on_epoch: Callable[[int, int, Metrics], None]) -> None:
        self._held_out, self._save, self._on_epoch = held_out, save, on_epoch
        self._best = -1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning."""
        module = pl_module
        assert isinstance(module, DeepTraining)
        if trainer.sanity_checking:
            return
        metrics = {
            "loss": module.last_loss,
            "slope": float(module.network.slope),
            "correct": float(module.correct["model"]),
            "correct_ema": float(module.correct["ema"]),
            "held_out": float(self._held_out),
            "epoch": float(trainer.current_epoch + 1),
        }
        self._on_epoch(trainer.current_epoch + 1, trainer.max_epochs or 0, metrics)
        self._save("last", trainer, metrics)
        # Only a network of slope 1 can be merged, and its moving average is what is exported. The later of equals has
        # averaged longer.
        if metrics["slope"] == 1.0 and metrics["correct_ema"] >= self._best:
            self._best = metrics["correct_ema"]
            self._save("best", trainer, metrics)


def fit(
    recipe: Recipe,
    name: str,
    spec: NetworkSpec,
    data: ImageData,
    save: Save,
    on_epoch: Callable[[int, int, Metrics], None] = lambda _epoch, _epochs, _metrics: None,
) -> None:
    """Train.

    Args:
        recipe: Settings.
        name: Of the recipe.
        spec: The network.
        data: Images.
        save: Told to write the last checkpoint after every epoch, and the best.
        on_epoch: Told epochs done, epochs in all, and figures.

    Raises:
        TrainingError: the loss is not finite.
        KeyboardInterrupt: interrupted; what was saved stays.
    """
    extras: dict[str, Any] = {
        "network": spec.to_json(),
        "preprocessing": data.preprocessing.to_json(),
        "class_names": list(data.class_names),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_name": name,
        "versions": tool_versions("torch", "lightning", "timm"),
    }
    with _quiet():
        seed_everything(recipe.seed, workers=True, verbose=False)
        loader = train_loader(data, recipe.data, recipe.batch_size, recipe.seed)
        module = DeepTraining(recipe, spec, recipe.epochs * len(loader), extras)
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=recipe.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[
                SlopeSchedule(recipe.deep_training, len(loader)),
                _EveryEpoch(len(data.held_out_labels), save, on_epoch),
            ],
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loader, held_out_loader(data, 512))
        except SystemExit as error:
            # Lightning turns an interrupt into exit code 1 and leaves SIGINT ignored.
            if trainer.interrupted:
                signal.signal(signal.SIGINT, handler)
                raise KeyboardInterrupt from error
            raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
