"""Layer by layer: where two artifacts of one network begin to differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexport.errors import EngineError, InputError
from vexport.run.runner import Array
from vexport.workspace import read_manifest

Tensors = dict[str, Array]


@dataclass(frozen=True)
class LayerAgreement:
    """How far one tensor of two artifacts is apart.

    Args:
        tensor: Its name, which is that of the node that gives it.
        operator: Of that node.
        shape: Of the tensor.
        max_rel: max|a - b| / max|a|; NaN or infinite where a value is.
        cosine: Of the tensor as one vector.
    """

    tensor: str
    operator: str
    shape: tuple[int, ...]
    max_rel: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what is not a finite number, which JSON does not know."""
        plain = {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return plain | {"shape": list(self.shape)}


def compare_layers(a: Path, b: Path, images: Array, *, trust: bool = False) -> list[LayerAgreement]:
    """Compare the tensors that two artifacts have in common, in the order in which the first computes them.

    Args:
        a: The reference, a graph.
        b: Another graph, or an engine: then an engine of its graph is built anew for the GPU at hand with these
            tensors as outputs, because a built engine keeps only what its fused kernels write.
        images: float32 (N, C, H, W).
        trust: Take an engine that vexport did not write.

    Raises:
        InputError: one is neither graph nor engine, or they have no tensor in common.
        EngineError: the engine cannot be rebuilt here.
    """
    from vexport.graph.inspect import read_graph

    for path in (a, b):
        if path.suffix.lower() not in (".onnx", ".engine", ".plan"):
            raise InputError(
                f"{path.name} has no layers to compare by name", hint="compare its graph: `vexport onnx` writes it"
            )
    if a.suffix.lower() != ".onnx":
        raise InputError(f"the reference {a.name} is an engine", hint="put the graph first")
    first, operators = read_graph(a), {}
    for node in first.graph.node:
        operators.update(dict.fromkeys(node.output, node.op_type))
    other = b if b.suffix.lower() == ".onnx" else _graph_of(b, trust, a)
    common = [name for name in _float_tensors(a) if name in set(_float_tensors(other))]
    if not common:
        raise InputError(f"{a.name} and {b.name} have no tensor in common", hint="compare artifacts of one network")
    left = _graph_tensors(a, common)(images)
    run = _graph_tensors(other, common) if other == b else _engine_tensors(b, other, common)
    right = run(images)
    return [_agreement(name, operators.get(name, ""), left[name], right[name]) for name in common]


def _agreement(name: str, operator: str, a: Array, b: Array) -> LayerAgreement:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.shape != b.shape:
        raise InputError(f"{name} is {a.shape} in one and {b.shape} in the other", hint="compare one network")
    largest, length = float(np.abs(a).max(initial=0)), float(np.linalg.norm(a) * np.linalg.norm(b))
    apart = float(np.abs(a - b).max(initial=0))
    rel = apart / largest if largest else (float("inf") if apart else 0.0)
    cosine = float((a * b).sum()) / length if length else float(apart == 0)
    return LayerAgreement(name, operator, tuple(a.shape), rel, cosine)


def _float_tensors(graph: Path) -> list[str]:
    """Tensors that nodes give and that hold activations, in order."""
    import onnx

    from vexport.graph.inspect import read_graph

    model = onnx.shape_inference.infer_shapes(read_graph(graph))
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    known = {
        value.name
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.elem_type in floats
    }
    return [name for node in model.graph.node for name in node.output if name in known]


def _graph_tensors(graph: Path, names: Sequence[str]) -> Callable[[Array], Tensors]:
    """Run a graph in ONNX Runtime with these tensors as outputs."""
    import onnx
    import onnxruntime as ort

    from vexport.graph.inspect import read_graph

    model = onnx.shape_inference.infer_shapes(read_graph(graph))
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(value for value in model.graph.value_info if value.name in set(names) - there)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(images: Array) -> Tensors:
        answers = session.run(list(names), {session.get_inputs()[0].name: images})
        return dict(zip(names, answers, strict=True))

    return run


def _graph_of(engine: Path, trust: bool, reference: Path) -> Path:
    """The graph that an engine was built from, which is the reference or must lie beside it."""
    from vexport.engine.plan import require_trusted
    from vexport.engine.refit import require_parent_graph

    manifest = require_trusted(engine, trust=trust)
    if manifest is None:
        raise EngineError(f"{engine.name} does not say which graph it is of", hint="compare it without --layers")
    return require_parent_graph(engine, manifest, [reference])


def _engine_tensors(engine: Path, graph: Path, names: Sequence[str]) -> Callable[[Array], Tensors]:
    """Build a graph with these tensors as outputs for the GPU at hand, and run it."""
    from vexport.engine.runtime import describe_runtime, use_polygraphy
    from vexport.engine.strict import allow_tf32, constrain_types, precision_flags
    from vexport.engine.target import find_devices

    if not find_devices():
        raise EngineError("the layers of an engine need a GPU with a driver", hint="compare the graphs instead")
    manifest = read_manifest(engine)
    assert manifest is not None
    runtime = describe_runtime(manifest.facts["runtime"]["name"])
    backend = use_polygraphy(runtime)

    def run(images: Array) -> Tensors:
        builder, network, parser = backend.network_from_onnx_path(str(graph), strongly_typed=runtime.strongly_typed)
        backend.modify_network_outputs((builder, network, parser), outputs=list(names))
        source = network.get_input(0).name
        shape = tuple(images.shape)
        profile = backend.Profile().add(source, shape, shape, shape)
        precision = manifest.facts["precision"]
        if not runtime.strongly_typed and precision != "int8":
            constrain_types(runtime, network)
        if runtime.is_rtx:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            create = CreateConfigRTX(use_gpu=True, profiles=[profile])
        else:
            create = backend.CreateConfig(profiles=[profile], **precision_flags(runtime, precision))
        config = create(builder, network)
        allow_tf32(runtime, config, bool(manifest.facts.get("tf32")))
        with backend.TrtRunner(backend.engine_from_network((builder, network), config=config)) as runner:
            answers = runner.infer({source: images}, check_inputs=False)
            return {name: np.array(answers[name]) for name in names}

    return run
