"""From an nn.Module to an ONNX graph, through torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from torch import nn

from vexport.errors import ExportError, VexportError
from vexport.graph.pools import ordinary_pools

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
EXPORTER_OPSET = 18  # the oldest that torch's exporter writes without converting


def export_module(
    module: nn.Module, input_size: tuple[int, int, int], *, batch: int | None = None, opset: int = EXPORTER_OPSET
) -> ir.Model:
    """Export a classification network as torch's exporter gives it.

    Args:
        module: (N, C, H, W) to logits (N, classes), in evaluation mode.
        input_size: C, H and W, fixed in the graph.
        batch: N, fixed in the graph; None leaves it open.
        opset: Of the graph; the exporter writes none below 18.

    Returns:
        A graph with the input `input` and the output `logits`.

    Raises:
        ExportError: the exporter refuses the network, or an adaptive pool cannot be written for this size.
        InputError: the images do not fit the network.
    """
    # Two images, since the exporter specialises a dimension of 1.
    images = torch.zeros(batch or 2, *input_size)
    dynamic = None if batch else ({0: torch.export.Dim(BATCH)},)
    with torch.no_grad(), ordinary_pools(module, images), _quiet():
        try:
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=max(opset, EXPORTER_OPSET),
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            if (refusal := _own_error(error)) is not None:
                raise refusal from error
            raise ExportError(
                "torch's exporter refuses this network",
                details=[line for line in str(cause).splitlines() if line.strip()][:3],
                hint="the network must be exportable with torch.onnx.export",
            ) from error
    assert program is not None
    return program.model


def _own_error(error: BaseException | None) -> VexportError | None:
    """What the network itself refused, somewhere behind the exporter's error."""
    while error is not None and not isinstance(error, VexportError):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
