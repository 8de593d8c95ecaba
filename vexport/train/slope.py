"""Deep training's schedule: sets the slope of A' before each step."""

from __future__ import annotations

from typing import Any, Literal

from vexport.deps import needs
from vexport.model.slope import Decay, slope_at
from vexport.train.module import TrainingModule

with needs("train"):
    from lightning.pytorch import Callback, Trainer


class SlopeSchedule(Callback):
    """Drives the slope from 0 to 1 over `decay_epochs`, then holds it.

    The slope follows from the epoch and the step alone: a resumed run has the right one before its first step.

    Args:
        decay_epochs: Length of the ramp; 0 for none.
        decay: Its shape.
        per: Whether it moves with each step or with each epoch.
    """

    def __init__(
        self, decay_epochs: float, *, decay: Decay = "linear", per: Literal["step", "epoch"] = "epoch"
    ) -> None:
        self.decay_epochs, self.decay, self.per = decay_epochs, decay, per

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, TrainingModule)
        # By steps of the optimiser: the micro-batches of one step see one network, whoever computes them.
        per_step = pl_module.layout.accumulate
        steps = max(1, int(trainer.num_training_batches) // per_step)
        within = batch_idx // per_step / steps if self.per == "step" else 0.0
        pl_module.set_slope(slope_at(trainer.current_epoch + within, self.decay_epochs, self.decay))
