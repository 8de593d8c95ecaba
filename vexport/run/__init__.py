"""Run any artifact: a callable on arrays, whatever computes behind it."""

from __future__ import annotations

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
) -> Runner:
    """Open an artifact with the backend that runs it: ONNX Runtime for a graph, PyTorch for a checkpoint.

    Args:
        path: .onnx, or a checkpoint in either form.
        threads: Threads to compute with; None leaves the backend's choice.
        weights_from: Which weights of a training checkpoint to take.
        model: The variant that a checkpoint must be.

    Raises:
        InputError: there is no such file, it is neither, or an option does not go with it.
        CheckpointError: the checkpoint cannot be loaded.
    """
    path = Path(path)
    require_file(path, "checkpoint or graph")
    if path.suffix.lower() == ".onnx":
        from vexport.run.ort import OrtRunner

        return OrtRunner(path, threads=threads)

    from vexport.model.checkpoint import load_network
    from vexport.run.pytorch import TorchRunner

    network, loaded = load_network(path, model=model, weights_from=weights_from)
    return TorchRunner(network, loaded.preprocessing.input_size, name=path.stem, threads=threads)
