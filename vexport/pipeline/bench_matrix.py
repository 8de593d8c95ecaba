"""The cells of a benchmark: every network with every backend, precision, batch and size that go together.

A cell says what is opened in its process. One that cannot be made or run keeps its place, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vexport.bench.cell import OpenArtifact
from vexport.errors import VexportError
from vexport.model.variants import VARIANTS
from vexport.pipeline.bench_artifacts import Artifacts, Made
from vexport.pipeline.resolve import RANDOM_SEED

if TYPE_CHECKING:
    from vexport.recipe.bench import BenchRecipe

# Backend to precision to the precision of what it opens.
OFFERS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "pytorch": {"fp32": "fp32"},
        "pytorch-channels-last": {"fp32": "fp32"},
        "torch-compile": {"fp32": "fp32"},
        "pytorch-cuda": {"fp32": "fp32"},
        "pytorch-fp16": {"fp16": "fp32"},
        "torch-compile-fp16": {"fp16": "fp32"},
        "onnxruntime": {"fp32": "fp32", "int8": "int8"},  # no FP16 kernels to speak of
        "onnxruntime-cuda": {"fp32": "fp32", "fp16": "fp16"},  # no INT8 convolutions
        "onnxruntime-tensorrt": {"fp32": "fp32", "fp16": "fp16", "int8": "int8"},
        "openvino": {"fp32": "fp32", "int8": "int8"},
        "openvino-bf16": {"bf16": "fp32", "int8": "int8"},
        "tensorrt": {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"},
    }
)


@dataclass(frozen=True)
class Cell:
    """One network with one backend, precision, batch and size.

    Args:
        network: Variant, baseline or file stem.
        backend: Name in `BACKENDS`.
        precision: `fp32` ...
        batch: Images per call.
        input_size: C, H and W.
        made: What is opened; None where it could not be made.
        opener: Opens it in the cell's process; None where it does not run.
        why_not: Why it does not run.
        model: The variant or baseline that it is, where known.
        is_published: Whether published figures are of this network at this size.
        counted: Parameters, GMACs and depth, where known.
    """

    network: str
    backend: str
    precision: str
    batch: int
    input_size: tuple[int, int, int]
    made: Made | None = None
    opener: OpenArtifact | None = None
    why_not: str | None = None
    model: str | None = None
    is_published: bool = False
    counted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str, int, tuple[int, int, int]]:
        """Cells of one group take turns."""
        return (self.backend, self.precision, self.batch, self.input_size)

    @property
    def name(self) -> str:
        """Unlike that of any other cell of the group."""
        return f"{self.network} {self.made.sha256[:12]}" if self.made else self.network

    @property
    def trusted(self) -> bool:
        """Whether an engine that vexport did not write may be opened."""
        return self.opener is not None and self.opener.trust

    @property
    def on_gpu(self) -> bool:
        from vexport.run.backends import BACKENDS

        return BACKENDS[self.backend].device == "gpu"


def plan_groups(recipe: BenchRecipe) -> list[list[Cell]]:
    """The groups of a recipe in the order in which they are measured; nothing is made yet."""
    groups = []
    for size in recipe.sizes:
        for batch in recipe.batches:
            for backend in recipe.backends:
                for precision in recipe.precisions:
                    if precision in OFFERS[backend]:
                        cells = [
                            Cell(
                                network, backend, precision, batch, (3, size, size), model=network,
                                is_published=size == 224,
                            )
                            for network in recipe.networks
                        ]  # fmt: skip
                        groups += [cells] if cells else []
    return groups


def split_large(cells: Sequence[Cell], most: int, baseline: str) -> list[list[Cell]]:
    """Groups that can be held open at once; the baseline stands in each, so that each has its ratios.

    Args:
        cells: Of one group.
        most: Cells of one part at the most.
        baseline: A network's name.
    """
    if len(cells) <= most:
        return [list(cells)]
    shared = [cell for cell in cells if cell.network == baseline]
    others = [cell for cell in cells if cell.network != baseline]
    step = max(1, most - len(shared))
    return [[*others[start : start + step], *shared] for start in range(0, len(others), step)]


def why_not_here(backend: str) -> str | None:
    """Why a backend does not run on this machine; None where it does."""
    from vexport.run.backends import BACKENDS

    return BACKENDS[backend].why_not_here()


def make_cell(cell: Cell, artifacts: Artifacts, threads: int | None) -> Cell:
    """Find or make what a cell opens. What fails is its reason for not running."""
    from vexport.run.backends import BACKENDS

    size = cell.input_size[1]
    try:
        kind = BACKENDS[cell.backend].takes
        if kind == "engine":
            made = artifacts.engine(cell.network, cell.precision, size, cell.batch)
        elif kind == "graph":
            made = artifacts.graph(cell.network, OFFERS[cell.backend][cell.precision], size)
        else:
            made = artifacts.module(cell.network, size)
        counted = count_network(cell.network, cell.input_size)
    except VexportError as error:
        details = f": {error.details[0]}" if error.details else ""
        return replace(cell, why_not=f"it could not be made: {error.message}{details}")
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        # Other libraries' networks at sizes that they do not take, for one.
        from vexport.bench.clock import in_words

        return replace(cell, why_not=f"it could not be made: {in_words(error)}")
    opener = OpenArtifact(
        made.path,
        cell.backend,
        cell.batch,
        cell.input_size,
        threads=threads,
        baseline=cell.network if made.path is None else None,
        seed=RANDOM_SEED,
    )
    return replace(cell, made=made, opener=opener, counted=counted)


_COUNTED: dict[tuple[str, tuple[int, int, int]], dict[str, Any]] = {}


def count_network(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Parameters, GMACs and depth of a variant or baseline, counted without memory.

    Depth is the number of layers with weights; of a variant as its authors count, where the depthwise convolutions of
    series activations are none.

    Args:
        name: Variant or baseline.
        input_size: C, H and W.
    """
    if (name, input_size) not in _COUNTED:
        import torch
        from torch import nn

        from vexport.model.baselines import create_baseline
        from vexport.model.build import build_network, count_cost
        from vexport.model.variants import make_spec

        with torch.device("meta"):
            is_variant = name in VARIANTS
            module = build_network(make_spec(name), form="deployed") if is_variant else create_baseline(name)
        layers = sum(isinstance(one, nn.Conv2d | nn.Linear) for one in module.modules())
        cost = count_cost(module, input_size)
        _COUNTED[name, input_size] = {
            "parameters": cost.params,
            "gmacs": cost.gmacs,
            "depth": len(VARIANTS[name].dims) + 1 if is_variant else layers,
        }
    return _COUNTED[name, input_size]


def count_file(path: Path, input_size: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """The same of a graph; nothing of other files."""
    if path.suffix.lower() != ".onnx":
        return {}
    from vexport.graph.fused import count_fused
    from vexport.graph.inspect import count_parameters, read_graph

    model = read_graph(path)
    try:
        cost = count_fused(model, batch=batch, size=input_size[1:])
    except VexportError:
        return {"parameters": count_parameters(model)}
    return {
        "parameters": count_parameters(model),
        "gmacs": cost.macs / cost.batch / 1e9,
        "depth": sum(layer.macs > 0 for layer in cost.layers),
    }
