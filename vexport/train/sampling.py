"""Which images come when: micro-batches of an epoch's order, shared among the devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from vexport.errors import RecipeError
from vexport.train.seeding import derive_seed


class Pick(NamedTuple):
    """One image of one epoch: what a data set is asked for."""

    number: int
    epoch: int


@dataclass(frozen=True)
class Layout:
    """How a step's images are shared.

    Args:
        micro_batch: Images that go through the network at once on a device.
        accumulate: Micro-batches of one device per step.
        world: Devices.
    """

    micro_batch: int
    accumulate: int
    world: int = 1

    @classmethod
    def of(cls, batch_size: int, micro_batch: int | None, world: int) -> Layout:
        """Share `batch_size` images a step among `world` devices.

        Raises:
            RecipeError: they cannot be shared evenly.
        """
        if batch_size % world:
            raise RecipeError(
                f"batch_size {batch_size} cannot be shared by {world} devices", hint="choose a multiple of the devices"
            )
        micro = min(micro_batch or batch_size, batch_size // world)
        if batch_size % (micro * world):
            raise RecipeError(
                f"batch_size {batch_size} is no multiple of compute.micro_batch {micro} times {world} devices",
                hint="choose a smaller compute.micro_batch",
            )
        if micro < 2:
            raise RecipeError(
                f"batch_size {batch_size} leaves {micro} image to each of {world} devices: BatchNorm needs two",
                hint="raise batch_size",
            )
        return cls(micro, batch_size // (micro * world), world)

    def place(self, batch_idx: int, rank: int) -> int:
        """Number in the epoch of the micro-batch that a device sees as its `batch_idx`-th.

        A step takes consecutive micro-batches, whoever computes them: the sum over a step is the same on one device
        and on many.
        """
        step, turn = divmod(batch_idx, self.accumulate)
        return step * self.accumulate * self.world + turn * self.world + rank

    @property
    def step_images(self) -> int:
        """Images per step of the optimiser."""
        return self.micro_batch * self.accumulate * self.world


class MicroBatches(Sampler[list[Pick]]):
    """The micro-batches of one device, in an order that depends on the seed and the epoch alone.

    What does not fill a step is left out; it is another rest in each epoch.

    Args:
        count: Images.
        layout: How they are shared.
        seed: Of the order.
        rank: Which device.
        epoch: The epoch that comes first.
        start: Micro-batches of that epoch that this device has had already.

    Raises:
        RecipeError: there are fewer images than one step takes.
    """

    def __init__(self, count: int, layout: Layout, seed: int, *, rank: int = 0, epoch: int = 0, start: int = 0) -> None:
        if count < layout.step_images:
            raise RecipeError(
                f"batch_size {layout.step_images} is more than the {count} training images",
                hint="choose a smaller batch_size",
            )
        self._count, self._layout, self._seed, self._rank = count, layout, seed, rank
        self._epoch, self._first, self._start = epoch, epoch, start
        self.sampler = self  # where Lightning looks for what it tells the epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Pick]]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch))
        order = torch.randperm(self._count, generator=generator).tolist()
        size, epoch = self._layout.micro_batch, self._epoch
        for batch_idx in range(self._start if epoch == self._first else 0, len(self)):
            begin = self._layout.place(batch_idx, self._rank) * size
            yield [Pick(index, epoch) for index in order[begin : begin + size]]

    def __len__(self) -> int:
        return self._count // self._layout.step_images * self._layout.accumulate
