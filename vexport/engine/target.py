"""For which GPU: names, compute capabilities, and what is at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vexport.engine.runtime import TensorRT
from vexport.errors import EngineError, InputError

# Compute capabilities of GPUs that people deploy on (NVIDIA's table of CUDA GPUs).
GPUS: Mapping[str, int] = MappingProxyType(
    {
        "t4": 75,
        "a100": 80,
        "a30": 80,
        "a10": 86,
        "a40": 86,
        "rtx3090": 86,
        "l4": 89,
        "l40": 89,
        "rtx4090": 89,
        "h100": 90,
        "h200": 90,
        "b200": 100,
        "rtx5090": 120,
        "gb10": 121,
    }
)
REFERENCE = 80  # the A100, on which the published latencies were measured


@dataclass(frozen=True)
class Device:
    """A GPU of this machine.

    Args:
        name: As the driver says.
        capability: 80 for compute capability 8.0.
        memory_bytes: All of it.
    """

    name: str
    capability: int
    memory_bytes: int


def find_devices() -> list[Device]:
    """The GPUs that PyTorch can use here; the first is the one that engines are built for and run on."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = properties.major * 10 + properties.minor
        found.append(Device(str(properties.name), capability, int(properties.total_memory)))
    return found


def parse_targets(text: str) -> tuple[int, ...]:
    """Compute capabilities of `a100`, `sm80,sm86` or `8.0`; none for `current`.

    Raises:
        InputError: a part of it names no GPU.
    """
    if text.strip().lower() == "current":
        return ()
    found = set()
    for part in text.lower().replace(" ", "").split(","):
        number = re.fullmatch(r"(?:sm_?)?(\d{2,3})", part) or re.fullmatch(r"(\d{1,2}\.\d)", part)
        if part in GPUS:
            found.add(GPUS[part])
        elif number:
            found.add(int(number.group(1).replace(".", "")))
        else:
            raise InputError(
                f"--target {text}: '{part}' names no GPU",
                hint=f"give current, {', '.join(GPUS)}, or compute capabilities as sm80,sm86",
            )
    return tuple(sorted(found))


def require_targets(targets: tuple[int, ...], runtime: TensorRT) -> None:
    """Refuse a GPU that this TensorRT does not build for by name.

    Raises:
        EngineError: with those that it knows.
    """
    if unknown := [target for target in targets if target not in runtime.targets]:
        raise EngineError(
            f"{runtime.name} {runtime.version} does not build for {name_targets(tuple(unknown))}",
            details=[f"it builds for {', '.join(f'sm{known}' for known in runtime.targets)}"],
            hint="build on a machine with that GPU, with `--runtime tensorrt`",
        )


def name_targets(targets: tuple[int, ...]) -> str:
    """`sm80` or `sm80-sm86`: the part of a file's name."""
    return "-".join(f"sm{target}" for target in targets)
