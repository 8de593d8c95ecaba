"""Checkpoint or baseline to a plain, simplified ONNX graph: export, rewrite, simplify, prove, write."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Checkpoint, Graph, Manifest, Parent, Preprocessing
from vexport.deps import tool_versions
from vexport.errors import ExportError, InputError, ParityError
from vexport.model.variants import VARIANTS
from vexport.pipeline.fuse import FuseResult, fuse_checkpoint, load_source
from vexport.pipeline.resolve import (
    RANDOM_SEED,
    Weights,
    WeightSource,
    find_weights,
    random_parent,
    require_model,
    stem_of,
)
from vexport.workspace import Workspace, require_clear, stage, up_to_date

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from vexport.run.compare import Parity

PARITY_BATCHES = (1, 2, 5)
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """A graph and how it came about.

    Args:
        artifact: The graph; its manifest holds the operators and the parity.
        took: Which weights were taken, in words.
        up_to_date: Whether it was there already.
        notes: What the reader should know.
        fused: The merge before it, where one was needed.
    """

    artifact: Graph
    took: str
    up_to_date: bool
    notes: tuple[str, ...]
    fused: FuseResult | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.artifact.path),
            "took": self.took,
            "up_to_date": self.up_to_date,
            "notes": list(self.notes),
            "fused": self.fused.to_json() if self.fused else None,
            "manifest": self.artifact.manifest.to_json(),
        }


@dataclass(frozen=True)
class _Subject:
    """What is exported: how to get the module, and its facts."""

    load: Callable[[], tuple[nn.Module, Preprocessing, dict[str, Any]]]
    parent: Parent
    stem: str
    took: str
    notes: tuple[str, ...]
    fused: FuseResult | None


def export_graph(
    checkpoint: Path | None = None,
    *,
    workspace: Workspace,
    model: str | None = None,
    weights: Weights | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    batch: int | None = None,
    size: int | None = None,
    opset: int | None = None,
    output: Path | None = None,
    assume_slope_1: bool = False,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Write the plain ONNX graph of a checkpoint or a baseline, proven against the network.

    Args:
        checkpoint: The file; None takes the newest of the workspace, then the published weights of `model`.
        workspace: Where the result goes, unless `output` says otherwise.
        model: A variant or a baseline; it must agree with the file.
        weights: `pretrained` or `random` in place of a file.
        weights_from: `ema` or `model`; None prefers the EMA.
        batch: N, fixed in the graph; None leaves it open.
        size: Height and width of the input; None takes the checkpoint's.
        opset: Of the graph; None is the default.
        output: The file to write.
        assume_slope_1: Merge although the slope is known to be below 1.
        force: Overwrite a file that vexport did not write.
        on_step: Told each step as it begins.

    Raises:
        VexportError: see the tree in errors.py; no graph has been written then.
    """
    from vexport.graph.opset import DEFAULT_OPSET, require_opset

    require_model(model)
    require_opset(opset or DEFAULT_OPSET)
    if output is not None and output.suffix != ".onnx":
        raise InputError(f"{output} does not end in .onnx", hint="name it so")
    _require_positive("--batch", batch)
    _require_positive("--size", size)
    if model is None or model in VARIANTS:
        subject = _variant_subject(checkpoint, workspace, model, weights, weights_from, assume_slope_1, force, on_step)
    elif checkpoint is not None:
        raise InputError(f"{model} is a baseline: it takes no checkpoint", hint="leave the path out")
    else:
        subject = _baseline_subject(model, weights)
    target = output or workspace.root / f"{subject.stem}.onnx"
    options = {
        "model": model,
        "from": weights_from,
        "batch": batch,
        "size": size,
        "opset": opset or DEFAULT_OPSET,
    }
    versions = tool_versions(*LIBRARIES)
    done = up_to_date(Graph, target, parent=subject.parent.sha256, options=options, versions=versions)
    if done is not None:
        return ExportResult(done, subject.took, True, tuple(done.facts["notes"]), subject.fused)
    require_clear(target, force=force)

    module, preprocessing, facts = subject.load()
    if size is not None:
        preprocessing = replace(preprocessing, input_size=(preprocessing.input_size[0], size, size))
    on_step("exporting")
    raw, plain, notes = _make_graph(module, preprocessing, batch, opset or DEFAULT_OPSET)
    facts |= {"precision": "fp32", "preprocessing": preprocessing.to_json(), "batch": batch}
    with stage(target, force=force) as staging:
        on_step("comparing with the network")
        graph, parity, more = _write_proven(
            staging.path, raw, plain, module, preprocessing, facts, subject.parent, batch
        )
        facts |= _graph_facts(raw, graph) | {"notes": [*subject.notes, *notes, *more]}
        artifact = staging.publish(
            Graph,
            lambda sha256, size_bytes: Manifest(
                "graph", sha256, size_bytes, subject.parent, options, facts, parity=parity, versions=versions
            ),
        )
    return ExportResult(artifact, subject.took, False, tuple(facts["notes"]), subject.fused)


