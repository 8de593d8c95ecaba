"""FP32 graph to FP16 or BF16: measure, convert, prove, write."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Graph, Manifest, Preprocessing
from vexport.deps import tool_versions
from vexport.errors import InputError, ParityError
from vexport.pipeline.graphs import GraphSource
from vexport.workspace import Workspace, hash_file, require_clear, stage, up_to_date

if TYPE_CHECKING:
    import onnx

    from vexport.graph.precision import HalfPrecision
    from vexport.run.compare import Parity
    from vexport.run.runner import Array

LIBRARIES = ("onnx", "onnxruntime", "ml_dtypes")
# Activations of images that were not measured may be larger than those that were.
HEADROOM = 4.0
# Share of the given images that must keep their class. Of random images it is shown, not asked: within the tolerance
# only nearly tied classes can swap, and random images lie near the borders between classes more often than photographs.
LEAST_TOP1 = {"fp16": 0.99, "bf16": 0.95}
IMAGES = 32


@dataclass(frozen=True)
class ConvertResult:
    """A graph in 16 bits.

    Args:
        artifact: The graph; its manifest holds the ranges, what was kept in FP32, and the parity.
        up_to_date: Whether it was there already.
    """

    artifact: Graph
    up_to_date: bool

    @property
    def kept(self) -> dict[str, str]:
        """Nodes left in FP32, with the reason."""
        return dict(self.artifact.facts["kept_fp32"])

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.artifact.path),
            "up_to_date": self.up_to_date,
            "manifest": self.artifact.manifest.to_json(),
        }


def convert_graph(
    source: GraphSource,
    precision: HalfPrecision,
    *,
    workspace: Workspace,
    images: Path | None = None,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> ConvertResult:
    """Write the FP16 or BF16 graph of an FP32 graph, proven against it.

    Args:
        source: The FP32 graph.
        precision: `fp16` or `bf16`.
        workspace: Where the result goes.
        images: A folder of images on which activations are measured and answers compared; None takes random ones.
        force: Overwrite a file that vexport did not write.
        on_step: Told each step as it begins.

    Raises:
        InputError: the graph is not FP32.
        ParityError: the result does not agree; it has not been written then.
    """
    if source.precision != "fp32":
        raise InputError(f"{source.path} is {source.precision} already", hint="give the FP32 graph it was made from")
    target = workspace.root / f"{source.stem}.{precision}.onnx"
    options = {"precision": precision, "images": hash_images(images), "headroom": HEADROOM}
    versions = tool_versions(*LIBRARIES)
    done = up_to_date(Graph, target, parent=source.parent.sha256, options=options, versions=versions)
    if done is not None:
        return ConvertResult(done, True)
    require_clear(target, force=force)

    from vexport.graph.inspect import count_operators, count_parameters, read_graph
    from vexport.graph.precision import (
        convert_precision,
        largest,
        lift_constants,
        overflowing_nodes,
        weight_ranges,
    )
    from vexport.graph.write import write_graph
    from vexport.run.ranges import measure_ranges

    model = lift_constants(read_graph(source.path))
    name_nodes(model)
    batches = sample_batches(source, images)
    on_step("measuring activations")
    max_abs = measure_ranges(source.path, batches)
    kept = overflowing_nodes(model, max_abs, largest(precision) / HEADROOM)
    on_step(f"converting to {precision.upper()}")
    half = convert_precision(model, precision, keep=kept)
    stamp_provenance(half, source, precision)
    with stage(target, force=force) as staging:
        write_graph(half, staging.path)
        on_step("comparing with FP32")
        least_top1 = 0.0 if images is None else LEAST_TOP1[precision]
        compared = _parity(source.path, staging.path, half, precision, batches, least_top1)
        for _, parity in compared:
            _require(parity, precision)
        facts = source.facts | {
            "precision": precision,
            "batch": fixed_batch(model),
            "kept_fp32": kept,
            "weights": [row.to_json() for row in weight_ranges(model, precision)],
            "max_activation": max(max_abs.values(), default=0.0),
            "max_abs_by_tensor": max_abs,
            "operators": count_operators(half),
            "nodes": len(half.graph.node),
            "parameters": count_parameters(half),
            "opset": half.opset_import[0].version,
            "notes": [],
        }
        inputs = "random" if images is None else str(images)
        entries = [
            {"inputs": inputs, "with": source.path.name, "how": how, **parity.to_json()} for how, parity in compared
        ]
        artifact = staging.publish(
            Graph,
            lambda sha256, size: Manifest(
                "graph", sha256, size, source.parent, options, facts, parity=entries, versions=versions
            ),
        )
    return ConvertResult(artifact, False)


def hash_images(images: Path | None) -> str | None:
    """Hash of the images that are taken, so that others mean another request."""
    if images is None:
        return None
    from vexport.run.images import choose_images

    taken = [[path.relative_to(images).as_posix(), hash_file(path)] for path in choose_images(images, IMAGES)]
    return hashlib.sha256(json.dumps(taken).encode()).hexdigest()


def name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes that lack a name of their own one: what stays in FP32 is chosen by name."""
    names = Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if not node.name or names[node.name] > 1:
            node.name = f"{node.name or node.op_type}#{index}"


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch that a graph fixes; None where it is open. Weights may be listed among the inputs, as IR 3 asks."""
    weights = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in weights)
    first = image.type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField("dim_value") else None


def sample_batches(source: GraphSource, images: Path | None) -> list[Array]:
    """Images float32 (N, C, H, W) to measure and compare a graph on: from a folder, or random ones."""
    from vexport.run.compare import random_batches
    from vexport.run.images import load_images
    from vexport.run.ort import OrtRunner

    with OrtRunner(source.path) as runner:
        batch, *sides = runner.input_shape
    channels, height, width = (side or (3, 224, 224)[axis] for axis, side in enumerate(sides))
    if images is None:
        step = batch or 4
        return random_batches((channels, height, width), (step,) * max(1, 16 // step), seed=3)
    how = source.preprocessing or Preprocessing(input_size=(channels, height, width))
    loaded = load_images(images, how, max(IMAGES, batch or 0))
    if batch is None:
        return [loaded[start : start + 4] for start in range(0, len(loaded), 4)]
    if len(loaded) < batch:
        raise InputError(f"{len(loaded)} images do not fill the graph's batch of {batch}", hint="give more images")
    return [loaded[start : start + batch] for start in range(0, len(loaded) - batch + 1, batch)]


def stamp_provenance(graph: onnx.ModelProto, source: GraphSource, precision: str) -> None:
    """Provenance: what the FP32 graph says, with this parent and precision."""
    from vexport.graph.inspect import metadata
    from vexport.graph.write import stamp

    version = tool_versions()["vexport"]
    stamp(
        graph,
        metadata(graph)
        | {
            "vexport.model": str(source.facts["model"]),
            "vexport.parent": source.parent.name,
            "vexport.parent_sha256": source.parent.sha256,
            "vexport.precision": precision,
            "vexport.version": version,
        },
        version,
    )


def _parity(
    fp32: Path, half: Path, model: onnx.ModelProto, precision: HalfPrecision, batches: list[Array], least_top1: float
) -> list[tuple[str, Parity]]:
    """How the answers compare, and by which arithmetic; the 16-bit file itself is run where ONNX Runtime can."""
    from vexport.graph.precision import emulate_half
    from vexport.run.compare import TOLERANCES, compare
    from vexport.run.ort import OrtRunner

    ways: list[tuple[str, Path | bytes]] = [
        (f"FP32 arithmetic, every result rounded to {precision.upper()}", emulate_half(model).SerializeToString())
    ]
    if precision == "fp16":
        ways.append(("the file in ONNX Runtime on the CPU", half))
    found = []
    with OrtRunner(fp32) as reference:
        for how, graph in ways:
            with OrtRunner(graph) as other:
                found.append((how, compare(reference, other, batches, TOLERANCES[precision], least_top1=least_top1)))
    return found


def _require(parity: Parity, precision: str) -> None:
    if parity.passed:
        return
    raise ParityError(
        f"the {precision.upper()} graph disagrees with the FP32 graph",
        details=[
            f"max|y - y'| / max|y| is {parity.max_rel:.2e}, the tolerance {parity.tolerance:.0e}",
            f"top-1 agrees on {parity.top1_agreement:.1%} of {parity.images} images"
            + (f", {parity.least_top1:.0%} are asked" if parity.least_top1 else ""),
        ],
        hint="give real images with --images, or build with --bf16 or --fp32",
    )
