"""The cells of a benchmark: every network with every backend, precision, batch and size that go together.

A cell says what is opened in its process. One that cannot be made or run keeps its place, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vexport.bench.cell import OpenArtifact
from vexport.errors import VexportError
from vexport.pipeline.bench_artifacts import Made
from vexport.pipeline.bench_make import MakeArtifact, Maker
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
        "tensorrt-rtx": {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"},
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
        tf32: Whether its FP32 engine may round to TF32, where that is still to be built; None of all other cells.
        part: Which part of its group it is measured in, and of how many, where the group is too large for one.
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
    tf32: bool | None = None
    part: tuple[int, int] = (1, 1)

    @property
    def group(self) -> tuple[str, str, int, tuple[int, int, int], bool | None]:
        """Cells of one group take turns. FP32 engines with TF32 and without it are of two: they compute unlike."""
        tf32 = self.made.tf32 if self.made is not None else self.tf32
        return (self.backend, self.precision, self.batch, self.input_size, tf32 if self.precision == "fp32" else None)

    @property
    def name(self) -> str:
        """Unlike that of any other cell of the group."""
        return f"{self.network} {self.made.sha256[:12]}" if self.made else self.network

    @property
    def key(self) -> tuple[object, ...]:
        """Unlike that of any other cell; a baseline that stands in several parts of a group is a cell in each."""
        return (*self.group, self.part, self.name)

    @property
    def trusted(self) -> bool:
        """Whether an engine that vexport did not write may be opened."""
        return self.opener is not None and self.opener.trust

    @property
    def on_gpu(self) -> bool:
        from vexport.run.backends import BACKENDS

        return BACKENDS[self.backend].device == "gpu"


def planned_tf32(backend: str, precision: str, allowed: bool) -> bool | None:
    """What `Cell.tf32` is of a cell that is still to be made.

    Args:
        backend: Name in `BACKENDS`.
        precision: Of the cell.
        allowed: Whether FP32 engines that are made may round to TF32.
    """
    from vexport.run.backends import BACKENDS

    return allowed if precision == "fp32" and BACKENDS[backend].takes == "engine" else None


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
                                is_published=size == 224, tf32=planned_tf32(backend, precision, recipe.tf32),
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
    parts = [[*others[start : start + step], *shared] for start in range(0, len(others), step)]
    return [[replace(cell, part=(which, len(parts))) for cell in part] for which, part in enumerate(parts, start=1)]


def make_cell(cell: Cell, maker: Maker, threads: int | None, *, cuda_graph: bool = False) -> Cell:
    """Find or make what a cell opens. What fails is its reason for not running.

    Args:
        cell: As planned.
        maker: Makes artifacts.
        threads: To compute with.
        cuda_graph: Let engines replay their launches as CUDA graphs.
    """
    from vexport.run.backends import BACKENDS

    kind = BACKENDS[cell.backend].takes
    request = MakeArtifact(
        maker.root,
        kind,
        cell.network,
        cell.precision if kind == "engine" else OFFERS[cell.backend][cell.precision],
        cell.input_size,
        cell.batch if kind == "engine" else None,
        cell.backend if kind == "engine" else None,
        maker.tf32 if kind == "engine" else True,
    )
    try:
        done = maker.make(request, f"{cell.network}, {cell.backend} {cell.precision.upper()}")
    except VexportError as error:
        return replace(cell, why_not=f"it could not be made: {describe_error(error)}")
    opener = OpenArtifact(
        done.made.path,
        cell.backend,
        cell.batch,
        cell.input_size,
        threads=threads,
        cuda_graph=cuda_graph and kind == "engine",
        baseline=cell.network if done.made.path is None else None,
        seed=RANDOM_SEED,
    )
    return replace(cell, made=done.made, opener=opener, counted=done.counted)


def describe_error(error: VexportError) -> str:
    """An error in one line, with its first detail."""
    return f"{error.message}: {error.details[0]}" if error.details else error.message