def _require_positive(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"{option} {value} is not positive", hint="give 1 or more")


def _variant_subject(
    checkpoint: Path | None,
    workspace: Workspace,
    model: str | None,
    weights: Weights | None,
    weights_from: Literal["ema", "model"] | None,
    assume_slope_1: bool,
    force: bool,
    on_step: Callable[[str], None],
) -> _Subject:
    """A deployed checkpoint; what is still in training form is fused first."""
    source = find_weights(checkpoint, weights=weights, model=model, workspace=workspace, accept_deployed=True)
    fused = None
    if source.path is None or _is_training(source.path, source.parent.sha256, model):
        on_step("merging")
        fused = fuse_checkpoint(
            source.path,
            workspace=workspace,
            model=model,
            weights="random" if source.path is None else None,
            weights_from=weights_from,
            assume_slope_1=assume_slope_1,
            force=force,
        )
        deployed: Checkpoint = fused.artifact
        source = WeightSource(deployed.path, source.stem, deployed.as_parent(), source.how)

    def load() -> tuple[nn.Module, Preprocessing, dict[str, Any]]:
        from vexport.model.checkpoint import to_network

        # What has just been fused holds one set of weights.
        loaded = load_source(source, model=model, weights_from=None if fused else weights_from)
        if loaded.form != "deployed":
            raise InputError(
                f"{source.path} is not deployed", hint="its manifest is not its own: move the manifest away"
            )
        facts = {"model": loaded.spec.variant, "network": loaded.spec.to_json(), "num_classes": loaded.spec.num_classes}
        if loaded.class_names:
            facts["class_names"] = list(loaded.class_names)
        if loaded.activation_ranges is not None:
            facts["activation_ranges"] = loaded.activation_ranges
        return to_network(loaded.spec, loaded.form, loaded.tensors), loaded.preprocessing, facts

    assert source.path is not None
    notes = fused.notes if fused else ()
    return _Subject(load, source.parent, stem_of(source.path), source.how, notes, fused)


def _is_training(path: Path, sha256: str, model: str | None) -> bool:
    """Whether a checkpoint still has to be merged; its manifest says, otherwise its tensors do."""
    from vexport.model.checkpoint import load_checkpoint
    from vexport.workspace import read_manifest

    manifest = read_manifest(path)
    if (
        manifest is not None
        and manifest.kind == "checkpoint"
        and manifest.sha256 == sha256
        and model in (None, manifest.facts.get("model"))
    ):
        return bool(manifest.facts.get("form") == "training")
    return load_checkpoint(path, model=model).form == "training"


def _baseline_subject(model: str, weights: Weights | None) -> _Subject:
    def load() -> tuple[nn.Module, Preprocessing, dict[str, Any]]:
        from vexport.model.baselines import baseline_preprocessing, create_baseline
        from vexport.model.randomize import randomize_

        module = create_baseline(model, pretrained=weights != "random")
        preprocessing = baseline_preprocessing(module)
        if weights == "random":
            randomize_(module, preprocessing.input_size, RANDOM_SEED)
        return module, preprocessing, {"model": model, "num_classes": 1000}

    if weights == "random":
        return _Subject(load, random_parent(model), f"{model}.random", f"seeded random weights of {model}", (), None)
    import hashlib

    name = f"{model}, timm's pretrained weights"
    parent = Parent(name, hashlib.sha256(name.encode()).hexdigest())
    return _Subject(load, parent, model, name, (), None)


