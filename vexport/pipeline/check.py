"""Parity of any two artifacts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Preprocessing
from vexport.errors import InputError, ParityError
from vexport.pipeline.facts import read_facts
from vexport.workspace import hash_file, read_manifest

if TYPE_CHECKING:
    from vexport.run.compare import Parity
    from vexport.run.layers import LayerAgreement
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
        layers: The same, tensor by tensor, where asked for.
        proven: Engines that were proven against their graphs just now, for the first time.
        unproven: Engines that still are not, with what is missing.
    """

    a: Path
    b: Path
    sha256: tuple[str, str]
    backends: tuple[str, str]
    inputs: str
    parity: Parity
    layers: tuple[LayerAgreement, ...] | None = None
    proven: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "a": {"path": str(self.a), "sha256": self.sha256[0], "backend": self.backends[0]},
            "b": {"path": str(self.b), "sha256": self.sha256[1], "backend": self.backends[1]},
            "inputs": self.inputs,
            "parity": self.parity.to_json(),
            "layers": [layer.to_json() for layer in self.layers] if self.layers is not None else None,
            "proven": list(self.proven),
            "unproven": list(self.unproven),
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
    model: str | None = None,
    layers: bool = False,
    trust: bool = False,
) -> CheckResult:
    """Compare the answers of two artifacts on the same images.

    An engine that has not been proven yet, because it was built on a machine that could not run it, is first proven
    against its graph where that lies beside it or is the other artifact, and its manifest completed.

    Args:
        a: The reference: a checkpoint in either form, a graph or an engine.
        b: What must agree with it.
        images: A folder of images; None takes random ones in batches of 1, 2 and 5, as far as both take them.
        tolerance: Bound of max|a - b| / max|a|; None takes that of the coarser precision of the two.
        weights_from: Which weights of a training checkpoint to take.
        model: The variant that a checkpoint must be.
        layers: Compare the tensors in between too; for graphs and engines.
        trust: Open engines that vexport did not write.

    Raises:
        InputError: one cannot be opened, or their inputs or outputs differ.
        EngineError: an engine is not trusted or cannot run here.
    """
    from vexport.run import open_runner
    from vexport.run.compare import TOLERANCES, compare, random_batches
    from vexport.run.images import load_images

    proven, unproven = _prove_first((a, b), trust)
    size = _fixed_size(a) or _fixed_size(b)

    def opened(path: Path) -> Runner:
        return open_runner(
            path, weights_from=weights_from, model=model, input_size=size, trust=trust, graphs=_graphs((a, b))
        )

    with opened(a) as first, opened(b) as second:
        size = _common_size(first, second)
        sizes = _batch_sizes(first, second)
        if images is None:
            batches = random_batches(size, sizes)
        else:
            how = preprocessing_of(a) or preprocessing_of(b) or Preprocessing(input_size=size)
            loaded = load_images(images, replace(how, input_size=size))
            step = sizes[0]
            whole = len(loaded) - len(loaded) % step
            batches = [loaded[start : start + step] for start in range(0, whole, step)]
        if tolerance is None:
            tolerance = max(TOLERANCES[_precision_of(path)] for path in (a, b))
        parity = compare(first, second, batches, tolerance)
        by_layer = None
        if layers:
            from vexport.run.layers import compare_layers

            by_layer = tuple(compare_layers(a, b, batches[0], trust=trust))
        return CheckResult(
            a,
            b,
            (hash_file(a), hash_file(b)),
            (first.backend, second.backend),
            "random" if images is None else str(images),
            parity,
            by_layer,
            proven,
            unproven,
        )


def _is_engine(path: Path) -> bool:
    return path.suffix.lower() in (".engine", ".plan")


def _prove_first(pair: tuple[Path, Path], trust: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Engines that were proven just now, for the first time on a machine that can run them; and those that were not."""
    from vexport.engine.plan import open_plan
    from vexport.pipeline.prove_engine import prove_pending

    proven, unproven = [], []
    for path in filter(_is_engine, pair):
        open_plan(path, trust=trust)
        found = prove_pending(path, _graphs(pair))
        if isinstance(found, str):
            unproven.append(found)
        elif found is not None:
            proven.append(path.name)
    return tuple(proven), tuple(unproven)


def _graphs(pair: tuple[Path, Path]) -> list[Path]:
    return [path for path in pair if path.suffix.lower() == ".onnx"]


def _fixed_size(path: Path) -> tuple[int, int, int] | None:
    """C, H and W of a graph that fixes them; a checkpoint computes at that size, too."""
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return None
    from vexport.graph.inspect import read_graph

    shape = read_graph(path, with_weights=False).graph.input[0].type.tensor_type.shape
    sides = tuple(dim.dim_value for dim in shape.dim[1:])
    return (sides[0], sides[1], sides[2]) if len(sides) == 3 and min(sides) > 0 else None


def _precision_of(path: Path) -> str:
    """The tolerance that an artifact deserves: that of its precision."""
    if path.suffix.lower() == ".onnx":
        from vexport.graph.inspect import read_graph
        from vexport.graph.precision import graph_precision

        found = graph_precision(read_graph(path, with_weights=False))
    elif _is_engine(path):
        manifest = read_manifest(path)
        facts = manifest.facts if manifest else {}
        found = "fp16" if facts.get("tf32") else str(facts.get("precision", "fp16"))
    else:
        found = "fp32"
    # Without labels INT8 has no tolerance of its own: an activation may round to the next step.
    return "bf16" if found == "int8" else found


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
    from vexport.run.runner import batch_range

    ranges = batch_range(a), batch_range(b)
    least = max(one[0] for one in ranges)
    most = min((one[1] for one in ranges if one[1] is not None), default=None)
    if most is not None and least > most:
        raise InputError(f"{a.name} and {b.name} take no batch in common", hint="export or build one of them again")
    return tuple(n for n in (1, 2, 5) if least <= n and (most is None or n <= most)) or (least,)


def preprocessing_of(path: Path) -> Preprocessing | None:
    """How an artifact's images are prepared, where it says so itself."""
    return read_facts(path).preprocessing
