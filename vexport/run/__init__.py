"""Run any artifact: a callable on arrays, whatever computes behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vexport.run.backends import BACKENDS, Backend, BackendName, choose_backend, open_graph, open_module
from vexport.run.runner import DeviceWork, Runner, prepare
from vexport.workspace import require_file

__all__ = ["BACKENDS", "Backend", "BackendName", "DeviceWork", "Runner", "open_module", "open_runner", "prepare"]


def open_runner(
    path: Path,
    *,
    backend: BackendName | str | None = None,
    threads: int | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    model: str | None = None,
    input_size: tuple[int, int, int] | None = None,
    trust: bool = False,
    cuda_graph: bool = False,
    graphs: Sequence[Path] = (),
) -> Runner:
    """Open an artifact with a backend that runs it.

    Args:
        path: .onnx, .engine or .plan, or a checkpoint in either form.
        backend: A name from `BACKENDS`; None takes ONNX Runtime on the CPU for a graph, TensorRT for an engine, eager
            PyTorch on the CPU for a checkpoint.
        threads: Threads to compute with; None leaves the backend's choice.
        weights_from: Which weights of a training checkpoint to take.
        model: The variant that a checkpoint must be.
        input_size: C, H and W that a checkpoint computes at; None takes its own.
        trust: Open an engine that vexport did not write: it may run any code.
        cuda_graph: Let an engine replay its launches as a CUDA graph.
        graphs: Where the graph of a stripped engine may be, besides beside it.

    Raises:
        InputError: there is no such file, it is neither, an option does not go with it, or the backend is unknown,
            takes another kind of artifact or cannot run here.
        MissingDependencyError: the backend's packages are not installed.
        CheckpointError: the checkpoint cannot be loaded.
        EngineError: the engine is unknown or altered, or cannot run on this machine; or the GPU fails.
        PrecisionError: the backend computes in another precision than its name says.
    """
    path = Path(path)
    require_file(path, "checkpoint, graph or engine")
    chosen = choose_backend(path, backend)
    if chosen.takes == "engine":
        from vexport.run.tensorrt import open_engine

        return open_engine(path, trust=trust, cuda_graph=cuda_graph, graphs=graphs)
    if chosen.takes == "graph":
        return open_graph(path, chosen.name, threads=threads)

    from vexport.model.checkpoint import load_network

    network, loaded = load_network(path, model=model, weights_from=weights_from)
    size = input_size or loaded.preprocessing.input_size
    return open_module(network, size, name=path.stem, backend=chosen.name, threads=threads)
