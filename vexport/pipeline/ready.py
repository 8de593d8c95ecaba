"""The graph that an engine is built from: found, and made in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.engine.build import BuildOptions
from vexport.engine.int8 import Int8Plan
from vexport.errors import InputError
from vexport.pipeline.build_int8 import prepare_int8
from vexport.pipeline.convert import ConvertResult, convert_graph
from vexport.pipeline.depthwise import DepthwiseOption
from vexport.pipeline.graphs import GraphSource, find_graph
from vexport.pipeline.int8_source import find_int8_graph
from vexport.pipeline.resolve import Weights
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.engine.runtime import TensorRT
    from vexport.pipeline.build import BuildResult
    from vexport.pipeline.half_rest import Depthwise
    from vexport.pipeline.quantize import QuantizeResult

Precision = Literal["fp32", "fp16", "bf16", "int8"]
OnProgress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Request:
    """Which graph is asked for.

    Args:
        graph: The .onnx file, or a checkpoint to export; None looks in the workspace.
        precision: Of the engine.
        workspace: Where graphs are found and made.
        model: A variant or a baseline.
        weights: `pretrained` or `random` in place of a file.
        images: On which activations are measured and answers compared.
        force: Overwrite a file that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.
    """

    graph: Path | None
    precision: Precision
    workspace: Workspace
    model: str | None
    weights: Weights | None
    images: Path | None
    force: bool
    on_progress: OnProgress


@dataclass(frozen=True)
class Int8Request:
    """What else an INT8 engine depends on.

    Args:
        calib: Images to quantise an FP32 graph on.
        depthwise: Whether depthwise convolutions compute in INT8.
        runtime: Which TensorRT.
        can_run: Whether the engine will run on the GPU at hand.
        build: Builds the engine of a graph, with depthwise INT8 `on` or `off`, into a file.
        options: Of the builder.
    """

    calib: Path | None
    depthwise: DepthwiseOption
    runtime: TensorRT
    can_run: bool
    build: Callable[[Path, Depthwise, Path], BuildResult]
    options: dict[str, Any]


@dataclass(frozen=True)
class ReadyGraph:
    """A graph in the precision asked for.

    Args:
        graph: The graph.
        engine: Where its engine goes.
        converted: How its types were made, where that was needed.
        quantised: How it was quantised, where that was needed.
        int8: What an INT8 engine is held to.
        notes: What the reader should know.
    """

    graph: GraphSource
    engine: Path
    converted: ConvertResult | None = None
    quantised: QuantizeResult | None = None
    int8: Int8Plan | None = None
    notes: tuple[str, ...] = ()

    @property
    def depthwise(self) -> dict[str, Any] | None:
        """What an INT8 engine's request says of depthwise layers: also whether that was measured."""
        told = self.graph.facts.get("int8_depthwise") if self.graph.precision == "int8" else None
        return {"asked": told["asked"], "measured": told["measured"]} if told else None


def ready_graph(asked: Request, int8: Int8Request, name_engine: Callable[[str], Path]) -> ReadyGraph:
    """Find the graph and make it in the precision asked for.

    Args:
        asked: Which.
        int8: What else INT8 needs.
        name_engine: The engine's file, from the graph's stem.

    Raises:
        VexportError: there is none, or it cannot be made.
    """
    if asked.precision == "int8":
        return _ready_int8(asked, int8, name_engine)
    source = find_graph(
        asked.graph,
        workspace=asked.workspace,
        model=asked.model,
        weights=asked.weights,
        force=asked.force,
        on_step=lambda text: asked.on_progress(text, None),
    )
    return _in_precision(source, asked, name_engine(source.stem))


def _ready_int8(asked: Request, int8: Int8Request, name_engine: Callable[[str], Path]) -> ReadyGraph:
    found = find_int8_graph(
        asked.graph,
        workspace=asked.workspace,
        calib=int8.calib,
        model=asked.model,
        weights=asked.weights,
        force=asked.force,
        on_progress=asked.on_progress,
    )
    engine = name_engine(found.graph.stem)
    made = prepare_int8(
        found.graph,
        int8.depthwise,
        workspace=asked.workspace,
        engine=engine,
        runtime=int8.runtime,
        can_run=int8.can_run,
        build=lambda depthwise, file: int8.build(found.graph.path, depthwise, file),
        options=int8.options,
        images=asked.images,
        force=asked.force,
        on_progress=asked.on_progress,
    )
    return ReadyGraph(made.graph, engine, made.converted, found.quantised, made.plan, notes=(*found.notes, *made.notes))


def _in_precision(source: GraphSource, asked: Request, engine: Path) -> ReadyGraph:
    """The graph in FP32, FP16 or BF16."""
    precision = asked.precision
    if source.precision == precision:
        return ReadyGraph(source, engine)
    if precision == "fp32" or source.precision != "fp32":
        raise InputError(
            f"{source.path} is {source.precision}, the engine shall be {precision}",
            hint=f"build it with --{source.precision}, or give the FP32 graph that it was made from",
        )
    half: Literal["fp16", "bf16"] = "fp16" if precision == "fp16" else "bf16"
    converted = convert_graph(
        source,
        half,
        workspace=asked.workspace,
        images=asked.images,
        force=asked.force,
        on_step=lambda text: asked.on_progress(text, None),
    )
    graph = converted.artifact
    facts = {**source.facts, "kept_fp32": converted.kept}
    return ReadyGraph(GraphSource(graph.path, graph.as_parent(), precision, facts, source.took), engine, converted)


def fit_fixed_batch(asked: BuildOptions, graph: Path) -> BuildOptions:
    """Where a graph fixes its batch, what was left open of the profile is that batch.

    Raises:
        InputError: the graph takes no batch of images, or another one than is asked for.
    """
    from vexport.graph.inspect import read_graph

    shape = read_graph(graph, with_weights=False).graph
    weights = {tensor.name for tensor in shape.initializer}
    axes = [value.type.tensor_type.shape.dim for value in shape.input if value.name not in weights]
    if len(axes) != 1 or len(axes[0]) != 4:
        raise InputError(
            f"{graph} does not take one batch of images", hint="one input with 4 axes: images, channels, H and W"
        )
    first = axes[0][0]
    if not first.HasField("dim_value") or first.dim_value < 1:
        return asked
    batch = first.dim_value
    given = (asked.min_batch, asked.opt_batch, asked.max_batch)
    least, tuned, most = (batch if side is None else side for side in given)
    if (least, tuned, most) != (batch, batch, batch):
        raise InputError(
            f"the graph's batch is fixed to {batch}", hint="leave the batches out, or export it with an open batch"
        )
    return replace(asked, min_batch=batch, opt_batch=batch, max_batch=batch)
