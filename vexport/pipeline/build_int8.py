"""What an INT8 engine needs besides: FP16 for the rest, the choice on depthwise layers, and what it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vexport.engine.int8 import Int8Plan
from vexport.errors import EngineError, InputError
from vexport.pipeline.convert import ConvertResult
from vexport.pipeline.depthwise import DepthwiseOption, asked_and_chosen, choose_by_time, not_measured, recorded_choice
from vexport.pipeline.graphs import GraphSource
from vexport.pipeline.half_rest import Depthwise, derive_half_rest
from vexport.workspace import Workspace

if TYPE_CHECKING:
    import onnx

    from vexport.engine.runtime import TensorRT
    from vexport.pipeline.build import BuildResult

COMPUTING = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Int8Ready:
    """A graph that an INT8 engine is built from.

    Args:
        graph: The graph; its facts say which layers are INT8, with their scales, and how depthwise ones were chosen.
        converted: The graph with FP16 for the rest, where it was made on the way.
        plan: What the engine is held to; None where TensorRT chooses types itself.
        notes: What the reader should know.
    """

    graph: GraphSource
    converted: ConvertResult | None
    plan: Int8Plan | None
    notes: tuple[str, ...]


def prepare_int8(
    source: GraphSource,
    asked: DepthwiseOption,
    *,
    workspace: Workspace,
    engine: Path,
    runtime: TensorRT,
    can_run: bool,
    build: Callable[[Depthwise, Path], BuildResult],
    options: Mapping[str, Any] = MappingProxyType({}),
    images: Path | None = None,
    force: bool = False,
    on_progress: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> Int8Ready:
    """Give FP16 to what is not INT8, and choose what depthwise convolutions compute in.

    Args:
        source: The INT8 graph.
        asked: Whether depthwise convolutions compute in INT8; `auto` measures.
        workspace: Where the graph is written.
        engine: Where the engine will stand; what was measured for one that stands there is taken from it.
        runtime: Which TensorRT.
        can_run: Whether the engine will run on the GPU at hand.
        build: Builds the engine with depthwise INT8 `on` or `off` into a file.
        options: Of the builder: what was measured with others does not count.
        images: See `derive_half_rest`.
        force: Overwrite a file that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: the choice does not fit the graph.
        EngineError: this TensorRT leaves no choice.
        ParityError: with FP16 the graph answers otherwise.
    """
    from vexport.graph.half_rest import depthwise_convs, int8_convs
    from vexport.graph.inspect import read_graph

    model = read_graph(source.path)
    if not runtime.strongly_typed:
        if asked == "off":
            raise EngineError(
                f"{runtime.name} {runtime.version} chooses the types between INT8 layers itself",
                hint="leave --int8-depthwise out, or install TensorRT 10",
            )
        return Int8Ready(_with_layers(source, model, asked_and_chosen(asked, "on")), None, None, ())
    if is_half(model):
        if asked != "auto":
            raise InputError(
                f"{source.path} has FP16 around its INT8 layers already, and its depthwise layers are chosen",
                hint="leave --int8-depthwise out, or give the INT8 graph that it was made from",
            )
        told = asked_and_chosen(asked, _depthwise_of(model), reason="as in the graph that was given")
        return Int8Ready(_with_layers(source, model, told), None, plan_of(model), ())
    notes: tuple[str, ...] = ()
    if not set(depthwise_convs(model)) & set(int8_convs(model)):
        told = asked_and_chosen(asked, "off", reason="no depthwise convolution of the graph is INT8")
    elif asked != "auto":
        told = asked_and_chosen(asked, asked)
    elif not can_run:
        told = not_measured("the engine does not run on this machine")
        notes = ("--int8-depthwise auto: not measured here, left in FP16, the default; measure on the GPU it is for",)
    else:
        of = {"graph": source.parent.sha256, "runtime": runtime.to_json(), "options": dict(options)}
        told = recorded_choice(engine, of) or choose_by_time(build, on_progress=on_progress) | {"of": of}
    converted = derive_half_rest(
        source,
        told["chosen"],
        workspace=workspace,
        images=images,
        force=force,
        on_step=lambda text: on_progress(text, None),
    )
    graph = converted.artifact
    facts = {**source.facts, "kept_fp32": converted.kept, "taken_out": graph.facts["taken_out"]}
    for key in ("int8_graph", "gate_of_rest"):
        if key in graph.facts:
            facts[key] = graph.facts[key]
    notes = (*notes, *graph.facts["notes"])
    made = GraphSource(graph.path, graph.as_parent(), "int8", facts, source.took)
    model = read_graph(graph.path)
    return Int8Ready(_with_layers(made, model, told), converted, plan_of(model), notes)


def is_half(model: onnx.ModelProto) -> bool:
    """Whether what lies between Q/DQ nodes is FP16."""
    from vexport.graph.quantize import DQ, Q

    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == 10}  # TensorProto.FLOAT16
    return any(node.op_type in (Q, DQ) and node.input[1] in half for node in model.graph.node)


def plan_of(model: onnx.ModelProto) -> Int8Plan:
    """What a Q/DQ graph says its computing nodes compute in."""
    from vexport.graph.half_rest import int8_convs
    from vexport.graph.quantize import DQ

    int8 = int8_convs(model)
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == DQ}
    others = [
        node.name
        for node in model.graph.node
        # Matrix products on INT8, as other tools write them, are for TensorRT to fuse or not.
        if node.op_type in COMPUTING and node.name not in int8 and not set(node.input[:2]) <= dequantised
    ]
    return Int8Plan(tuple(int8), tuple(others), "fp16" if is_half(model) else "fp32")


def _depthwise_of(model: onnx.ModelProto) -> Depthwise:
    from vexport.graph.half_rest import depthwise_convs, int8_convs

    return "on" if set(depthwise_convs(model)) & set(int8_convs(model)) else "off"


def _with_layers(source: GraphSource, model: onnx.ModelProto, depthwise: dict[str, Any]) -> GraphSource:
    """With what the graph itself says of its INT8 layers."""
    from vexport.graph.quantize import conv_edges

    edges = conv_edges(model)
    facts = source.facts | {
        "rest": "fp16" if is_half(model) else "fp32",
        "int8_depthwise": depthwise,
        "layers": [one.to_json() for one in edges],
        "int8_layers": [one.node for one in edges if one.quantised],
    }
    return GraphSource(source.path, source.parent, "int8", facts, source.took)
