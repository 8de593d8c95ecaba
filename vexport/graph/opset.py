"""The opset that a graph declares."""

from __future__ import annotations

import onnx
from onnx import defs, helper, shape_inference, version_converter

from vexport.errors import ExportError

DEFAULT_OPSET = 18  # what torch's exporter writes without converting
ONNX_DOMAINS = ("", "ai.onnx")  # two names of one
LEAST_OPSET = 14  # from here on the five plain operators are defined as they are today


def require_opset(opset: int) -> None:
    """Refuse an opset that cannot be written.

    Raises:
        ExportError: it is too old, or newer than onnx knows.
    """
    newest = defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= newest:
        raise ExportError(f"opset {opset} is not supported", hint=f"choose one from {LEAST_OPSET} to {newest}")


def set_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Give a graph another opset, and the lowest IR version that goes with it.

    Where every operator has the same definition in both, as the five plain ones have, only the number changes;
    otherwise onnx converts. Operators of other domains stay what they are, and so do the versions of those domains.

    Raises:
        ExportError: the opset is not one that onnx knows, or an operator cannot be converted.
    """
    require_opset(opset)
    current = next(entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS)
    if opset != current and any(_since(node, opset) != _since(node, current) for node in model.graph.node):
        try:
            model = version_converter.convert_version(model, opset)
        except (RuntimeError, shape_inference.InferenceError) as error:
            raise ExportError(
                f"this graph cannot be written in opset {opset}",
                details=[str(error).splitlines()[0]],
                hint=f"use opset {current}",
            ) from error
    others = [entry for entry in model.opset_import if entry.domain not in ONNX_DOMAINS]
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(one.domain, one.version) for one in others)]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.ir_version = helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return model


def _since(node: onnx.NodeProto, opset: int) -> int | None:
    if node.domain not in ONNX_DOMAINS:
        return None
    try:
        return int(defs.get_schema(node.op_type, opset, node.domain).since_version)
    except defs.SchemaError:
        return None
