"""An engine against its graph, on a machine that can run it: precision read back, answers compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Manifest
from vexport.errors import ParityError, PrecisionError
from vexport.workspace import hash_file, read_manifest, write_manifest

if TYPE_CHECKING:
    from vexport.engine.runtime import TensorRT

# Batches to compare on, where the profile takes them.
BATCHES = (1, 2, 5, 8)


def prove_engine(
    plan: Path, graph: Path, runtime: TensorRT, manifest: Manifest
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run an engine beside the graph that it was built from.

    Args:
        plan: The plan.
        graph: Its graph; ONNX Runtime on the CPU is the reference.
        runtime: The TensorRT that it belongs to.
        manifest: Its facts.

    Returns:
        What was read back from the engine, and the parity, as manifests hold them.

    Raises:
        PrecisionError: a layer fell back.
        ParityError: the answers differ.
    """
    from vexport.engine.inspect import parse_engine_layers, require_engine_precision
    from vexport.engine.plan import deserialize
    from vexport.engine.refit import refit_engine
    from vexport.run.compare import TOLERANCES, compare, random_batches
    from vexport.run.ort import OrtRunner
    from vexport.run.tensorrt import EngineRunner

    facts = manifest.facts
    precision = facts["precision"]
    lean = bool(facts.get("version_compatible"))
    engine = deserialize(plan.read_bytes(), runtime, name=plan.name, lean=lean)
    if facts.get("stripped"):
        refit_engine(engine, runtime, graph)
    with (
        EngineRunner(engine, runtime, name=plan.stem, precision=precision) as runner,
        OrtRunner(_reference(graph, precision)) as reference,
    ):
        layers = parse_engine_layers(runner.report())
        kept = facts.get("kept_fp32", {})
        nodes = _nodes(graph)
        # Which nodes of a Q/DQ graph are INT8 is the graph's choice: the network's gate has asked for that.
        gated = precision in ("fp16", "bf16")
        seen = require_engine_precision(layers, nodes, precision, kept) if gated else 0
        if gated and nodes and not seen and not runtime.strongly_typed:
            raise PrecisionError(
                "the engine does not say in which precision its layers compute",
                hint="use TensorRT 10 or later, where the graph's types are binding",
            )
        least, most = runner.batch_range
        sizes = tuple(n for n in BATCHES if least <= n <= most) or (least,)
        channels, height, width = (side or 0 for side in runner.input_shape[1:])
        # TF32 keeps as many bits as FP16; a Q/DQ graph may round an activation to the next step.
        bound = {"fp32": "fp16" if facts.get("tf32") else "fp32", "int8": "bf16"}.get(precision, precision)
        parity = compare(reference, runner, random_batches((channels, height, width), sizes, seed=2), TOLERANCES[bound])
    entry = {"result": "run", "inputs": "random", "with": graph.name, **parity.to_json()}
    if not parity.passed:
        raise ParityError(
            f"the {precision.upper()} engine disagrees with {graph.name}",
            details=[f"max|y - y'| / max|y| is {parity.max_rel:.2e}, the tolerance {parity.tolerance:.0e}"],
            hint="try another --opt-level, or --bf16 or --fp32",
        )
    result = "read back" if seen else "not readable" if gated else "not asked"
    read_back = {
        "result": result,
        "nodes_seen": seen,
        "nodes": len(nodes),
        "layers": [layer.to_json() for layer in layers],
    }
    return read_back, entry


def _reference(graph: Path, precision: str) -> Path | bytes:
    """What ONNX Runtime runs: the file itself, or for 16 bits the graph that rounds as a device does."""
    if precision not in ("fp16", "bf16"):
        return graph
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import emulate_half

    rounded: bytes = emulate_half(read_graph(graph)).SerializeToString()
    return rounded


def _nodes(graph: Path) -> list[str]:
    """Names of the graph's computing nodes."""
    from vexport.graph.inspect import read_graph

    return [
        node.name
        for node in read_graph(graph, with_weights=False).graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    ]


def prove_pending(plan: Path, graphs: Sequence[Path] = ()) -> Manifest | str | None:
    """The first time that an engine built elsewhere is on a machine that can run it: prove it and record that.

    Args:
        plan: The plan, trusted already.
        graphs: Where its graph may be, besides beside it; it is known by its hash.

    Returns:
        The new manifest; why it is still not proven, in words; None where it was proven before.

    Raises:
        PrecisionError, ParityError: it does not hold.
    """
    from vexport.engine.refit import find_parent_graph
    from vexport.engine.runtime import describe_runtime

    manifest = read_manifest(plan)
    if manifest is None or manifest.parent is None:
        return None
    if any(entry.get("result") != "not run" for entry in manifest.parity):
        return None
    if hash_file(plan) != manifest.sha256:
        # Trusted by the user, but not what the manifest is about.
        return f"{plan.name} is not the plan that its manifest is about, and stays unproven: build it again"
    graph = find_parent_graph(plan, manifest, graphs)
    if graph is None:
        return (
            f"{plan.name} is still not proven against the graph that it was built from: put {manifest.parent.name} "
            f"(sha256 {manifest.parent.sha256[:12]}) beside it"
        )
    from vexport.pipeline.prove_int8 import prove_int8_engine

    prove = prove_int8_engine if manifest.facts["precision"] == "int8" else prove_engine
    read_back, entry = prove(plan, graph, describe_runtime(manifest.facts["runtime"]["name"]), manifest)
    proven = replace(manifest, facts=manifest.facts | {"precision_engine": read_back}, parity=[entry])
    write_manifest(plan, proven)
    return proven
