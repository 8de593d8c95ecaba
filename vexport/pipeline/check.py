"""Parity of any two artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Preprocessing
from vexport.errors import InputError, ParityError
from vexport.workspace import hash_file

if TYPE_CHECKING:
    from vexport.run.compare import Parity
    from vexport.run.runner import Runner


@dataclass(frozen=True)
class CheckResult:
    """How far two artifacts' answers are apart.

    Args:
        a, b: Their paths; a is the reference.
        sha256: Their hashes.
        backends: What ran them.
        inputs: `random` or the folder of images.
        parity: The figures.
    """

    a: Path
    b: Path
    sha256: tuple[str, str]
    backends: tuple[str, str]
    inputs: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        return {
            "a": {"path": str(self.a), "sha256": self.sha256[0], "backend": self.backends[0]},
            "b": {"path": str(self.b), "sha256": self.sha256[1], "backend": self.backends[1]},
            "inputs": self.inputs,
            "parity": self.parity.to_json(),
        }

    def require_passed(self) -> None:
        """Raise where the parity does not hold.

        Raises:
            ParityError: with the figures.
        """
        if self.parity.passed:
            return
        raise ParityError(
            f"{self.b.name} disagrees with {self.a.name}",
            details=[
                f"max|a - b| / max|a| is {self.parity.max_rel:.2e}, the tolerance {self.parity.tolerance:.0e}",
                f"top-1 agrees on {self.parity.top1_agreement:.1%} of {self.parity.images} images",
            ],
            hint="compare each with its parent: the manifests beside them name it",
        )


def check_parity(
    a: Path,
    b: Path,
    *,
    images: Path | None = None,
    tolerance: float | None = None,
    weights_from: Literal["ema", "model"] | None = None,
) -> CheckResult:
    """Compare the answers of two artifacts on the same images.

    Args:
        a: The reference: a checkpoint in either form, or a graph.
        b: What must agree with it.
        images: A folder of images; None takes random ones in batches of 1, 2 and 5.
        tolerance: Bound of max|a - b| / max|a|; None takes that of float32.
        weights_from: Which weights of a training checkpoint to take.

    Raises:
        InputError: one cannot be opened, or their inputs or outputs differ.
    """
    from vexport.run import open_runner
    from vexport.run.compare import TOLERANCES, compare, random_batches
    from vexport.run.images import load_images

    with open_runner(a, weights_from=weights_from) as first, open_runner(b, weights_from=weights_from) as second:
        size = _common_size(first, second)
        sizes = _batch_sizes(first, second)
        if images is None:
            batches = random_batches(size, sizes)
        else:
            loaded = load_images(images, preprocessing_of(a) or preprocessing_of(b) or Preprocessing(input_size=size))
            step = sizes[0]
            whole = len(loaded) - len(loaded) % step
            batches = [loaded[start : start + step] for start in range(0, whole, step)]
        parity = compare(first, second, batches, TOLERANCES["fp32"] if tolerance is None else tolerance)
        return CheckResult(
            a,
            b,
            (hash_file(a), hash_file(b)),
            (first.backend, second.backend),
            "random" if images is None else str(images),
            parity,
        )


def _common_size(a: Runner, b: Runner) -> tuple[int, int, int]:
    """C, H and W that both take."""
    sides = []
    for one, other in zip(a.input_shape[1:], b.input_shape[1:], strict=True):
        if None not in (one, other) and one != other:
            raise InputError(
                f"{a.name} takes {_shape(a)}, {b.name} takes {_shape(b)}",
                hint="compare artifacts of one network and size",
            )
        sides.append(one or other or 224)
    channels, height, width = sides
    return channels, height, width


def _shape(runner: Runner) -> str:
    return "x".join("?" if side is None else str(side) for side in runner.input_shape[1:])


def _batch_sizes(a: Runner, b: Runner) -> tuple[int, ...]:
    fixed = {runner.input_shape[0] for runner in (a, b)} - {None}
    if len(fixed) > 1:
        raise InputError(f"{a.name} and {b.name} have different fixed batches", hint="export one of them again")
    return tuple(n for n in fixed if n is not None) or (1, 2, 5)


def preprocessing_of(path: Path) -> Preprocessing | None:
    """How an artifact's images are prepared, where it says so itself."""
    import json

    if path.suffix.lower() == ".onnx":
        from vexport.graph.inspect import metadata, read_graph

        text = metadata(read_graph(path, with_weights=False)).get("vexport.preprocessing")
        return Preprocessing.from_json(json.loads(text)) if text else None
    from vexport.model.checkpoint import load_checkpoint

    return load_checkpoint(path).preprocessing
