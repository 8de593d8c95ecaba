"""An INT8 engine against its graph, on a machine that can run it: its layers read back, its answers compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Manifest
from vexport.errors import ParityError
from vexport.pipeline.build_int8 import is_half, plan_of
from vexport.pipeline.half_rest import LEAST_RANDOM_COSINE
from vexport.pipeline.held_out import Recorded

if TYPE_CHECKING:
    from vexport.engine.runtime import TensorRT

# Batches to compare on, where the profile takes them.
BATCHES = (1, 2, 5, 8)
# Images, where it takes one at a time.
FEWEST = 4


def prove_int8_engine(
    plan: Path, graph: Path, runtime: TensorRT, manifest: Manifest
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run an INT8 engine beside the graph that it was built from.

    The two may differ by INT8 steps, see `vexport.graph.segments`: so the answers are held to a cosine, not to a
    tolerance.

    Args:
        plan: The plan.
        graph: Its graph; ONNX Runtime on the CPU, with FP16 rounded as on a device, is the reference.
        runtime: The TensorRT that it belongs to.
        manifest: Its facts.

    Returns:
        What was read back from the engine, and the parity, as manifests hold them.

    Raises:
        PrecisionError: a layer does not compute in what the graph says.
        ParityError: the answers differ.
    """
    from vexport.engine.inspect import parse_engine_layers
    from vexport.engine.int8 import describe_read_back
    from vexport.engine.plan import deserialize
    from vexport.engine.refit import refit_engine
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import emulate_half
    from vexport.run.compare import random_batches
    from vexport.run.ort import OrtRunner
    from vexport.run.tensorrt import EngineRunner

    facts = manifest.facts
    lean = bool(facts.get("version_compatible"))
    engine = deserialize(plan.read_bytes(), runtime, name=plan.name, lean=lean)
    if facts.get("stripped"):
        refit_engine(engine, runtime, graph)
    model = read_graph(graph)
    expected = plan_of(model)
    rounded = emulate_half(model).SerializeToString() if is_half(model) else graph
    with (
        EngineRunner(engine, runtime, name=plan.stem, precision="int8") as runner,
        OrtRunner(rounded) as reference,
    ):
        layers = parse_engine_layers(runner.report())
        if runtime.strongly_typed:
            read_back = describe_read_back(layers, expected, facts.get("kept_fp32", {}))
        else:
            read_back = {"result": "not asked", "layers": [layer.to_json() for layer in layers]}
        least, most = runner.batch_range
        sizes = tuple(n for n in BATCHES if least <= n <= most) or (least,)
        if sizes == (1,):  # of a single image nothing would be left without what all have in common
            sizes *= FEWEST
        channels, height, width = (side or 0 for side in runner.input_shape[1:])
        batches = random_batches((channels, height, width), sizes, seed=2)
        found = Recorded(reference, batches).compare(runner)
    passed = found.finite and found.centred_cosine >= LEAST_RANDOM_COSINE
    entry = {
        "result": "run",
        "inputs": "random",
        "with": graph.name,
        **found.to_json(),
        "least_cosine": LEAST_RANDOM_COSINE,
    }
    if not passed:
        raise ParityError(
            f"the INT8 engine disagrees with {graph.name}",
            details=[f"the cosine of all answers is {found.centred_cosine:.5f}, {LEAST_RANDOM_COSINE:g} is asked for"],
            hint="try another --opt-level or --int8-depthwise, or --fp16",
        )
    return read_back, entry | {"passed": True}
