"""What several processes of one run agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first_process() -> bool:
    """Whether this process speaks for the run, as the launcher's environment has it."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0) == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's tensors: BatchNorm's running statistics differ between them."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather_from_all(values: list[Any]) -> list[Any]:
    """The values of all processes, one after the other; every process gets them."""
    if not is_distributed():
        return values
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]
