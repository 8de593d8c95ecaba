"""A Triton Inference Server model repository from an engine or a graph, with the evidence beside it."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vexport.artifacts import Artifact, Engine, Preprocessing
from vexport.errors import InputError, WorkspaceError
from vexport.pipeline.resolve import stem_of
from vexport.workspace import mapped_os_errors, read_manifest, require_file

EVIDENCE = "vexport.json"


def write_triton(engine: Engine, graph: Path, folder: Path, *, force: bool = False) -> tuple[Path, tuple[str, ...]]:
    """Write one model of a Triton model repository.

    Triton's TensorRT backend opens plans of classic TensorRT only. For a plan of TensorRT for RTX the graph is written
    instead, for the ONNX Runtime backend.

    Args:
        engine: The engine.
        graph: The graph that it was built from.
        folder: The model repository; the model gets a folder of its own in it.
        force: Replace a model that vexport did not write.

    Returns:
        The model's folder, and what the reader should know.

    Raises:
        WorkspaceError: a model of that name that vexport did not write is there, or the folder cannot be written.
        InputError: the graph is gone.
    """
    from vexport.graph.inspect import read_graph
    from vexport.graph.write import copy_graph

    require_file(graph, "graph")
    name = stem_of(graph).replace(".", "_").replace(" ", "_")
    target = folder / name
    as_plan = engine.facts["runtime"]["name"] == "tensorrt" and not engine.facts["stripped"]
    notes = [] if as_plan else [_why_graph(engine)]
    tensors = read_graph(graph, with_weights=False).graph
    labels = engine.facts.get("class_names")
    config = render_config(name, tensors, engine.facts, as_plan=as_plan, labels=bool(labels))
    with mapped_os_errors(target):
        _require_ours(target, force)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vexport-", dir=folder.absolute().parent) as scratch:
            draft = Path(scratch) / name
            (draft / "1").mkdir(parents=True)
            if as_plan:
                shutil.copyfile(engine.path, draft / "1" / "model.plan")
            else:
                copy_graph(graph, draft / "1" / "model.onnx")
            (draft / "config.pbtxt").write_text(config, encoding="utf-8")
            if labels:
                (draft / "labels.txt").write_text("\n".join(str(label) for label in labels) + "\n", encoding="utf-8")
            (draft / "PREPROCESSING.md").write_text(describe_preprocessing(engine.facts), encoding="utf-8")
            (draft / EVIDENCE).write_text(_evidence(engine, graph), encoding="utf-8")
            _swap(draft, target)
    if not labels:
        notes.append("no labels.txt: the class names are not known")
    return target, tuple(notes)


def _why_graph(engine: Artifact) -> str:
    if engine.facts["stripped"]:
        return "Triton refits no stripped plans: the graph was written, for its ONNX Runtime backend"
    return (
        "Triton's TensorRT backend opens no plans of TensorRT for RTX: the graph was written, for its ONNX Runtime "
        "backend; build with --runtime tensorrt on the GPU to serve a plan"
    )


def render_config(name: str, graph: Any, facts: dict[str, Any], *, as_plan: bool, labels: bool) -> str:
    """The text of `config.pbtxt`, as in Triton's model configuration documentation.

    Args:
        name: Of the model, which is its folder's.
        graph: The ONNX GraphProto, for the names of its input and output.
        facts: The engine's, for its profile.
        as_plan: `tensorrt_plan` rather than `onnxruntime_onnx`.
        labels: Whether there is a labels.txt.
    """
    least, most = facts["profile"]["min"], facts["profile"]["max"]
    open_batch = not graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    classes = _classes(graph, facts)
    # max_batch_size 0 tells Triton that the shapes below hold the batch already.
    lines = [
        f'name: "{name}"',
        f'platform: "{"tensorrt_plan" if as_plan else "onnxruntime_onnx"}"',
        f"max_batch_size: {most[0] if open_batch else 0}",
        *_tensor("input", graph.input[0].name, most[1:] if open_batch else most, None),
        *_tensor(
            "output",
            graph.output[0].name,
            [classes] if open_batch else [most[0], classes],
            "labels.txt" if labels else None,
        ),
        "instance_group [ { kind: KIND_GPU count: 1 } ]",
    ]
    if open_batch and least[0] == 1 and most[0] > 1:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 0 }")
    return "\n".join(lines) + "\n"


def _classes(graph: Any, facts: dict[str, Any]) -> int:
    last = graph.output[0].type.tensor_type.shape.dim
    if len(last) == 2 and last[1].dim_value > 0:
        return int(last[1].dim_value)
    if "num_classes" in facts:
        return int(facts["num_classes"])
    raise InputError("the graph does not say how many classes it has", hint="export it with `vexport onnx`")


def _tensor(side: str, name: str, dims: Sequence[int], labels: str | None) -> list[str]:
    label = f'\n    label_filename: "{labels}"' if labels else ""
    sizes = ", ".join(str(dim) for dim in dims)
    return [f'{side} [\n  {{\n    name: "{name}"\n    data_type: TYPE_FP32\n    dims: [ {sizes} ]{label}\n  }}\n]']


def describe_preprocessing(facts: dict[str, Any]) -> str:
    """What a client has to do with an image before it sends it, and what comes back."""
    if "preprocessing" not in facts:
        return "# Input\n\nThe graph does not say how its images are prepared. Ask whoever trained it.\n"
    how = Preprocessing.from_json(facts["preprocessing"])
    channels, height, width = how.input_size
    resized = math.floor(height / how.crop_pct)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    return (
        "# Input\n\n"
        f"float32, channels first: N x {channels} x {height} x {width}, {'RGB' if channels == 3 else 'grey'}.\n\n"
        f"1. Resize the shorter side to {resized} pixels ({how.interpolation}, antialiased).\n"
        f"2. Crop the centre, {height} x {width}.\n"
        "3. Divide by 255.\n"
        f"4. Subtract the mean ({mean}) and divide by the standard deviation ({std}), channel by channel.\n\n"
        "# Output\n\nfloat32 logits, N x classes, before softmax.\n"
    )


def _evidence(engine: Artifact, graph: Path) -> str:
    """The manifests of the engine and the graph: hashes, precision, parity."""
    beside = read_manifest(graph)
    return json.dumps(
        {
            "tool": "vexport",
            "engine": engine.manifest.to_json(),
            "graph": beside.to_json() if beside else None,
        },
        indent=2,
    )


def _require_ours(target: Path, force: bool) -> None:
    if target.exists() and not (target / EVIDENCE).is_file() and not force:
        raise WorkspaceError(
            f"{target} is in the way: it was not written by vexport", hint="name another folder, or give --force"
        )


def _swap(draft: Path, target: Path) -> None:
    """Put a folder where another may be: the old one steps aside until the new one stands."""
    aside = draft.with_name(".replaced")
    if target.exists():
        target.rename(aside)
    try:
        draft.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
