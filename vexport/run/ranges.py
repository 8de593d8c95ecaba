"""Largest activations of a graph on sample images, tensor by tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vexport.errors import InputError
from vexport.graph.write import copy_graph
from vexport.run.runner import Array


def measure_ranges(graph: Path, batches: Sequence[Array]) -> dict[str, float]:
    """Largest magnitude that each tensor takes on some images, by ONNX Runtime's calibrator.

    Args:
        graph: An FP32 .onnx file with one input.
        batches: Images float32 (N, C, H, W).

    Returns:
        The magnitude by tensor name; infinite or NaN where the FP32 graph itself overflows. A NaN in one batch of
        several is not seen here: whoever compares the answers sees it.

    Raises:
        InputError: ONNX Runtime cannot run the graph on them.
    """
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self._left = iter({name: batch} for batch in batches)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder:
        # The calibrator writes a file of its own beside the graph: not in a folder that others use.
        copied = Path(folder) / graph.name
        copy_graph(graph, copied)
        try:
            calibrator = create_calibrator(
                copied,
                None,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(Images(calibrator.model.graph.input[0].name))
            found = calibrator.compute_data().data
        except Exception as error:
            # ONNX Runtime's errors have no common base class but Exception.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise InputError(
                f"ONNX Runtime cannot run {graph.name} on these images",
                details=[str(error).splitlines()[0]],
                hint="give images of the size that the graph takes",
            ) from error
    return {name: float(np.abs(np.array(data.range_value)).max()) for name, data in found.items()}
