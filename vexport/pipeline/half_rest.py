"""INT8 graph to one whose rest is FP16: measure, give types, prove piece by piece and end to end, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Graph, Manifest
from vexport.deps import tool_versions
from vexport.errors import InputError, ParityError
from vexport.pipeline.convert import (
    HEADROOM,
    IMAGES,
    LIBRARIES,
    ConvertResult,
    fixed_batch,
    hash_images,
    name_nodes,
    sample_batches,
    stamp_provenance,
)
from vexport.pipeline.graphs import GraphSource
from vexport.pipeline.recorded import count_labels_again, labels_to_count
from vexport.workspace import Workspace, read_manifest, require_clear, stage, up_to_date

if TYPE_CHECKING:
    import onnx

    from vexport.run.runner import Array

Depthwise = Literal["on", "off"]
# Depthwise convolutions in FP16 where nothing was measured: for these TensorRT for RTX 1.7 spreads INT8 activations and
# weights to four channels per group, three of them zero, and quantises in a kernel of its own.
DEFAULT: Depthwise = "off"
# End to end a graph and the same one in other types differ where a value lies near the border of an INT8 step. Random
# images, whose values INT8 was not calibrated for, only show that nothing is wired wrongly: the pieces are the proof.
LEAST_COSINE = 0.99
LEAST_RANDOM_COSINE = 0.95
LEAST_NOISY_COSINE = 0.9
# What the INT8 graph's own manifest says, for those who look at the derived graph or the engine only.
CARRIED = ("method", "equalised", "bias_corrected", "gate")
LEAST_TOP1 = 0.95
# Of fewer images a single one whose two best classes are tied would decide.
ENOUGH_FOR_TOP1 = 20
# Random batches, and batches of given images on which every piece is compared, which takes as long as both graphs.
BATCHES = 2


def derive_half_rest(
    source: GraphSource,
    depthwise: Depthwise = DEFAULT,
    *,
    workspace: Workspace,
    images: Path | None = None,
    force: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> ConvertResult:
    """Write the graph that is built: INT8 convolutions as they are, everything else in FP16, proven against it.

    Args:
        source: The INT8 graph, with FP32 between its Q/DQ nodes.
        depthwise: Whether depthwise convolutions stay in INT8, or compute in FP16 on the weights that their INT8
            weights stand for.
        workspace: Where the result goes.
        images: A folder of images on which activations are measured and answers compared; None takes those that were
            held out when the graph was quantised, and random ones where they are no longer there.
        force: Overwrite a file that vexport did not write.
        on_step: Told each step as it begins.

    Raises:
        InputError: the graph is not such a graph.
        ParityError: the result does not agree; it has not been written then.
        AccuracyError: it loses more points of top-1 than were allowed when the INT8 graph was made; likewise.
    """
    from vexport.graph.half_rest import depthwise_convs, int8_convs, take_out
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import lift_constants

    model = lift_constants(read_graph(source.path))
    name_nodes(model)
    quantised = int8_convs(model)
    out = [name for name in depthwise_convs(model) if name in quantised]
    if not out:
        depthwise = "off"  # one file for what is the same
    name = "int8" if depthwise == "off" else "int8-depthwise"
    target = workspace.root / f"{source.stem}.{name}.fp16.onnx"
    samples = _choose_images(source, images)
    options = {
        "rest": "fp16",
        "int8_depthwise": depthwise,
        "images": samples.digest,
        "labelled": labels_to_count(source.path),
        "headroom": HEADROOM,
    }
    versions = tool_versions(*LIBRARIES)
    done = up_to_date(Graph, target, parent=source.parent.sha256, options=options, versions=versions)
    if done is not None:
        return ConvertResult(done, True)
    require_clear(target, force=force)
    if depthwise == "off" and len(out) == len(quantised):
        raise InputError(
            f"every INT8 convolution of {source.path} is depthwise: none would be left",
            hint="build it with --int8-depthwise on, or with --fp16",
        )
    typed = _give_types(source, take_out(model, out) if depthwise == "off" else model, samples, on_step)
    stamp_provenance(typed.half, source, "int8")
    from vexport.graph.write import write_graph

    with stage(target, force=force) as staging:
        write_graph(typed.half, staging.path)
        parity = [
            {"inputs": samples.name, "with": source.path.name, **entry}
            for entry in (
                _prove_pieces(typed, on_step),
                *_prove_answers(source.path, staging.path, typed, samples.real, on_step),
            )
        ]
        facts = _facts(source, typed, model, depthwise, out) | _count_labels(source.path, typed, on_step)
        artifact = staging.publish(
            Graph,
            lambda sha256, size: Manifest(
                "graph", sha256, size, source.parent, options, facts, parity=parity, versions=versions
            ),
        )
    return ConvertResult(artifact, False)


@dataclass(frozen=True)
class _Samples:
    """What activations are measured and answers compared on.

    Args:
        name: Where the images come from.
        digest: Of what they are; None of random ones.
        real: Whether they are images.
        load: Reads them, batch by batch.
    """

    name: str
    digest: str | None
    real: bool
    load: Callable[[], list[Array]]


def _choose_images(source: GraphSource, images: Path | None) -> _Samples:
    """Images given, those held out when the graph was quantised, or random ones."""
    if images is not None:
        return _Samples(str(images), hash_images(images), True, lambda: sample_batches(source, images))
    calibration = source.facts.get("calibration") or {}
    held_out = [entry for entry in calibration.get("images", ()) if entry["part"] == "held out"][:IMAGES]
    try:
        loaded = _load_held_out(source, Path(calibration["path"]), held_out) if held_out else None
    except (InputError, OSError):
        loaded = None
    if loaded is None:
        return _Samples("random", None, False, lambda: sample_batches(source, None)[:BATCHES])
    digest = hashlib.sha256(json.dumps([entry["sha256"] for entry in held_out]).encode()).hexdigest()
    return _Samples(f"{calibration['path']}, held out", digest, True, lambda: loaded)


def _load_held_out(source: GraphSource, path: Path, entries: Sequence[dict[str, Any]]) -> list[Array] | None:
    """The images by name, batch by batch; None where one is another by now, or they do not fill a fixed batch."""
    import numpy as np

    from vexport.run.image_sets import open_images
    from vexport.run.ort import OrtRunner

    if source.preprocessing is None:
        return None
    with OrtRunner(source.path) as runner:
        batch = runner.input_shape[0]
    names = [str(entry["name"]) for entry in entries]
    with open_images(path, source.preprocessing) as found:
        if not set(names) <= set(found.names):
            return None
        found.fetch(names)
        if any(found.sha256(entry["name"]) != entry["sha256"] for entry in entries):
            return None
        loaded = [found.load(name) for name in names]
    step = batch or 4
    whole = len(loaded) if batch is None else len(loaded) - len(loaded) % batch
    return [np.stack(loaded[start : start + step]) for start in range(0, whole, step)] or None


@dataclass(frozen=True)
class _Typed:
    """A graph before and after its rest was given FP16."""

    before: onnx.ModelProto
    half: onnx.ModelProto
    kept: dict[str, str]
    max_abs: dict[str, float]
    batches: list[Array]


def _give_types(
    source: GraphSource, model: onnx.ModelProto, samples: _Samples, on_step: Callable[[str], None]
) -> _Typed:
    from vexport.graph.half_rest import kept_nodes, make_rest_half, round_scales
    from vexport.graph.precision import largest
    from vexport.run.ranges import measure_ranges

    before = round_scales(model)
    batches = samples.load()
    on_step("measuring activations")
    max_abs = measure_ranges(source.path, batches)
    kept = kept_nodes(before, max_abs, largest("fp16") / HEADROOM)
    on_step("giving FP16 to what is not INT8")
    return _Typed(before, make_rest_half(before, keep=kept), kept, max_abs, batches)


def _facts(
    source: GraphSource, typed: _Typed, model: onnx.ModelProto, depthwise: Depthwise, out: Sequence[str]
) -> dict[str, Any]:
    from vexport.graph.half_rest import rest_weights
    from vexport.graph.inspect import count_operators, count_parameters
    from vexport.graph.quantize import DQ, Q, conv_edges

    half = typed.half
    moving = {node.name for node in half.graph.node if node.op_type in (Q, DQ)}
    layers = conv_edges(half)
    return source.facts | {
        "precision": "int8",
        "rest": "fp16",
        "int8_depthwise": depthwise,
        "taken_out": list(out) if depthwise == "off" else [],
        "batch": fixed_batch(model),
        # Q/DQ nodes compute nothing: they follow the layers beside them.
        "kept_fp32": {name: reason for name, reason in typed.kept.items() if name not in moving},
        "layers": [edges.to_json() for edges in layers],
        "int8_convolutions": [edges.node for edges in layers if edges.quantised],
        "weights": [row.to_json() for row in rest_weights(typed.before)],
        "max_activation": max(typed.max_abs.values(), default=0.0),
        "operators": count_operators(half),
        "nodes": len(half.graph.node),
        "parameters": count_parameters(half),
        "opset": half.opset_import[0].version,
        "int8_graph": _carried(source.path),
        "notes": [],
    }


def _carried(int8: Path) -> dict[str, Any]:
    """How the INT8 graph was made and what its gate said: labels were counted on that graph, not on this one."""
    manifest = read_manifest(int8)
    return {key: manifest.facts[key] for key in CARRIED if key in manifest.facts} if manifest else {}


def _count_labels(int8: Path, typed: _Typed, on_step: Callable[[str], None]) -> dict[str, Any]:
    """The gate of INT8 once more where it went by labels: what it was shown is not the graph that is built.

    Raises:
        AccuracyError: more points are lost than were allowed.
    """
    from vexport.graph.precision import emulate_half

    on_step("counting labelled images")
    again = count_labels_again(int8, emulate_half(typed.half).SerializeToString())
    if again is None:
        return {}
    if isinstance(again, dict):
        return {"gate_of_rest": again}
    why = again.removeprefix("not run: ")
    note = f"accuracy was counted on {int8.name}, not again with FP16 around its INT8 layers: {why}"
    return {"gate_of_rest": again, "notes": [note]}


def _prove_pieces(typed: _Typed, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Every piece between Q/DQ nodes on the same INT8 values: within the tolerance of FP16.

    Raises:
        ParityError: with the tensors that differ by more.
    """
    from vexport.graph.precision import emulate_half
    from vexport.graph.segments import compare_pieces
    from vexport.run.compare import TOLERANCES
    from vexport.run.pieces import measure_pieces

    on_step("comparing piece by piece")
    graph, names = compare_pieces(typed.before, emulate_half(typed.half))
    batches = typed.batches[:BATCHES]
    errors = measure_pieces(graph, names, batches)
    tolerance = TOLERANCES["fp16"]
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise ParityError(
            f"{len(wrong)} of {len(errors)} pieces of the graph differ once they are FP16",
            details=[f"{name}: error {error:.2e}, the tolerance is {tolerance:.0e}" for name, error in wrong.items()][
                :8
            ],
            hint="give real images with --images, or build with --fp16 or --fp32",
        )
    return {
        "how": "each piece between Q/DQ nodes on the same INT8 values, every result rounded to FP16",
        "images": sum(len(batch) for batch in batches),
        "max_rel": max(errors.values()),
        "tolerance": tolerance,
        "pieces": errors,
        "passed": True,
    }


