"""The LightningModule: one network, its moving average, loss, optimiser and schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor

from vexport.errors import TrainingError
from vexport.model.build import build_network
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import NetworkSpec
from vexport.recipe import Recipe


class DeepTraining(LightningModule):
    """Trains a VanillaNet's training form.

    Args:
        recipe: Settings.
        spec: The network.
        steps: Optimiser steps of the whole run.
        extras: Written into every checkpoint beside the weights, under `vexport`.
    """

    def __init__(self, recipe: Recipe, spec: NetworkSpec, steps: int, extras: dict[str, Any]) -> None:
        super().__init__()
        self.recipe, self.steps, self.extras = recipe, steps, extras
        # Lightning keeps the mode that a module comes in.
        self.network = build_network(spec, drop_rate=recipe.drop_rate).train()
        self.ema = ModelEmaV3(self.network, decay=recipe.ema_decay, use_warmup=True)
        self.correct = {"model": 0, "ema": 0}
        self.last_loss = math.nan

    @property
    def ema_network(self) -> VanillaNet:
        """The moving average."""
        network = self.ema.module
        assert isinstance(network, VanillaNet)
        return network

    def set_slope(self, slope: float) -> None:
        """Set the slope of both networks: a moving average of slopes would never reach 1."""
        self.network.set_slope(slope)
        self.ema_network.set_slope(slope)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch, a scalar.

        Raises:
            TrainingError: it is not finite.
        """
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels, label_smoothing=self.recipe.label_smoothing)
        self.last_loss = float(loss.detach())
        if not math.isfinite(self.last_loss):
            raise TrainingError(
                f"the loss is {self.last_loss} at step {self.global_step} (epoch {self.current_epoch})",
                hint="lower optimizer.lr; the last checkpoint that was written is kept",
            )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning after the optimiser's step."""
        self.ema.update(self.network, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Called by Lightning."""
        self.correct = {"model": 0, "ema": 0}

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count right answers of both networks."""
        images, labels = batch
        for name, network in (("model", self.network), ("ema", self.ema_network)):
            self.correct[name] += int((network(images).argmax(dim=1) == labels).sum())

    def configure_optimizers(self) -> Any:
        """timm's optimiser with no decay on vectors, linear warm-up and a cosine to 1 % per step."""
        section = self.recipe.optimizer
        optimizer = create_optimizer_v2(
            self.network, opt=section.name, lr=section.lr, weight_decay=section.weight_decay, filter_bias_and_bn=True
        )
        warmup = max(1, section.warmup_epochs * self.steps // self.recipe.epochs)

        def factor(step: int) -> float:
            if section.warmup_epochs and step < warmup:
                return (step + 1) / warmup
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what vexport reads to Lightning's checkpoint; tensors share storage, so nothing is stored twice."""
        checkpoint["epoch"] = self.current_epoch + 1
        checkpoint["model"] = self.network.state_dict()
        checkpoint["model_ema"] = self.ema_network.state_dict()
        checkpoint["vexport"] = {
            **self.extras,
            "format": 1,
            "slope": float(self.network.slope),
            "slope_ema": float(self.ema_network.slope),
            "correct": dict(self.correct),
        }
