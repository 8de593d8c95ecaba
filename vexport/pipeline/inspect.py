"""What is in an artifact: a checkpoint, a graph or an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.errors import EngineError
from vexport.workspace import hash_file, read_manifest, require_file, size_bytes


@dataclass(frozen=True)
class Inspection:
    """The facts of an artifact.

    Args:
        path: The file.
        kind: `checkpoint`, `graph` or `engine`.
        sha256: Its hash.
        size_bytes: Its size.
        known: Whether its manifest knows this hash.
        facts: Name to value, for a list.
        columns: Headers of the table of layers.
        layers: Its rows.
        notes: What could not be shown, and why.
    """

    path: Path
    kind: str
    sha256: str
    size_bytes: int
    known: bool
    facts: dict[str, Any]
    columns: tuple[str, ...]
    layers: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "known": self.known,
            "facts": self.facts,
            "layers": [dict(zip(self.columns, row, strict=True)) for row in self.layers],
            "notes": list(self.notes),
        }


def inspect_artifact(path: Path, *, trust: bool = False) -> Inspection:
    """Look into an artifact.

    Args:
        path: A checkpoint, a graph or an engine.
        trust: Open an engine that vexport did not write.

    Raises:
        VexportError: it cannot be read, or an engine is not trusted.
    """
    require_file(path, "checkpoint, graph or engine")
    suffix = path.suffix.lower()
    look = _graph if suffix == ".onnx" else _engine if suffix in (".engine", ".plan") else _checkpoint
    sha256, manifest = hash_file(path), read_manifest(path)
    known = manifest is not None and manifest.sha256 == sha256
    kind, facts, columns, layers, notes = look(path, trust)
    if manifest is not None and known:
        facts |= {"made from": f"{manifest.parent.name} ({manifest.parent.sha256[:12]})" if manifest.parent else "-"}
        facts |= {"parity": _describe_parity(manifest.parity), "created": manifest.created}
    elif manifest is not None:
        notes = (*notes, "the manifest beside it knows other contents: changed since")
    return Inspection(path, kind, sha256, size_bytes(path), known, facts, columns, layers, notes)


_Look = tuple[str, dict[str, Any], tuple[str, ...], tuple[tuple[Any, ...], ...], tuple[str, ...]]


def _describe_parity(entries: list[dict[str, Any]]) -> str:
    said = []
    for entry in entries:
        if entry.get("result") == "not run":
            said.append(f"not run: {entry['reason']}")
        elif isinstance(entry.get("max_rel"), float):
            bound = (
                f"tolerance {entry['tolerance']:.0e}"
                if "tolerance" in entry
                else f"the same class on {entry['top1_agreement']:.0%} of {entry['images']} images"
            )
            said.append(f"error {entry['max_rel']:.1e}, {bound}")
    return "; ".join(said) or "-"


def _graph(path: Path, _trust: bool) -> _Look:
    from vexport.graph.cost import count_layers
    from vexport.graph.inspect import count_operators, count_parameters, metadata, read_graph, weight_bytes
    from vexport.graph.precision import graph_precision

    model = read_graph(path)
    props, manifest = metadata(model), read_manifest(path)
    shape = [dim.dim_value or dim.dim_param or "?" for dim in model.graph.input[0].type.tensor_type.shape.dim]
    layers = count_layers(model)
    facts: dict[str, Any] = {
        "network": props.get("vexport.model", "-"),
        "precision": graph_precision(model),
        "input": "x".join(str(side) for side in shape),
        "opset": next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None),
        "parameters": count_parameters(model),
        "weights, bytes": weight_bytes(model),
        "GMACs at batch 1": round(sum(layer.macs for layer in layers) / 1e9, 4),
        "activations and weights moved, MB": round(sum(layer.bytes_moved for layer in layers) / 1e6, 2),
        "operators": _join(count_operators(model)),
    }
    before = manifest.facts.get("operators_exported") if manifest else None
    if before:
        facts["operators as exported"] = _join(before)
    columns = ("layer", "operator", "precision", "output", "parameters", "MMACs", "MB moved")
    rows = tuple(
        (
            layer.name,
            layer.operator,
            layer.precision,
            "x".join(str(side) for side in layer.shape),
            layer.parameters,
            round(layer.macs / 1e6, 2),
            round(layer.bytes_moved / 1e6, 3),
        )
        for layer in layers
    )
    return "graph", facts, columns, rows, ()


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _engine(path: Path, trust: bool) -> _Look:
    """The manifest's facts and network; the engine's own layers where this machine can open it."""
    from vexport.engine.plan import require_trusted

    manifest = require_trusted(path, trust=trust)
    facts = _engine_facts(manifest.facts) if manifest else {}
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]
    try:
        from vexport.engine.inspect import parse_engine_layers
        from vexport.run.tensorrt import open_engine

        with open_engine(path, trust=trust) as runner:
            layers = parse_engine_layers(runner.report())
        columns = ("layer", "kind", "takes", "gives", "formats", "tactic")
        rows = tuple(
            (one.name, one.kind, ", ".join(one.inputs), ", ".join(one.outputs), "; ".join(one.formats), one.tactic)
            for one in layers
        )
        return "engine", facts, columns, rows, ()
    except EngineError as error:
        notes = (f"the engine's own layers cannot be read: {error.message}",)
    network = manifest.facts["build"]["network_layers"] if manifest else []
    rows = tuple((one["name"], one["kind"].lower(), ", ".join(one["inputs"]), one["precision"]) for one in network)
    if rows:
        notes = (*notes, "shown is the network before TensorRT fused it")
    return "engine", facts, ("layer", "kind", "takes", "gives"), rows, notes


def _engine_facts(facts: dict[str, Any]) -> dict[str, Any]:
    profile = facts["profile"]
    return {
        "network": facts.get("model", "-"),
        "precision": facts["precision"],
        "runtime": f"{facts['runtime']['name']} {facts['runtime']['version']}",
        "for": ", ".join(f"sm{target}" for target in facts["targets"]),
        "profile": ", ".join(f"{key} {'x'.join(str(side) for side in shape)}" for key, shape in profile.items()),
        "refittable": facts["refittable"],
        "stripped": facts["stripped"],
        "TF32": facts["tf32"],
        "computing layers": "; ".join(
            f"{kind}: {_join(by)}" for kind, by in facts["build"]["precision_network"].items()
        ),
        "kept in FP32": ", ".join(facts.get("kept_fp32", {})) or "none",
        "built in, s": facts["build"]["build_s"],
        "built on": facts["build"]["built_on"],
    }


def _checkpoint(path: Path, _trust: bool) -> _Look:
    from vexport.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(path)
    facts = {
        "network": loaded.spec.label,
        "form": loaded.form,
        "weights": loaded.source,
        "classes": loaded.spec.num_classes,
        "input": "x".join(str(side) for side in loaded.preprocessing.input_size),
        "parameters": sum(tensor.numel() for tensor in loaded.tensors.values()),
    }
    rows = tuple(
        (name, "x".join(str(side) for side in tensor.shape) or "scalar", str(tensor.dtype).removeprefix("torch."))
        for name, tensor in loaded.tensors.items()
    )
    return "checkpoint", facts, ("tensor", "shape", "type"), rows, ()
