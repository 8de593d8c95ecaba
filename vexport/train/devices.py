"""How many processes train together, on what."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from vexport.errors import RecipeError
from vexport.recipe import Recipe


@dataclass(frozen=True)
class Devices:
    """What a run computes on.

    Args:
        kind: `cpu` or `cuda`.
        per_node: Processes on each machine, one per device.
        nodes: Machines.
    """

    kind: str
    per_node: int
    nodes: int

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.per_node * self.nodes


def find_devices(recipe: Recipe) -> Devices:
    """What the recipe asks for and the launcher gives: under torchrun, its processes.

    Raises:
        RecipeError: this machine does not have it.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda was asked for, and there is none", hint="--set device=auto")
    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    asked = recipe.compute.devices
    if "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        found = Devices("cuda" if on_gpu else "cpu", local, world // local)
    else:
        here = torch.cuda.device_count() if on_gpu else 1
        found = Devices("cuda" if on_gpu else "cpu", here if asked == "auto" else asked, 1)
    if on_gpu and found.per_node > torch.cuda.device_count():
        raise RecipeError(
            f"{found.per_node} GPUs were asked for, there are {torch.cuda.device_count()}",
            hint="--set compute.devices=auto",
        )
    if not on_gpu and recipe.compute.sync_bn:
        raise RecipeError(
            "compute.sync_bn: torch shares BatchNorm's statistics between GPUs only", hint="--set compute.sync_bn=false"
        )
    if not on_gpu and recipe.compute.precision == "fp16":
        raise RecipeError(
            "compute.precision fp16 needs a GPU: its gradients are scaled there", hint="--set compute.precision=bf16"
        )
    return found