def _make_graph(
    module: nn.Module, preprocessing: Preprocessing, batch: int | None, opset: int
) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """The graph as exported, the plain one, and notes."""
    import onnx_ir

    from vexport.graph.export import export_module
    from vexport.graph.naming import name_after_modules
    from vexport.graph.opset import set_opset
    from vexport.graph.rewrite import make_plain
    from vexport.graph.simplify import simplify

    exported = export_module(module, preprocessing.input_size, batch=batch, opset=opset)
    raw = onnx_ir.to_proto(exported)
    plain, note = simplify(onnx_ir.to_proto(make_plain(exported)))
    name_after_modules(plain)
    return raw, set_opset(plain, opset), [note] if note else []


def _write_proven(
    path: Path,
    raw: onnx.ModelProto,
    plain: onnx.ModelProto,
    module: nn.Module,
    preprocessing: Preprocessing,
    facts: dict[str, Any],
    parent: Parent,
    batch: int | None,
) -> tuple[onnx.ModelProto, list[dict[str, Any]], list[str]]:
    """Write the plain graph if it agrees with the network, else the graph as exported if that does."""
    found: Parity | None = None
    for graph, what in ((plain, "plain"), (raw, "as exported")):
        _write(graph, path, facts, parent)
        parity = _parity(path, module, preprocessing, batch)
        if parity.passed:
            notes = (
                [] if what == "plain" else ["the simplified graph disagreed with the network: this one is as exported"]
            )
            entry = {"inputs": "random", "graph": what, **parity.to_json()}
            return graph, [entry], notes
        found = found or parity
    assert found is not None
    raise ParityError(
        "the graph disagrees with the network",
        details=[f"max|y - y'| / max|y| is {found.max_rel:.2e}, the tolerance {found.tolerance:.0e}"],
        hint="try another --opset, and report it with the checkpoint",
    )


def _write(graph: onnx.ModelProto, path: Path, facts: dict[str, Any], parent: Parent) -> None:
    from vexport.graph.trained_ranges import ACTIVATION_RANGES
    from vexport.graph.write import stamp, write_graph

    props = {
        "vexport.model": str(facts["model"]),
        "vexport.parent": parent.name,
        "vexport.parent_sha256": parent.sha256,
        "vexport.preprocessing": json.dumps(facts["preprocessing"]),
        "vexport.num_classes": str(facts["num_classes"]),
        "vexport.precision": str(facts["precision"]),
    }
    if "class_names" in facts:
        props["vexport.class_names"] = json.dumps(facts["class_names"])
    if "activation_ranges" in facts:
        props[ACTIVATION_RANGES] = json.dumps(facts["activation_ranges"])
    version = tool_versions()["vexport"]
    stamp(graph, {**props, "vexport.version": version}, version)
    write_graph(graph, path)


def _parity(path: Path, module: nn.Module, preprocessing: Preprocessing, batch: int | None) -> Parity:
    from vexport.run.compare import TOLERANCES, compare, random_batches
    from vexport.run.ort import OrtRunner
    from vexport.run.pytorch import TorchRunner

    sizes = PARITY_BATCHES if batch is None else (batch,)
    batches = random_batches(preprocessing.input_size, sizes, seed=2)
    try:
        with (
            TorchRunner(module, preprocessing.input_size, name="network") as network,
            OrtRunner(path) as graph,
        ):
            return compare(network, graph, batches, TOLERANCES["fp32"])
    except InputError as error:
        raise ExportError(
            "ONNX Runtime refuses the graph", details=[error.message, *error.details], hint=error.hint
        ) from error


def _graph_facts(raw: onnx.ModelProto, graph: onnx.ModelProto) -> dict[str, Any]:
    from vexport.graph.inspect import count_operators, count_parameters

    return {
        "operators_exported": count_operators(raw),
        "opset": graph.opset_import[0].version,
        "operators": count_operators(graph),
        "nodes": len(graph.graph.node),
        "parameters": count_parameters(graph),
    }
