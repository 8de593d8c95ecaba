"""What the stages take and return: a path and its facts.

Every artifact has a manifest, `<file>.json`, beside it. Manifests form a chain: each names its parent by hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    Args:
        input_size: Channels, height and width of one input.
        mean: Per channel, in the scale of [0, 1] pixels.
        std: Per channel, likewise.
        crop_pct: Share of the resized shorter side that the centre crop keeps.
        interpolation: Resize filter, `bilinear` or `bicubic`.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        channels, height, width = data["input_size"]
        return cls(
            input_size=(channels, height, width),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            crop_pct=data["crop_pct"],
            interpolation=data["interpolation"],
        )


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from: a file, or a named source of weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The facts of one artifact, as they stand in `<file>.json`.

    Args:
        kind: `checkpoint`, `graph`, `engine`, `bench` or `evaluation`.
        sha256: Hash of the file (and of its external data, where it has any).
        size_bytes: Size of the same.
        parent: What it was made from; None for what training made from scratch.
        options: The request: with the parent and the versions it decides whether a second run has anything to do.
        facts: What is true of the artifact (network, form, slope, opset ...).
        parity: One entry per comparison with the parent: inputs, error, tolerance, verdict.
        versions: vexport and the libraries that shaped the file.
        created: UTC time, ISO 8601.
        replaces: Hash of the file that this one replaced, so that a crash between two renames loses no ownership.
    """

    kind: str
    sha256: str
    size_bytes: int
    parent: Parent | None
    options: dict[str, Any]
    facts: dict[str, Any]
    parity: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    replaces: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"schema": MANIFEST_SCHEMA, "tool": "vexport", **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Read a manifest's JSON.

        Raises:
            ValueError: it is not a manifest that this version of vexport can read.
        """
        fields = {key: value for key, value in data.items() if key not in ("schema", "tool")}
        if data.get("tool") != "vexport" or data.get("schema") != MANIFEST_SCHEMA:
            raise ValueError("not a vexport manifest of this schema")
        try:
            parent = fields.pop("parent")
            return cls(parent=Parent(**parent) if parent else None, **fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a vexport manifest: {error}") from error


@dataclass(frozen=True)
class Artifact:
    """A file and its manifest."""

    path: Path
    manifest: Manifest

    kind: ClassVar[str] = "artifact"

    @property
    def sha256(self) -> str:
        return self.manifest.sha256

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest.facts

    @property
    def model(self) -> str | None:
        """Name of the variant or baseline, where the manifest says."""
        name = self.manifest.facts.get("model")
        return str(name) if name is not None else None

    def as_parent(self) -> Parent:
        return Parent(name=self.path.name, sha256=self.sha256)


@dataclass(frozen=True)
class Checkpoint(Artifact):
    """Weights of a network, in training or deployed form."""

    kind: ClassVar[str] = "checkpoint"

    @property
    def form(self) -> str:
        """`training` or `deployed`."""
        return str(self.manifest.facts["form"])


@dataclass(frozen=True)
class Graph(Artifact):
    """An ONNX graph."""

    kind: ClassVar[str] = "graph"

    @property
    def precision(self) -> str:
        return str(self.manifest.facts["precision"])


@dataclass(frozen=True)
class Engine(Artifact):
    """A serialised TensorRT engine: the raw plan."""

    kind: ClassVar[str] = "engine"

    @property
    def precision(self) -> str:
        return str(self.manifest.facts["precision"])


@dataclass(frozen=True)
class BenchResult(Artifact):
    """Latency samples and their summary."""

    kind: ClassVar[str] = "bench"


@dataclass(frozen=True)
class Evaluation(Artifact):
    """The accuracy of an artifact on a folder of images."""

    kind: ClassVar[str] = "evaluation"


KINDS: dict[str, type[Artifact]] = {kind.kind: kind for kind in (Checkpoint, Graph, Engine, BenchResult, Evaluation)}
