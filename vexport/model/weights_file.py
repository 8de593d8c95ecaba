"""From a file to named tensors: containers, prefixes and the facts a file carries. Nothing in it is executed."""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vexport.errors import CheckpointError
from vexport.workspace import require_file

Source = Literal["ema", "model"]

# Where checkpoints keep their weights, by what `--from` calls them.
CONTAINERS: Mapping[Source, tuple[str, ...]] = {
    "ema": ("model_ema", "state_dict_ema", "ema_state_dict"),
    "model": ("model", "state_dict"),
}
# What wrappers put before tensor names: DDP, torch.compile, Lightning, OpenMixup's backbone and head.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "backbone.", "head.")
DETECTION_PARTS = ("neck", "bbox_head", "rpn_head", "roi_head", "mask_head", "panoptic_head", "decode_head")
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".pkl")
LISTED = 12  # names shown of a long list


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Args:
        tensors: Name, less wrappers' prefixes, to tensor; memory-mapped where the file allows.
        source: Which weights of the file these are.
        facts: What our own files say of themselves (`vexport` in the file), else empty.
        args: The training command's arguments, where the file carries them.
        epoch: Completed epochs, where the file says.
        notes: What the reader should know of the reading.
    """

    tensors: dict[str, Tensor]
    source: Source
    facts: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    epoch: float | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: Path, *, source: Source | None = None) -> WeightsFile:
    """Read a checkpoint: .safetensors, or anything that torch.save wrote (zip or legacy).

    Args:
        path: The file.
        source: Which weights to take where the file has several; None prefers the EMA.

    Raises:
        InputError: there is no readable file.
        CheckpointError: it is not a checkpoint, is damaged, runs code, or has no such weights.
    """
    require_file(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, source)
    with path.open("rb") as stream:
        head = stream.read(16)
    if path.suffix.lower() == ".onnx":
        hint = "`vexport check` and `vexport bench` take graphs; here give the checkpoint it was made from"
        raise CheckpointError(f"{path} is an ONNX graph, not a checkpoint", hint=hint)
    return _from_container(path, _read_pickled(path, head), source)


def _read_safetensors(path: Path, source: Source | None) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as reader:
            metadata = reader.metadata() or {}
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file", details=[str(error)], hint="copy or download it again"
        ) from error
    facts = _own_facts(metadata.get("vexport"), path)
    return _named(path, tensors, source or facts.get("source", "model"), facts=facts)


def _own_facts(text: str | None, path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(text) if text else {}
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(f"the metadata of {path} is damaged", hint="write it anew with `vexport fuse`")
    return facts


def _read_pickled(path: Path, head: bytes) -> Any:
    zipped = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not zipped:
        raise CheckpointError(f"{path} is truncated: its zip directory is missing", hint="copy or download it again")
    try:
        # Legacy files (before PyTorch 1.6) are one pickle stream and cannot be mapped.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        names = _unsafe_globals(path, str(error), zipped)
        if names:
            raise CheckpointError(
                f"{path} refers to code that would run on loading",
                details=[f"{name} is not on the allow-list" for name in names],
                hint="save only tensors and plain values, or convert it to .safetensors where you trust it",
            ) from error
        raise _not_a_checkpoint(path, error) from error
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise _not_a_checkpoint(path, error) from error


def _unsafe_globals(path: Path, message: str, zipped: bool) -> list[str]:
    """Names of the globals that the allow-list refuses."""
    if zipped:
        try:
            found: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (RuntimeError, ValueError, pickle.UnpicklingError):
            found = []
        allowed = "argparse.Namespace"
        if names := [name for name in found if name != allowed]:
            return names
    named = re.findall(r"(?:GLOBAL|global) ([\w.]+)", message)[:1]
    if named or zipped:
        return named
    with contextlib.suppress(Exception):  # what is no pickle at all
        return sorted(set(_globals_in(path.read_bytes())) - {"argparse.Namespace"})
    return []


def _globals_in(stream: bytes) -> Iterator[str]:
    """Globals that a pickle refers to; nothing of it runs."""
    strings: list[str] = []
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL" and len(strings) >= 2:
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _not_a_checkpoint(path: Path, error: Exception) -> CheckpointError:
    # A bare KeyError's text is a number, and torch's advice to load without `weights_only` is not ours.
    told = isinstance(error, (RuntimeError, EOFError, OSError)) and str(error).strip()
    first_line = str(error).strip().splitlines()[0] if told else type(error).__name__
    if path.suffix.lower() in PYTORCH_SUFFIXES:
        return CheckpointError(
            f"{path} is not a checkpoint, or is damaged", details=[first_line[:200]], hint="copy or download it again"
        )
    return CheckpointError(
        f"{path} is not a checkpoint", hint="a checkpoint is a file of torch.save (.pth, .pt, .ckpt) or .safetensors"
    )


def _from_container(path: Path, content: Any, source: Source | None) -> WeightsFile:
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(
            f"{path} holds a {kind}, not weights", hint="save `model.state_dict()`, or a dict around it"
        )
    chosen, tensors = _choose(path, content, source)
    args = content.get("args")
    epoch = content.get("epoch")
    facts = content.get("vexport")
    return _named(
        path,
        tensors,
        chosen,
        facts=dict(facts) if isinstance(facts, Mapping) else {},
        args=dict(vars(args))
        if isinstance(args, argparse.Namespace)
        else dict(args)
        if isinstance(args, Mapping)
        else {},
        epoch=float(epoch) if isinstance(epoch, (int, float)) else None,
    )


def _choose(path: Path, content: Mapping[str, Any], source: Source | None) -> tuple[Source, Mapping[str, Any]]:
    found: dict[Source, Mapping[str, Any]] = {}
    for name, keys in CONTAINERS.items():
        held = (content[key] for key in keys if isinstance(content.get(key), Mapping) and content[key])
        if (weights := next(held, None)) is not None:
            found[name] = weights
    if not found and any(isinstance(value, Tensor) for value in content.values()):
        found["model"] = content
    if not found:
        listed = ", ".join(str(key) for key in list(content)[:LISTED]) or "nothing"
        raise CheckpointError(
            f"{path} holds no weights",
            details=[f"it holds: {listed}"],
            hint="the weights stand under model, model_ema or state_dict",
        )
    if source is not None and source not in found:
        raise CheckpointError(f"{path} has no {source} weights", hint=f"it has: --from {next(iter(found))}")
    wanted = source or ("ema" if "ema" in found else "model")
    return wanted, found[wanted]


def _named(path: Path, tensors: Mapping[str, Any], source: Source, **rest: Any) -> WeightsFile:
    """Check that these are tensors and strip what wrappers put before their names."""
    parts = sorted({part for name in tensors for part in str(name).split(".")[:2]} & set(DETECTION_PARTS))
    if parts:
        raise CheckpointError(
            f"{path} is an object-detection or segmentation checkpoint, not a classifier",
            details=[f"it has: {', '.join(parts)}"],
            hint="give the classification checkpoint that its backbone was initialised from",
        )
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = strip_prefixes(str(name))
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, not a tensor", hint="give a state dict")
        if short in named:
            raise CheckpointError(
                f"{path} holds {short} twice, behind different prefixes", hint="save one network's state dict alone"
            )
        named[short] = value
    return WeightsFile(named, source, **rest)


def strip_prefixes(name: str) -> str:
    """A tensor's name without the prefixes of wrappers, in whatever order they were put."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