def _allowed(int8: Path) -> float:
    """The cosine of two graphs that are at most twice as far apart as the INT8 graph is from FP32 already.

    Where INT8 is noisy, other roundings of it are as noisy: twice the noise is four times the angle squared.
    """
    manifest = read_manifest(int8)
    known = [entry.get("centred_cosine", entry.get("cosine")) for entry in manifest.parity] if manifest else []
    cosine = known[0] if known and known[0] is not None else 1.0
    return max(LEAST_NOISY_COSINE, 1 - 4 * (1 - cosine))


def _prove_answers(
    int8: Path, half: Path, typed: _Typed, real: bool, on_step: Callable[[str], None]
) -> list[dict[str, Any]]:
    """End to end: the answers with FP16 rounded as on a device, and of the file itself.

    Raises:
        ParityError: they are not those of the INT8 graph.
    """
    from vexport.graph.precision import emulate_half
    from vexport.pipeline.held_out import Recorded
    from vexport.run.ort import OrtRunner

    on_step("comparing with the INT8 graph")
    ways: list[tuple[str, Path | bytes]] = [
        ("FP32 arithmetic, every result rounded to FP16", emulate_half(typed.half).SerializeToString()),
        ("the file in ONNX Runtime on the CPU", half),
    ]
    images = sum(len(batch) for batch in typed.batches)
    least_cosine = min(LEAST_COSINE, _allowed(int8)) if real else LEAST_RANDOM_COSINE
    least_top1 = LEAST_TOP1 if real and images >= ENOUGH_FOR_TOP1 else 0.0
    entries = []
    with OrtRunner(int8) as reference:
        recorded = Recorded(reference, typed.batches)
        for how, graph in ways:
            with OrtRunner(graph) as other:
                found = recorded.compare(other)
            passed = found.finite and found.centred_cosine >= least_cosine and found.top1_agreement >= least_top1
            entry = {"how": how, **found.to_json(), "least_cosine": least_cosine, "least_top1": least_top1}
            if not passed:
                raise ParityError(
                    f"with FP16 around its INT8 layers {int8.name} answers otherwise",
                    details=[
                        f"cosine {found.centred_cosine:.5f}, {least_cosine:g} is asked for",
                        f"the same class on {found.top1_agreement:.1%} of {found.images} images"
                        + (f", {least_top1:.0%} is asked for" if least_top1 else ""),
                    ],
                    hint="give real images with --images, or build with --fp16",
                )
            entries.append(entry | {"passed": True})
    return entries
