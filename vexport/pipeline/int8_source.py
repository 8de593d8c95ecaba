"""Which INT8 graph an engine is built from: one that is there, or one that is quantised on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vexport.artifacts import Checkpoint, Graph
from vexport.errors import InputError
from vexport.pipeline.graphs import GraphSource, find_graph
from vexport.pipeline.recorded import is_calibrated_on, recorded_labels, recorded_options
from vexport.pipeline.resolve import Weights, require_model
from vexport.workspace import Workspace, hash_file

if TYPE_CHECKING:
    from vexport.pipeline.quantize import QuantizeResult

HINT = "give --calib DIR with images to quantise it on the way, or quantise it first: `vexport quantize --calib DIR`"


@dataclass(frozen=True)
class Int8Source:
    """An INT8 graph, and how it came about.

    Args:
        graph: The graph.
        quantised: What quantising it now did; None for one that was there.
        notes: What the reader should know.
    """

    graph: GraphSource
    quantised: QuantizeResult | None = None
    notes: tuple[str, ...] = ()


def find_int8_graph(
    path: Path | None,
    *,
    workspace: Workspace,
    calib: Path | None = None,
    model: str | None = None,
    weights: Weights | None = None,
    force: bool = False,
    on_progress: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> Int8Source:
    """Find the INT8 graph to build; quantise an FP32 graph where there is none of it.

    In this order: an INT8 graph that is named; the INT8 graph of an FP32 graph, or of a checkpoint's, that is named;
    the newest INT8 graph of the workspace, or that of its newest FP32 graph. Where that is not there, or was calibrated
    on other images than `calib` holds now, the FP32 graph is quantised; again, with the options of the time before.

    Args:
        path: What the user named: a graph, or a checkpoint to export.
        workspace: Where graphs are found and made.
        calib: Images to calibrate on.
        model: The network, if asked for.
        weights: `pretrained` or `random`, if asked for.
        force: Overwrite files that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: there is none, and no images to calibrate one on.
        GateError: quantised it is not as good as it must be.
    """
    require_model(model)
    fp32 = None
    if path is not None and path.suffix.lower() == ".onnx":
        named = find_graph(path, workspace=workspace, model=model, weights=weights)
        if named.precision == "int8":
            return Int8Source(named, notes=_unused(calib, named))
        if named.precision != "fp32":
            raise InputError(
                f"{path} is {named.precision}, the engine shall be int8",
                hint=f"build it with --{named.precision}, or give the FP32 graph that it was made from",
            )
        fp32 = named.parent.sha256
        missing = f"{path} is fp32, the engine shall be int8"
    elif path is None and weights is None:
        newest = workspace.newest(Graph, lambda graph: _fits(graph) and model in (None, graph.model))
        missing = f"there is no int8 graph in {workspace.root}"
        if newest is not None and newest.precision == "int8":
            fits = calib is None or is_calibrated_on(newest, calib)
            before = None if fits else _parent(newest, workspace)
            if before is None:
                return _take(newest, f"{newest.path}, the newest", workspace, None if fits else calib)
            newest = before
        if newest is not None:
            fp32, path = newest.sha256, newest.path
            missing += f" of {newest.path.name}"
    else:
        missing = f"{path or model or 'what --weights gives'} is not quantised"
        exported = _exported(path, workspace) if path is not None and weights is None and path.is_file() else None
        if exported is not None and model in (None, exported.model):
            # As it was exported then: exporting it anew would take the defaults.
            fp32, path = exported.sha256, exported.path
    there = workspace.newest(Graph, lambda graph: _is_of(graph, fp32)) if fp32 else None
    if there is not None and (calib is None or is_calibrated_on(there, calib)):
        return _take(there, f"{there.path}, made from {path}", workspace)
    if calib is None:
        raise InputError(missing, hint=HINT)
    from vexport.pipeline.quantize import quantize_graph

    again = () if there is None else (f"{there.path.name} was calibrated on other images: made anew, as asked then",)
    made = quantize_graph(
        path,
        workspace=workspace,
        calib=calib,
        options=recorded_options(there) if there is not None else None,
        evaluate_on=recorded_labels(there) if there is not None else None,
        model=model,
        weights=weights,
        force=force,
        on_progress=on_progress,
    )
    graph = find_graph(made.artifact.path, workspace=workspace)
    took = f"{made.artifact.path}, quantised {'before' if made.up_to_date else 'just now'} from {made.took}"
    return Int8Source(GraphSource(graph.path, graph.parent, graph.precision, graph.facts, took), made, again)


def _fits(graph: Graph) -> bool:
    """FP32 graphs and INT8 graphs as quantising gives them, not what engines are built from."""
    return graph.precision in ("fp32", "int8") and "rest" not in graph.facts


def _is_of(graph: Graph, fp32: str) -> bool:
    parent = graph.manifest.parent
    return graph.precision == "int8" and "rest" not in graph.facts and parent is not None and parent.sha256 == fp32


def _parent(graph: Graph, workspace: Workspace) -> Graph | None:
    """The FP32 graph that an INT8 graph was made from, where the workspace has it."""
    parent = graph.manifest.parent
    return workspace.newest(Graph, lambda one: parent is not None and one.sha256 == parent.sha256)


def _exported(checkpoint: Path, workspace: Workspace) -> Graph | None:
    """The newest FP32 graph of a checkpoint that has an INT8 graph; it may have been merged on the way."""
    sha256 = hash_file(checkpoint)

    def is_merged(one: Checkpoint, deployed: str) -> bool:
        return one.sha256 == deployed and one.manifest.parent is not None and one.manifest.parent.sha256 == sha256

    def is_exported(graph: Graph) -> bool:
        parent = graph.manifest.parent
        if graph.precision != "fp32" or parent is None:
            return False
        if workspace.newest(Graph, lambda one: _is_of(one, graph.sha256)) is None:
            return False
        if parent.sha256 == sha256:
            return True
        return workspace.newest(Checkpoint, lambda one: is_merged(one, parent.sha256)) is not None

    return workspace.newest(Graph, is_exported)


def _take(graph: Graph, took: str, workspace: Workspace, unused: Path | None = None) -> Int8Source:
    found = find_graph(graph.path, workspace=workspace)
    named = GraphSource(found.path, found.parent, found.precision, found.facts, took)
    return Int8Source(named, notes=_unused(unused, named))


def _unused(calib: Path | None, graph: GraphSource) -> tuple[str, ...]:
    if calib is None:
        return ()
    return (f"{graph.path.name} is INT8 already: the images of --calib are not used",)
