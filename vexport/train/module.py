"""One training step, the moving average of the weights, and the count of right answers on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vexport.deps import needs
from vexport.errors import TrainingError
from vexport.model.vanillanet import VanillaNet
from vexport.train.data import epoch_seed

with needs("train"):
    from lightning.pytorch import LightningModule

Batch = tuple[Tensor, Tensor]
DIVERGED = "lower optimizer.lr, or lengthen schedule.warmup_epochs"


@dataclass(frozen=True)
class Score:
    """Answers of one set of weights on the held-out images.

    Args:
        correct: Images whose first answer is right.
        total: Images.
        loss: Mean cross-entropy, which tells equal counts apart.
    """

    correct: int
    total: int
    loss: float

    @property
    def top1(self) -> float:
        """Share of right answers, per cent."""
        return 100.0 * self.correct / self.total


class SmoothedBCE(nn.Module):
    """Binary cross-entropy per class against smoothed one-hot targets.

    Args:
        smoothing: Share of the target that is spread over all classes.
    """

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes = logits.shape[1]
        target = F.one_hot(labels, classes).to(logits.dtype) * (1 - self.smoothing) + self.smoothing / classes
        return F.binary_cross_entropy_with_logits(logits, target)


class TrainingModule(LightningModule):
    """Trains a network with a moving average of its weights beside it.

    Args:
        network: In training form.
        loss: Of logits (N, classes) and labels (N,).
        make_optimizer: Makes the optimiser from the network.
        augment: Applied to each batch of training images.
        ema_decay: Of the moving average, once warmed up.
        ema_warmup: Let its decay grow from 0.
        warmup_epochs: Of the learning rate.
        min_lr: Learning rate at the end.
        seed: Of what is random in an epoch.
        card: Plain facts for the checkpoint's `vexport` entry (network, preprocessing, recipe ...).
    """

    def __init__(
        self,
        network: VanillaNet,
        *,
        loss: nn.Module,
        make_optimizer: Callable[[nn.Module], Optimizer],
        augment: nn.Module,
        ema_decay: float,
        ema_warmup: bool,
        warmup_epochs: float,
        min_lr: float,
        seed: int,
        card: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network, self.loss, self.augment = network, loss, augment
        self.ema = ModelEmaV3(network, decay=ema_decay, use_warmup=ema_warmup)
        self.ema.module.requires_grad_(False)
        self.card = dict(card)
        self.scores: dict[str, Score] = {}
        self.mean_loss = float("nan")
        self._make_optimizer = make_optimizer
        self._warmup_epochs, self._min_lr, self._seed = warmup_epochs, min_lr, seed

    @property
    def slope(self) -> float:
        """Slope of A', the same in the network and in its average."""
        return float(self.network.slope)

    def set_slope(self, slope: float) -> None:
        """Set the slope in the network and in its average: a schedule's value is never averaged."""
        self.network.set_slope(slope)
        self.ema.module.set_slope(slope)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.network)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * self._warmup_epochs / (self.trainer.max_epochs or 1))
        # timm starts the warm-up at warmup_lr_init; at 0 the first step would do nothing.
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warmup),
            lr_min=self._min_lr,
            warmup_t=warmup,
            warmup_lr_init=optimizer.param_groups[0]["lr"] / (warmup + 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # timm's schedulers are told the count of finished steps.
        scheduler.step_update(num_updates=self.global_step)

    def on_fit_start(self) -> None:
        # Lightning leaves each module in the mode it finds; networks are built for evaluation.
        self.network.train()
        self.ema.eval()

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(epoch_seed(self._seed, self.current_epoch))
        self._losses: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss(self.network(self.augment(images)), labels)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {float(loss.detach())} at step {self.global_step} (epoch {self.current_epoch})",
                hint=DIVERGED,
            )
        self._losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Parameters and BatchNorm's running statistics are averaged; whole numbers (num_batches_tracked) are copied.
        self.ema.update(self.network, step=self.global_step)

    def on_validation_epoch_start(self) -> None:
        self._answers: dict[str, list[Tensor]] = {"model": [], "ema": []}
        self._labels: list[Tensor] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self._answers["model"].append(self.network(images))
        self._answers["ema"].append(self.ema.module(images))
        self._labels.append(labels)

    def on_validation_epoch_end(self) -> None:
        labels = torch.cat(self._labels)
        for name, answers in self._answers.items():
            logits = torch.cat(answers)
            if not torch.isfinite(logits).all():
                raise TrainingError(
                    f"the held-out answers of the {name} weights are not finite after step {self.global_step} "
                    f"(epoch {self.current_epoch})",
                    hint=DIVERGED,
                )
            correct = int((logits.argmax(1) == labels).sum())
            self.scores[name] = Score(correct, len(labels), float(F.cross_entropy(logits, labels)))
        self.mean_loss = float(torch.stack(self._losses).mean())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the published names and vexport's facts; the tensors are the ones that Lightning saves, stored once."""
        tensors = checkpoint["state_dict"]
        checkpoint["model"] = _below("network.", tensors)
        checkpoint["model_ema"] = _below("ema.module.", tensors)
        checkpoint["epoch"] = self.current_epoch + 1  # completed ones; Lightning resumes from `loops` alone
        top1 = self.scores["ema"].top1 if self.scores else None
        checkpoint["vexport"] = {
            "format": 1,
            **self.card,
            "slope": self.slope,
            "slope_ema": float(self.ema.module.slope),
            "top1": top1,
        }


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
