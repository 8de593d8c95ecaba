"""Where the time of a TensorRT engine goes, layer by layer, by the engine's own profiler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vexport.bench.layer_times import LayerTimes, require_runs, summarise
from vexport.errors import EngineError

_MENTION = r"(?<![\w./]){}(?![\w./])"


def profile_engine(
    engine: Path,
    images: npt.NDArray[Any],
    labels: Mapping[str, str],
    *,
    runs: int = 20,
    warmup: int = 5,
    trust: bool = False,
    graphs: Sequence[Path] = (),
) -> LayerTimes:
    """Time the layers of a TensorRT engine on the GPU, with its profiler.

    The engine gets a context of its own: a profiler on the one that the clock measures would slow that down.

    Args:
        engine: The plan.
        images: float32 (N, C, H, W), N within the profile.
        labels: Of the nodes of its graph, from `count_fused`.
        runs: That are counted.
        warmup: Runs before; TensorRT for RTX compiles kernels in the first.
        trust: See `open_plan`.
        graphs: Where the graph of a stripped plan may be, besides beside it.

    Raises:
        EngineError: it cannot be opened or run here.
    """
    require_runs(runs, warmup)
    from vexport.engine.inspect import parse_engine_layers
    from vexport.engine.plan import open_plan
    from vexport.engine.refit import refit_engine, require_parent_graph

    opened, runtime, manifest = open_plan(engine, trust=trust)
    if manifest is not None and manifest.facts.get("stripped"):
        refit_engine(opened, runtime, require_parent_graph(engine, manifest, graphs))
    trt = runtime.load()
    inspector = opened.create_engine_inspector()
    report = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    inside = {layer.name: layer.nodes for layer in parse_engine_layers(report)}
    recorded = _run_profiled(opened, trt, images, warmup + runs, engine.name)[warmup:]

    def nodes(name: str, _operator: str) -> tuple[str, ...]:
        return mentioned_labels(f"{name} {inside.get(name, '')}", labels)

    return summarise(recorded, nodes, f"{runtime.name} {runtime.version}", None)


def _run_profiled(
    engine: Any, trt: Any, images: npt.NDArray[Any], runs: int, name: str
) -> list[dict[tuple[str, str], float]]:
    """Milliseconds of every layer, run by run."""
    import torch

    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.taken: dict[tuple[str, str], float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            key = (str(layer_name), "")
            self.taken[key] = self.taken.get(key, 0.0) + float(ms)

    context: Any = engine.create_execution_context()
    if context is None:
        raise EngineError(f"{name}: no execution context", hint="free memory on the GPU")
    kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
    if len(inputs) != 1 or not context.set_input_shape(inputs[0], tuple(images.shape)):
        raise EngineError(f"{name} does not take {images.shape}", hint="`vexport inspect` shows its profile")
    buffers: dict[str, Any] = {}
    for one in names:
        kind = str(engine.get_tensor_dtype(one)).rpartition(".")[2]
        if kind not in kinds:
            raise EngineError(f"the tensor {one} is {kind}", hint="only floating-point inputs and outputs can be run")
        buffers[one] = torch.empty(tuple(context.get_tensor_shape(one)), dtype=kinds[kind], device="cuda")
        context.set_tensor_address(one, buffers[one].data_ptr())
    buffers[inputs[0]].copy_(torch.from_numpy(np.ascontiguousarray(images)))
    recorder = Recorder()
    context.profiler = recorder  # reports at the end of every enqueue
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    found = []
    for _ in range(runs):
        recorder.taken = {}
        if not context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"TensorRT failed on {name}", hint="run it again, then build it again")
        stream.synchronize()
        found.append(recorder.taken)
    if not any(found):
        raise EngineError(f"{name}: its profiler reports no layer", hint="time it whole with `vexport bench`")
    return found


def mentioned_labels(text: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of the nodes that the name of an engine's layer has in it, in the graph's order.

    `a + b` names both; `{ForeignNode[a...b]}` stands for everything between in the graph's order as well.
    """
    order = list(dict.fromkeys(labels.values()))
    found = {
        label for name, label in labels.items() if name in text and re.search(_MENTION.format(re.escape(name)), text)
    }
    for first, last in re.findall(r"ForeignNode\[(.+?)\.\.\.(.+?)\]", text):
        ends = [order.index(labels[name]) for name in (first, last) if name in labels]
        if len(ends) == 2:
            found.update(order[min(ends) : max(ends) + 1])
    return tuple(label for label in order if label in found)
