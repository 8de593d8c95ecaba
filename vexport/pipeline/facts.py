"""What an artifact says of its images and classes, wherever it keeps that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.workspace import hash_file, read_manifest


@dataclass(frozen=True)
class ArtifactFacts:
    """What an artifact says; None where it does not.

    Args:
        preprocessing: How its images are prepared.
        class_names: Names of its classes, in their order.
        model: The network.
    """

    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    model: str | None = None


def read_facts(
    path: Path, *, model: str | None = None, weights_from: Literal["ema", "model"] | None = None
) -> ArtifactFacts:
    """Ask a checkpoint itself, a graph's metadata, or the manifest of an engine.

    Args:
        path: The artifact.
        model: The variant that a checkpoint must be.
        weights_from: Which weights of a training checkpoint to take.

    Raises:
        InputError: it cannot be read, or what it says is damaged.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if path.suffix.lower() in (".engine", ".plan"):
        manifest = read_manifest(path)
        return _from_facts(path, manifest.facts if manifest else {})
    if path.suffix.lower() == ".onnx":
        return _from_graph(path)
    from vexport.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(path, model=model, weights_from=weights_from)
    return ArtifactFacts(loaded.preprocessing, loaded.class_names, loaded.spec.variant)


def _from_graph(path: Path) -> ArtifactFacts:
    """The metadata travels with the file; what it leaves out, its manifest may know."""
    from vexport.graph.inspect import metadata, read_graph

    props = metadata(read_graph(path, with_weights=False))
    told: dict[str, Any] = {}
    manifest = read_manifest(path)
    if manifest is not None and manifest.sha256 == hash_file(path):
        told |= manifest.facts
    try:
        for key in ("preprocessing", "class_names"):
            if f"vexport.{key}" in props:
                told[key] = json.loads(props[f"vexport.{key}"])
    except ValueError as error:
        raise _damaged(path, error) from error
    if "vexport.model" in props:
        told["model"] = props["vexport.model"]
    return _from_facts(path, told)


def _from_facts(path: Path, facts: Mapping[str, Any]) -> ArtifactFacts:
    try:
        how, names = facts.get("preprocessing"), facts.get("class_names")
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("class names are strings")
        return ArtifactFacts(
            Preprocessing.from_json(how) if how else None, tuple(names) if names else None, facts.get("model")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"what {path} says of its images and classes is damaged", details=[str(error)], hint="make it again"
    )
