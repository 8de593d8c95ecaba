"""Which INT8 graph an engine is built from: one that is there, or one that is quantised on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vexport.artifacts import Graph, Preprocessing
from vexport.errors import InputError
from vexport.pipeline.graphs import GraphSource, find_graph
from vexport.pipeline.resolve import Weights, require_model, stem_of
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.pipeline.calibration import QuantizeOptions
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

    In this order: an INT8 graph that is named; the INT8 graph of an FP32 graph that is named; the newest INT8 graph of
    the workspace, or that of its newest FP32 graph. Where that is not there, or was calibrated on other images than
    `calib`, the FP32 graph is quantised.

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
            before = _parent(newest, workspace) if calib is not None and not _calibrated_on(newest, calib) else None
            if before is None:
                return _take(newest, f"{newest.path}, the newest", workspace, calib)
            newest = before
        if newest is not None:
            fp32, path = newest.sha256, newest.path
            missing += f" of {newest.path.name}"
    else:
        missing = f"{path or model or 'what --weights gives'} is not quantised"
        if path is not None and (workspace.root / f"{stem_of(path)}.int8.onnx").is_file():
            # A checkpoint that was quantised before: its FP32 graph leads to what was made then.
            source = find_graph(path, workspace=workspace, model=model, weights=weights, force=force)
            fp32, path = source.parent.sha256, source.path
    there = workspace.newest(Graph, lambda graph: _is_of(graph, fp32)) if fp32 else None
    if there is not None and (calib is None or _calibrated_on(there, calib)):
        return _take(there, f"{there.path}, made from {path}", workspace, calib)
    if calib is None:
        raise InputError(missing, hint=HINT)
    from vexport.pipeline.quantize import quantize_graph

    # With other images in the same place it is quantised again as it was asked for then.
    options = _options(there) if there is not None and _from_there(there, calib) else None
    made = quantize_graph(
        path,
        workspace=workspace,
        calib=calib,
        options=options,
        model=model,
        weights=weights,
        force=force,
        on_progress=on_progress,
    )
    graph = find_graph(made.artifact.path, workspace=workspace)
    took = f"{made.artifact.path}, quantised {'before' if made.up_to_date else 'just now'} from {made.took}"
    return Int8Source(GraphSource(graph.path, graph.parent, graph.precision, graph.facts, took), made)


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


def _from_there(graph: Graph, calib: Path) -> bool:
    """Whether it was calibrated on a folder or file of that name."""
    told = graph.facts.get("calibration", {}).get("path")
    return told is not None and Path(told).resolve() == calib.resolve()


def _calibrated_on(graph: Graph, calib: Path) -> bool:
    """Whether it was calibrated there, on the images that are there now: it is what quantising again would give."""
    if not _from_there(graph, calib):
        return False
    from vexport.run.image_sets import open_images

    entries = [entry for entry in graph.facts["calibration"]["images"] if entry["sha256"] is not None]
    names = [str(entry["name"]) for entry in entries]
    how = Preprocessing.from_json(graph.facts["preprocessing"])
    with open_images(calib, how) as found:
        if not set(names) <= set(found.names):
            return False
        found.fetch(names)
        return all(found.sha256(entry["name"]) == entry["sha256"] for entry in entries)


def _options(graph: Graph) -> QuantizeOptions:
    """What the graph was quantised with."""
    from vexport.pipeline.calibration import QuantizeOptions

    told = {one.name: graph.manifest.options[one.name] for one in fields(QuantizeOptions)}
    return QuantizeOptions(**(told | {"keep": tuple(told["keep"])}))


def _take(graph: Graph, took: str, workspace: Workspace, calib: Path | None) -> Int8Source:
    found = find_graph(graph.path, workspace=workspace)
    named = GraphSource(found.path, found.parent, found.precision, found.facts, took)
    return Int8Source(named, notes=() if calib and _calibrated_on(graph, calib) else _unused(calib, named))


def _unused(calib: Path | None, graph: GraphSource) -> tuple[str, ...]:
    if calib is None:
        return ()
    return (f"{graph.path.name} is INT8 already: the images of --calib are not used",)
