"""What a benchmark recipe can say: networks, precisions, backends, batches and sizes, and how long to measure.

Every network is measured with every backend, precision, batch and size that go together. As a training recipe it may
inherit from another one (`inherits: bench/quick`); those that ship are named without a path (`vexport bench quick`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vexport.recipe.checks import Finding
from vexport.recipe.load import find_recipe, load_as
from vexport.recipe.sections import Float, Int, Section

FOLDER = "bench"
TAKEN = ("artifacts", "files")  # names of other folders where benchmarks are written
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Count = Annotated[Int, Field(ge=1)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]


class ClockSection(Section):
    """How long each cell is measured: see `vexport.bench.clock.Clock`."""

    warmup_s: NotNegative = 1.0
    warmup_most_s: NotNegative = 4.0
    duration_s: Positive = 3.0
    least_count: Count = 50
    rounds: Count = 10
    seed: Int = 0


class TimeoutsSection(Section):
    """When a process counts as hung: seconds until a cell is open, for any answer beyond the time that is measured,
    and to make an artifact."""

    open_s: Positive = 600.0
    answer_s: Positive = 120.0
    make_s: Positive = 3600.0


class BenchRecipe(Section):
    """A benchmark.

    `published` names networks that are shown by their published figures alone. `data` is a folder of images by class
    for the accuracy, and `limit` how many of them. `max_open` is how many cells are held open at once at the most.
    `tf32` lets FP32 cells on a GPU round factors to TF32 where their libraries do so by default; false forbids it to
    all of them. `cuda_graph` lets engines replay their launches as CUDA graphs.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    networks: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)
    backends: Annotated[tuple[str, ...], Field(min_length=1)] = ("onnxruntime",)
    batches: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (224,)
    threads: Count | None = None
    clock: ClockSection = ClockSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    roofline: bool = True
    tf32: bool = True
    cuda_graph: bool = False
    data: str | None = None
    limit: Count | None = None
    max_open: Annotated[Int, Field(ge=2)] = 64

    def to_json(self) -> dict[str, Any]:
        """Plain values, every field filled in."""
        plain: dict[str, Any] = self.model_dump(mode="json")
        return plain


def load_bench_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    networks: Collection[str],
    backends: Collection[str],
    published: Collection[str] = (),
) -> BenchRecipe:
    """Read, override and check a benchmark recipe.

    Args:
        name_or_path: A shipped recipe's name, or a path.
        overrides: `field=value`, the value in YAML.
        networks: Names that exist.
        backends: Likewise.
        published: Names with published figures.

    Raises:
        RecipeError: there is no such recipe, or it has errors; each is a line of `details`.
    """

    def check(recipe: BenchRecipe) -> list[Finding]:
        taken = [(("name",), f"{recipe.name} is a folder of vexport's own")] if recipe.name in TAKEN else []
        return [
            *taken,
            *_unknown("networks", recipe.networks, networks),
            *_unknown("published", recipe.published, published),
            *_unknown("backends", recipe.backends, backends),
            *(finding for name in ("networks", "precisions", "backends", "batches", "sizes")
              for finding in _twice(name, getattr(recipe, name))),
        ]  # fmt: skip

    return load_as(BenchRecipe, find_recipe(name_or_path, FOLDER), overrides, check)


def _unknown(field: str, given: Sequence[str], known: Collection[str]) -> list[Finding]:
    found: list[Finding] = []
    for index, name in enumerate(given):
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            guess = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            found.append(((field, str(index)), f"there is no {name}; {guess}"))
    return found


def _twice(field: str, given: Sequence[object]) -> list[Finding]:
    return [((field, str(i)), f"{value} is given before") for i, value in enumerate(given) if value in given[:i]]
