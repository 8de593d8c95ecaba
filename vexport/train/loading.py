"""The loaders of a run, and the count of images that could not be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from vexport.deps import needs
from vexport.errors import InputError
from vexport.train.data import Batch, Refusal, TrainingData
from vexport.train.digits import InMemory
from vexport.train.images import collate
from vexport.train.ranks import gather_from_all, is_distributed
from vexport.train.sampling import Layout, MicroBatches
from vexport.train.seeding import derive_seed
from vexport.train.streams import ImageStream

with needs("train"):
    from lightning.pytorch import Callback, LightningDataModule, Trainer

# Held-out images that go through the network at once.
HELD_OUT_BATCH = 256


def steps_per_epoch(data: TrainingData, layout: Layout) -> int:
    """Steps of the optimiser in one epoch; what does not fill a step is left out.

    Raises:
        RecipeError: there are fewer images than one step takes.
    """
    return len(MicroBatches(len(data.train), layout, seed=0)) // layout.accumulate  # type: ignore[arg-type]


class Loading(LightningDataModule):
    """Makes the loaders once it is known which process this is.

    Args:
        data: What is loaded.
        layout: How a step's images are shared.
        seed: Of the order.
        epoch: The epoch that comes first.
        start: Micro-batches of it that are done.
    """

    def __init__(self, data: TrainingData, layout: Layout, seed: int, *, epoch: int = 0, start: int = 0) -> None:
        super().__init__()
        self._data, self._layout, self._seed, self._epoch, self._start = data, layout, seed, epoch, start

    def train_dataloader(self) -> DataLoader[Any]:
        data, layout = self._data, self._layout
        rank = self._rank()
        if isinstance(data.train, ImageStream):
            data.train.share(rank, layout.world, data.workers)
            data.train.set_epoch(self._epoch)
            return DataLoader(data.train, layout.micro_batch, drop_last=True, **self._common(data.workers))
        sampler = MicroBatches(
            len(data.train),  # type: ignore[arg-type]
            layout,
            self._seed,
            rank=rank,
            epoch=self._epoch,
            start=self._start,
        )
        return DataLoader(
            data.train, batch_sampler=sampler, persistent_workers=data.workers > 0, **self._common(data.workers)
        )

    def val_dataloader(self) -> DataLoader[Any]:
        data = self._data
        batch = max(self._layout.micro_batch, HELD_OUT_BATCH)  # without gradients they take less than training does
        if data.streamed:
            return DataLoader(data.held_out, batch, **self._common(1))
        mine = range(self._rank(), len(data.held_out), self._layout.world)  # type: ignore[arg-type]
        return DataLoader(data.held_out, batch, sampler=InOrder(mine), **self._common(data.workers))

    def _rank(self) -> int:
        return int(self.trainer.global_rank) if self.trainer is not None else 0

    def _common(self, workers: int) -> dict[str, Any]:
        in_memory = isinstance(self._data.train, InMemory)
        return {
            "num_workers": workers,
            "collate_fn": _as_it_is if in_memory else collate,
            "pin_memory": torch.cuda.is_available() and not in_memory,
            # A generator of its own: a loader draws a number when it starts, and a resumed run starts it another time.
            "generator": torch.Generator().manual_seed(derive_seed(self._seed, "workers", self._epoch)),
        }


def _as_it_is(batch: Batch) -> Batch:
    return batch


class InOrder(Sampler[int]):
    """Some numbers, in their order.

    Args:
        numbers: Which.
    """

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def __iter__(self) -> Any:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


# After so many steps several processes tell each other what they met.
GATHER_EVERY = 20


class CountDamaged(Callback):
    """Collects the names of images that could not be read; too many are an error, in all processes together.

    Args:
        limit: How many are skipped.
        tell: Told of each.
        every_steps: When a checkpoint is written within an epoch: it holds every name that was met before.
    """

    def __init__(
        self, limit: int, tell: Callable[[str], None] = lambda _: None, every_steps: int | None = None
    ) -> None:
        self._limit, self._tell, self._every_steps = limit, tell, every_steps
        self._met = 0  # micro-batches of this epoch
        self._new: list[str | Refusal] = []
        self.names: dict[str, None] = {}  # in the order in which they were met

    def state_dict(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.names = dict.fromkeys(state_dict["names"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._met = 0
        loader: Any = trainer.train_dataloader
        stream = getattr(loader, "dataset", None)
        if isinstance(stream, ImageStream):
            # The workers of this epoch start after this; those of the first one have started already, and rightly.
            stream.set_epoch(trainer.current_epoch)
            loader.generator.manual_seed(derive_seed(pl_module.seed, "workers", trainer.current_epoch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._met += 1
        self._new += batch[2]
        if not is_distributed() or batch_idx % (GATHER_EVERY * pl_module.layout.accumulate) == 0:
            self._meet(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        due = self._every_steps is not None and trainer.global_step % self._every_steps == 0
        if is_distributed() and due and pl_module.ends_step(batch_idx):
            self._meet(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._new += batch[2]
        if not is_distributed():
            self._meet(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._meet(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        stream = getattr(trainer.train_dataloader, "dataset", None)
        if isinstance(stream, ImageStream) and self._met < trainer.num_training_batches:
            raise InputError(
                f"the training shards gave {self._met} of the {trainer.num_training_batches} batches of an epoch",
                hint="check the count of images, and that each has its class beside it (.cls)",
            )

    def _meet(self, trainer: Trainer) -> None:
        """Every process comes by here at the same time."""
        found, self._new = gather_from_all(self._new), []
        for name in found:
            if not isinstance(name, Refusal) and name not in self.names:
                self.names[name] = None
                if trainer.is_global_zero:
                    self._tell(f"damaged, skipped: {name}")
        if len(self.names) > self._limit:
            raise InputError(
                f"{len(self.names)} images cannot be read, {self._limit} are skipped",
                details=list(self.names)[:12],
                hint="copy or remove them, or raise data.max_damaged",
            )
        for refusal in (name for name in found if isinstance(name, Refusal)):
            raise InputError(refusal.message, details=list(self.names)[:12], hint=refusal.hint)
