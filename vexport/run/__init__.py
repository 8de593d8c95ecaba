"""Run any artifact: a callable on arrays, whatever computes behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vexport.run.runner import Runner
from vexport.workspace import require_file

__all__ = ["Runner", "open_runner"]


def open_runner(
    path: Path,
    *,
    threads: int | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    model: str | None = None,
    input_size: tuple[int, int, int] | None = None,
    trust: bool = False,
    cuda_graph: bool = False,
    graphs: Sequence[Path] = (),
) -> Runner:
    """Open an artifact with the backend that runs it.

    ONNX Runtime for a graph, TensorRT for an engine, PyTorch for a checkpoint.

    Args:
        path: .onnx, .engine or .plan, or a checkpoint in either form.
        threads: Threads to compute with; None leaves the backend's choice.
        weights_from: Which weights of a training checkpoint to take.
        model: The variant that a checkpoint must be.
        input_size: C, H and W that a checkpoint computes at; None takes its own.
        trust: Open an engine that vexport did not write: it may run any code.
        cuda_graph: Let an engine replay its launches as a CUDA graph.
        graphs: Where the graph of a stripped engine may be, besides beside it.

    Raises:
        InputError: there is no such file, it is neither, or an option does not go with it.
        CheckpointError: the checkpoint cannot be loaded.
        EngineError: the engine is unknown or altered, or cannot run on this machine.
    """
    path = Path(path)
    require_file(path, "checkpoint, graph or engine")
    if path.suffix.lower() in (".engine", ".plan"):
        from vexport.run.tensorrt import open_engine

        return open_engine(path, trust=trust, cuda_graph=cuda_graph, graphs=graphs)
    if path.suffix.lower() == ".onnx":
        from vexport.run.ort import OrtRunner

        return OrtRunner(path, threads=threads)

    from vexport.model.checkpoint import load_network
    from vexport.run.pytorch import TorchRunner

    network, loaded = load_network(path, model=model, weights_from=weights_from)
    return TorchRunner(network, input_size or loaded.preprocessing.input_size, name=path.stem, threads=threads)
