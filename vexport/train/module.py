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
from vexport.model.build import Network
from vexport.train.data import UNREADABLE, Batch
from vexport.train.qat import split_ranges
from vexport.train.ranks import copy_from_first, is_distributed, sum_over_ranks
from vexport.train.sampling import Layout
from vexport.train.seeding import derive_seed, seed_all

with needs("train"):
    from lightning.pytorch import LightningModule

DIVERGED = "lower optimizer.lr, or lengthen schedule.warmup_epochs"
# How often a device is asked for its losses: each time it has to finish what it has been given.
LOOK_EVERY = 20


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


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course.

    Args:
        warmup_epochs: Of a linear rise.
        min_lr: At the end of the half cosine that follows.
    """

    warmup_epochs: float
    min_lr: float


class TrainingModule(LightningModule):
    """Trains a network with a moving average of its weights beside it.

    Args:
        network: In training form; or in deployed form with rounded operands (see `qat`).
        loss: Of logits (N, classes), and classes (N,) or soft targets (N, classes), and the images (N, C, H, W).
        make_optimizer: Makes the optimiser from the network.
        mix: Random moves of a batch: images and classes to images and classes or soft targets.
        ema_decay: Of the moving average, once warmed up.
        ema_warmup: Let its decay grow from 0.
        schedule: Of the learning rate.
        layout: How a step's images are shared.
        seed: Of what is random.
        card: Plain facts for the checkpoint's `vexport` entry (network, preprocessing, recipe ...).
        channels_last: Whether images lie in memory pixel by pixel.
        compiled: Whether torch.compile makes the network's step.
        held_out_shared: Whether each device sees its part of the held-out images, and not all of them.
    """

    def __init__(
        self,
        network: Network,
        *,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        make_optimizer: Callable[[nn.Module], Optimizer],
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        ema_decay: float,
        ema_warmup: bool,
        schedule: Schedule,
        layout: Layout,
        seed: int,
        card: Mapping[str, Any],
        channels_last: bool = False,
        compiled: bool = False,
        held_out_shared: bool = True,
    ) -> None:
        super().__init__()
        self._memory = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self._memory)
        self.ema = ModelEmaV3(network, decay=ema_decay, use_warmup=ema_warmup)
        self.ema.module.requires_grad_(False)
        # Not modules of this one: their weights do not belong into its checkpoints.
        self._plain: dict[str, Any] = {"loss": loss, "forward": torch.compile(network) if compiled else network}
        self.card = dict(card)
        self.scores: dict[str, Score] = {}
        self.mean_loss = self.recent_loss = float("nan")
        self._make_optimizer, self._mix, self._schedule = make_optimizer, mix, schedule
        self.layout, self.seed, self._held_out_shared = layout, seed, held_out_shared
        self._losses: list[Tensor] = []  # of this epoch's steps that were not looked at yet
        self._seen = [0.0, 0]  # sum and count of those that were
        self.finished_epochs = self.finished_steps = 0  # told by whoever writes checkpoints

    @property
    def slope(self) -> float:
        """Slope of A', the same in the network and in its average."""
        return float(self.network.slope)

    def set_slope(self, slope: float) -> None:
        """Set the slope in the network and in its average: a schedule's value is never averaged."""
        self.network.set_slope(slope)
        self.ema.module.set_slope(slope)

    def ends_step(self, batch_idx: int) -> bool:
        """Whether the optimiser stepped with this micro-batch."""
        return (batch_idx + 1) % self.layout.accumulate == 0

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.network)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * self._schedule.warmup_epochs / (self.trainer.max_epochs or 1))
        # timm starts the warm-up at warmup_lr_init; at 0 the first step would do nothing.
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(1, steps - warmup),
            lr_min=self._schedule.min_lr,
            warmup_t=warmup,
            warmup_lr_init=optimizer.defaults["lr"] / (warmup + 1),
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
        loss = self._plain["loss"]
        if isinstance(loss, nn.Module):
            loss.to(self.device)

    def on_train_epoch_start(self) -> None:
        self._losses, self._seen = [], [0.0, 0]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        place = self.layout.place(batch_idx, self.trainer.global_rank)
        seed_all(derive_seed(self.seed, "batch", self.current_epoch, place))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels, _ = batch
        images, targets = self._mix(images, labels)
        images = images.contiguous(memory_format=self._memory)
        loss: Tensor = self._plain["loss"](self._plain["forward"](images), targets, images)
        self._losses.append(loss.detach())
        # Nothing is waited for on a CPU, and together all processes have to look at once.
        if loss.device.type == "cpu" and (is_distributed() or not torch.isfinite(loss)):
            self.look_at_losses()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if len(self._losses) >= LOOK_EVERY * self.layout.accumulate:
            self.look_at_losses()

    def look_at_losses(self) -> None:
        """Wait for the device and take the losses since the last look, of all devices; `recent_loss` is their mean.

        Raises:
            TrainingError: one is not finite; it names the first such step.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).float()
        losses = sum_over_ranks(losses.clone()) / self.layout.world
        self._losses = []
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if bad:
            micro = self._seen[1] + bad[0]
            step = self.current_epoch * (int(self.trainer.num_training_batches) // self.layout.accumulate)
            step += int(micro) // self.layout.accumulate
            raise TrainingError(
                f"the loss is {float(losses[bad[0]])} at step {step} (epoch {self.current_epoch})", hint=DIVERGED
            )
        self._seen = [self._seen[0] + float(losses.sum()), self._seen[1] + len(losses)]
        self.recent_loss = float(losses.mean())

    def require_sound(self, batch: Batch) -> None:
        """See that the losses so far are finite, and that the weights as they are now answer with finite numbers.

        Raises:
            TrainingError: they do not.
        """
        self.look_at_losses()
        images = batch[0].contiguous(memory_format=self._memory)
        broken = torch.zeros((), device=self.device)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for network in (self.network, self.ema.module):
                training = network.training
                network.eval()  # neither BatchNorm's statistics nor dropout's draws are touched
                broken += (~torch.isfinite(network(images).float())).any()
                network.train(training)
        if sum_over_ranks(broken).item():
            raise TrainingError(
                f"the weights have broken in step {self.global_step - 1} (epoch {self.current_epoch}): their answers "
                "are not finite",
                hint=DIVERGED,
            )

    def on_validation_epoch_start(self) -> None:
        self.look_at_losses()  # first: they name the step
        # DDP copies the first process's statistics before each step; after the last one they differ.
        copy_from_first([*self.network.buffers(), *self.ema.module.buffers()])
        self._sums = torch.zeros(2, 3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        images = images.contiguous(memory_format=self._memory)
        known = labels != UNREADABLE
        for row, network in zip(self._sums, (self.network, self.ema.module), strict=True):
            logits = network(images)[known].float()
            loss = F.cross_entropy(logits, labels[known], reduction="sum")
            # A sum over logits that are not finite is not finite either.
            finite = torch.where(torch.isfinite(logits).all(), 0.0, float("nan"))
            row += torch.stack([(logits.argmax(1) == labels[known]).sum(), known.sum(), loss.double() + finite])

    def on_validation_epoch_end(self) -> None:
        sums = sum_over_ranks(self._sums) if self._held_out_shared else self._sums
        for name, (correct, total, loss) in zip(("model", "ema"), sums.tolist(), strict=True):
            if loss != loss:
                raise TrainingError(
                    f"the held-out answers of the {name} weights are not finite after step {self.global_step} "
                    f"(epoch {self.current_epoch})",
                    hint=DIVERGED,
                )
            if not total:
                raise TrainingError("none of the held-out images can be read", hint="copy the data set again")
            self.scores[name] = Score(int(correct), int(total), loss / total)
        self.mean_loss = self._seen[0] / self._seen[1] if self._seen[1] else float("nan")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the published names and vexport's facts; the tensors are the ones that Lightning saves, stored once."""
        tensors = checkpoint["state_dict"]
        checkpoint["model"], ranges = split_ranges(_below("network.", tensors))
        # Ranges stay as they are, so that their average is themselves.
        checkpoint["model_ema"], _ = split_ranges(_below("ema.module.", tensors))
        checkpoint["epoch"] = self.finished_epochs  # Lightning resumes from `loops` alone
        top1 = self.scores["ema"].top1 if self.scores else None
        checkpoint["vexport"] = {
            "format": 1,
            **self.card,
            "slope": self.slope,
            "slope_ema": float(self.ema.module.slope),
            "top1": top1,
            "steps": self.finished_steps,
            "accumulate": self.layout.accumulate,
            "losses": list(self._seen),
            **({"activation_ranges": ranges} if ranges else {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._seen = list(checkpoint["vexport"].get("losses", (0.0, 0)))
        self.finished_epochs = int(checkpoint["epoch"])
        before = int(checkpoint["vexport"].get("accumulate", self.layout.accumulate))
        if before != self.layout.accumulate:
            # Another number of devices shares the same steps: Lightning counts micro-batches of one device.
            _recount(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"], before, self.layout.accumulate)
            self._seen = [value / before * self.layout.accumulate for value in self._seen]


def _recount(progress: dict[str, Any], before: int, now: int) -> None:
    """Lightning's count of micro-batches, for another number of them per step, in place."""
    for counts in (progress["total"], progress["current"]):
        behind = {name: counts["ready"] - counts[name] for name in counts}  # what was not completed when it was saved
        ready = counts["ready"] // before * now
        counts.update({name: ready - missing for name, missing in behind.items()})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
