"""Deep training's schedule as a Lightning callback: it moves the slope of the network and of its moving average."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vexport.model.slope import slope_at
from vexport.recipe import DeepTrainingSection
from vexport.train.module import DeepTraining


class SlopeSchedule(Callback):
    """Sets the slope before every step, or before every epoch.

    It follows from the step alone, so a resumed run goes on with the right slope.

    Args:
        section: The ramp.
        steps_per_epoch: Steps of one pass.
    """

    def __init__(self, section: DeepTrainingSection, steps_per_epoch: int) -> None:
        self._section, self._steps = section, steps_per_epoch

    def slope(self, step: int) -> float:
        """Slope before a step, counted from 0 over all epochs."""
        progress = step / self._steps if self._section.per == "step" else float(step // self._steps)
        return slope_at(progress, self._section.decay_epochs, self._section.decay)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        assert isinstance(pl_module, DeepTraining)
        pl_module.set_slope(self.slope(trainer.global_step))
