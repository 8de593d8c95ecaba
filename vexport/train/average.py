"""The moving average of the weights, updated after each step of the optimiser."""

from __future__ import annotations

from typing import Any

from vexport.deps import needs
from vexport.train.module import TrainingModule

with needs("train"):
    from lightning.pytorch import Callback, Trainer


class AverageWeights(Callback):
    """Lets the average follow the network. It stands before whatever writes checkpoints."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, TrainingModule)
        if pl_module.ends_step(batch_idx):
            # Parameters and BatchNorm's running statistics are averaged; whole numbers (num_batches_tracked) are
            # copied.
            pl_module.ema.update(pl_module.network, step=trainer.global_step)
