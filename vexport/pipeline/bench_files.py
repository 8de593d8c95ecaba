"""Cells of files that are named: what each is, with which backends it runs, and eager PyTorch beside a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vexport.artifacts import Checkpoint, Manifest
from vexport.bench.cell import OpenArtifact
from vexport.errors import InputError
from vexport.model.variants import VARIANTS
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_artifacts import RANDOM_NOTE, Made, Weights, is_published_size
from vexport.pipeline.bench_count import count_file, count_network
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.resolve import RANDOM_SEED, random_parent
from vexport.workspace import Workspace, hash_file, read_manifest, size_bytes

FULL_SIZE = (3, 224, 224)
LOOK_S = 600.0  # until a file that is opened counts as hung
_ENDINGS = (".onnx", ".engine", ".plan", ".safetensors", ".deploy", ".fp16", ".bf16", ".latency", ".int8", ".random")


def cells_of_file(
    path: Path,
    workspace: Workspace,
    batch: int,
    threads: int | None,
    *,
    eager: bool,
    trust: bool = False,
    cuda_graph: bool = False,
    backends: Sequence[str] = (),
    apart: Apart,
) -> list[Cell]:
    """The cells of one artifact.

    It is opened once before, so that a file that cannot be measured is refused before anything is.

    Args:
        path: A graph, an engine or a checkpoint.
        workspace: Where the checkpoint that a graph was made from is looked for.
        batch: Images per call.
        threads: To compute with.
        eager: Whether eager PyTorch stands beside a graph.
        trust: Open an engine that vexport did not write.
        cuda_graph: Let an engine replay its launches as a CUDA graph.
        backends: Those of them that take it; the usual one where none does. An engine has one of its own.
        apart: Where it is opened.

    Raises:
        VexportError: it cannot be opened, or has another batch.
    """
    from vexport.run.backends import BACKENDS, DEFAULTS, engine_backend, kind_of

    shape = apart.call(f"opening {path}", LookAt(path, threads, trust, cuda_graph), LOOK_S)
    if shape[0] not in (None, batch):
        raise InputError(f"{path} has a fixed batch of {shape[0]}", hint=f"--batch {shape[0]}")
    channels, height, width = (side or usual for side, usual in zip(shape[1:], FULL_SIZE, strict=True))
    size = (channels, height, width)
    manifest = read_manifest(path)
    facts = manifest.facts if manifest else {}
    model = str(facts["model"]) if facts.get("model") else None
    kind = kind_of(path)
    made = Made(path, path.name, hash_file(path), size_bytes(path), _weights(path), _notes(path))
    if kind == "engine":
        made = replace(made, graph=_graph_of(path, manifest, workspace), tf32=facts.get("tf32"))
        chosen: list[str] = [engine_backend(path)]
    else:
        chosen = [name for name in backends if BACKENDS[name].takes == kind] or [DEFAULTS[kind]]
    precision = str(facts.get("precision", "fp32")).lower()
    opener = OpenArtifact(path, None, batch, size, threads, trust, cuda_graph)
    cells = [
        Cell(
            name_of(path),
            backend,
            _computed(backend, precision),
            batch,
            size,
            made,
            replace(opener, backend=backend),
            model=model,
            is_published=_is_published(model, facts, size),
            counted=_count(path, model, facts, size, batch),
        )
        for backend in chosen
    ]
    beside = _eager(path, manifest, workspace, cells[0], threads) if eager and kind == "graph" else None
    return [*cells, *([beside] if beside else [])]


@dataclass(frozen=True)
class LookAt:
    """Opens an artifact with its usual backend and tells what it takes: N, C, H and W, None where any size goes."""

    path: Path
    threads: int | None
    trust: bool
    cuda_graph: bool

    def __call__(self) -> tuple[int | None, ...]:
        from vexport.run import open_runner

        with open_runner(self.path, threads=self.threads, trust=self.trust, cuda_graph=self.cuda_graph) as runner:
            return runner.input_shape


def group_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that take turns with each other, in the order of first appearance."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return list(groups.values())


def name_of(path: Path) -> str:
    """What a file's network is called: its name without what vexport adds."""
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name or path.name


def _eager(
    graph: Path, manifest: Manifest | None, workspace: Workspace, cell: Cell, threads: int | None
) -> Cell | None:
    """PyTorch on the network that a graph was made from; None where it is not at hand."""
    if manifest is None or manifest.parent is None or cell.model is None or cell.precision != "fp32":
        return None
    parent, model = manifest.parent, cell.model
    opener = OpenArtifact(None, "pytorch", cell.batch, cell.input_size, threads, baseline=model, seed=RANDOM_SEED)
    if model in VARIANTS:
        found = workspace.newest(Checkpoint, lambda one: one.sha256 == parent.sha256)
        if found is None:
            return None
        path = found.path
        made = Made(path, path.name, found.sha256, size_bytes(path), _weights(path), _notes(path))
        opener = OpenArtifact(path, "pytorch", cell.batch, cell.input_size, threads)
    else:
        source = random_parent(model)
        made = Made(None, source.name, source.sha256, None, "random", (RANDOM_NOTE,))
    return Cell(
        cell.network,
        "pytorch",
        "fp32",
        cell.batch,
        cell.input_size,
        made,
        opener,
        model=model,
        is_published=cell.is_published,
        counted=cell.counted,
    )


def _graph_of(engine: Path, manifest: Manifest | None, workspace: Workspace) -> Path | None:
    """The graph that an engine was built from: beside it or in the workspace, known by its hash."""
    if manifest is None or manifest.parent is None:
        return None
    from vexport.engine.refit import find_parent_graph

    named = workspace.root / manifest.parent.name
    return find_parent_graph(engine, manifest, [named])


def _computed(backend: str, precision: str) -> str:
    """What a backend computes an artifact of a precision in."""
    if backend.endswith("-fp16"):
        return "fp16"
    return "bf16" if backend.endswith("-bf16") and precision == "fp32" else precision


def _weights(path: Path) -> Weights:
    return "random" if ".random" in path.name else "trained"


def _notes(path: Path) -> tuple[str, ...]:
    return (RANDOM_NOTE,) if _weights(path) == "random" else ()


def _is_published(model: str | None, facts: dict[str, Any], size: tuple[int, int, int]) -> bool:
    from vexport.model.baselines import BASELINES

    known = model in VARIANTS or model in BASELINES
    return known and model is not None and size == FULL_SIZE and is_published_size(facts, model)


def _count(
    path: Path, model: str | None, facts: dict[str, Any], size: tuple[int, int, int], batch: int
) -> dict[str, Any]:
    if model is not None and _is_published(model, facts, size):
        return count_network(model, size)
    return count_file(path, size, batch)
