"""A graph to a file, with its provenance."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from vexport.errors import ExportError
from vexport.graph.inspect import is_large, read_graph
from vexport.workspace import external_data_path


def stamp(model: onnx.ModelProto, props: Mapping[str, str], version: str) -> None:
    """Write provenance into a graph, in place: producer and metadata_props."""
    model.producer_name, model.producer_version = "vexport", version
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = props.get("vexport.model", "graph")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(props))


def copy_graph(source: Path, target: Path) -> None:
    """Copy a graph with its external data, whatever that is called, so that the copy finds it.

    Raises:
        InputError: the graph is damaged, or its data is missing.
    """
    header = onnx.load(source, load_external_data=False)
    if not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in header.graph.initializer):
        shutil.copyfile(source, target)
        return
    location = external_data_path(target).name
    onnx.save_model(read_graph(source), target, save_as_external_data=True, location=location, size_threshold=1024)


def write_graph(model: onnx.ModelProto, path: Path, *, external: bool | None = None) -> None:
    """Check a graph and write it.

    Args:
        model: Its weights move into the external file where there is one.
        path: Where to write. External data goes beside it, to `<path>.data`, and is found by name.
        external: Whether the weights go into a file of their own; None: only above protobuf's 2 GB.

    Raises:
        ExportError: onnx's checker refuses the graph.
    """
    if external or (external is None and is_large(model)):
        data = external_data_path(path)
        onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    else:
        onnx.save_model(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "onnx's checker refuses the graph",
            details=[str(error).splitlines()[0]],
            hint="this is a bug: please report it",
        ) from error
