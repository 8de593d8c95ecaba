"""Which graph a command works on: an explicit path, the workspace's newest, or one exported on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.artifacts import Graph, Parent, Preprocessing
from vexport.errors import InputError
from vexport.pipeline.export import ExportResult, export_graph
from vexport.pipeline.resolve import Weights, require_model, stem_of
from vexport.workspace import Workspace, hash_file, load_artifact, require_file

# What is handed on from an INT8 graph to all that is made from it.
QUANTISED = ("int8_graph", "gate_of_rest")


@dataclass(frozen=True)
class GraphSource:
    """A graph to work on.

    Args:
        path: The .onnx file.
        parent: Its name and hash, for manifests.
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        facts: What it says of its network, where known: `model`, `num_classes`, `preprocessing`, `class_names`,
            `kept_fp32`, `calibration`.
        took: Why it was taken, in words.
        exported: How it was made, where it was made just now.
    """

    path: Path
    parent: Parent
    precision: str
    facts: dict[str, Any]
    took: str
    exported: ExportResult | None = None

    @property
    def stem(self) -> str:
        return stem_of(self.path)

    @property
    def preprocessing(self) -> Preprocessing | None:
        data = self.facts.get("preprocessing")
        return Preprocessing.from_json(data) if data else None


def find_graph(
    path: Path | None,
    *,
    workspace: Workspace,
    model: str | None = None,
    weights: Weights | None = None,
    precisions: Collection[str] = ("fp32",),
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> GraphSource:
    """Find the graph that a command works on; export it first where there is none.

    Args:
        path: What the user named: a graph, or a checkpoint to export.
        workspace: Where the newest fitting graph is looked for.
        model: The network, if asked for.
        weights: `pretrained` or `random`, if asked for.
        precisions: Which graphs of the workspace fit; an explicit path may have any precision.
        force: Overwrite files that vexport did not write.
        on_step: Told each step as it begins.

    Raises:
        VexportError: nothing is named and nothing fits, or the export fails.
    """
    require_model(model)
    if path is not None and weights is not None:
        raise InputError("a path and --weights exclude each other", hint="leave one of them out")
    if path is not None and path.suffix.lower() == ".onnx":
        return _from_file(path, model)
    if path is None and weights is None:
        found = workspace.newest(Graph, lambda g: g.precision in precisions and model in (None, g.model))
        if found is not None:
            return _source(found.path, found.as_parent(), found.precision, found.facts, f"{found.path}, the newest")
    if path is None and "fp32" not in precisions:
        raise InputError(
            f"there is no {' or '.join(precisions)} graph in {workspace.root}",
            hint="make one with `vexport quantize --calib DIR`" if "int8" in precisions else "give the path of one",
        )
    exported = export_graph(path, workspace=workspace, model=model, weights=weights, force=force, on_step=on_step)
    graph = exported.artifact
    return _source(graph.path, graph.as_parent(), graph.precision, graph.facts, exported.took, exported)


def _source(
    path: Path, parent: Parent, precision: str, facts: dict[str, Any], took: str, exported: ExportResult | None = None
) -> GraphSource:
    known = ("model", "num_classes", "preprocessing", "class_names", "kept_fp32", "calibration", *QUANTISED)
    told: dict[str, Any] = {key: facts[key] for key in known if key in facts}
    return GraphSource(path, parent, precision, told, took, exported)


def _from_file(path: Path, model: str | None) -> GraphSource:
    """A graph that the user named; what its manifest does not say is read from the file."""
    require_file(path, "graph")
    artifact = load_artifact(path)
    if isinstance(artifact, Graph):
        _require_same(path, model, artifact.model)
        return _source(path, artifact.as_parent(), artifact.precision, artifact.facts, str(path))

    from vexport.graph.inspect import metadata, read_graph
    from vexport.graph.precision import graph_precision

    graph = read_graph(path)
    props = metadata(graph)
    facts: dict[str, Any] = {"model": props.get("vexport.model", stem_of(path))}
    if "vexport.model" in props:
        _require_same(path, model, props["vexport.model"])
    try:
        if "vexport.preprocessing" in props:
            facts["preprocessing"] = json.loads(props["vexport.preprocessing"])
            Preprocessing.from_json(facts["preprocessing"])
        if "vexport.class_names" in props:
            facts["class_names"] = json.loads(props["vexport.class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the metadata of {path} is damaged", details=[str(error)], hint="export it again") from error
    return _source(path, Parent(path.name, hash_file(path)), graph_precision(graph), facts, str(path))


def _require_same(path: Path, wanted: str | None, found: str | None) -> None:
    if wanted is not None and found is not None and wanted != found:
        raise InputError(
            f"{path} is a graph of {found}, not of {wanted}", hint="leave --model out, or name another file"
        )
