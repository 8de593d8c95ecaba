"""FP32 graph to INT8: measure activations, choose thresholds, put Q/DQ in, hold it against FP32, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Graph, Manifest
from vexport.deps import tool_versions
from vexport.errors import InputError
from vexport.pipeline.calibration import (
    Chosen,
    Job,
    OnProgress,
    choose_labels,
    choose_method,
    find_statistics,
    load_held_out,
)
from vexport.pipeline.convert import fixed_batch, name_nodes, stamp_provenance
from vexport.pipeline.graphs import GraphSource, find_graph
from vexport.pipeline.quantize_gate import (
    Recorded,
    measure_gate,
    measure_sensitivity,
    missed,
)
from vexport.pipeline.resolve import Weights
from vexport.pipeline.subject import Opening, choose_preprocessing, describe, open_subject
from vexport.workspace import Workspace, require_clear, stage, up_to_date

if TYPE_CHECKING:
    import onnx

    from vexport.run.calibration_images import Loader
    from vexport.run.compare import Agreement
    from vexport.run.thresholds import Histogram, Method

IMAGES = 512
MAX_DROP = 0.5
LIBRARIES = ("onnx", "onnxruntime", "numpy", "pillow")
# Activations of so many images at a time are held in memory while they are counted.
BATCH = 4
FEW = 16


@dataclass(frozen=True)
class QuantizeResult:
    """A graph in INT8.

    Args:
        artifact: The graph; its manifest holds the images, the methods tried, the scales, and the gate.
        took: Which graph was taken, in words.
        up_to_date: Whether it was there already.
    """

    artifact: Graph
    took: str
    up_to_date: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader should know."""
        return tuple(self.artifact.facts["notes"])

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.artifact.path),
            "took": self.took,
            "up_to_date": self.up_to_date,
            "notes": list(self.notes),
            "manifest": self.artifact.manifest.to_json(),
        }


def quantize_graph(
    graph: Path | None = None,
    *,
    workspace: Workspace,
    calib: Path,
    images: int = IMAGES,
    seed: int = 0,
    method: Method | Literal["auto"] = "auto",
    keep: Sequence[str] = (),
    evaluate_on: Path | None = None,
    max_drop: float = MAX_DROP,
    model: str | None = None,
    weights: Weights | None = None,
    threads: int | None = None,
    output: Path | None = None,
    use_cache: bool = True,
    force: bool = False,
    on_progress: OnProgress = lambda _text, _share: None,
) -> QuantizeResult:
    """Write the INT8 graph of an FP32 graph, held against it on images that were not calibrated on.

    Args:
        graph: The .onnx file, or a checkpoint to export; None takes the newest FP32 graph of the workspace, then
            exports `model`.
        workspace: Where the result goes, unless `output` says otherwise.
        calib: A folder of images, a .tar of them, or a .npy or .npz of prepared ones.
        images: How many of them to take; an eighth of those, but at most 128, is held out.
        seed: Of their choice.
        method: How ranges are chosen; `auto` tries all and keeps that with the least error on the held-out images.
        keep: Names of convolutions that stay in FP32.
        evaluate_on: A folder with one subfolder of images per class, for the accuracy.
        max_drop: How many points of top-1 may be lost.
        model: A variant or a baseline.
        weights: `pretrained` or `random` in place of a file.
        threads: Of ONNX Runtime; None leaves its choice.
        output: The file to write.
        use_cache: Whether statistics of the same graph on the same images may be taken from the cache.
        force: Overwrite a file that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: the graph, the images or an option does not fit.
        AccuracyError: INT8 loses more than `max_drop`; nothing has been written under its name.
        ParityError: without labels, INT8 answers too differently; likewise.
    """
    _require_options(output, max_drop, images)
    _require_images(calib, evaluate_on)
    source = find_graph(
        graph,
        workspace=workspace,
        model=model,
        weights=weights,
        force=force,
        on_step=lambda text: on_progress(text, None),
    )
    _require_fp32(source)
    from vexport.run.calibration_images import describe_images, digest, split_images
    from vexport.run.image_sets import open_images

    with ExitStack() as stack:
        on_progress("opening the FP32 graph", None)
        subject = open_subject(stack, source.path, None, Opening(threads, False, None, None, (source.path,)))
        how, origin = choose_preprocessing(subject, None, None)
        on_progress("choosing images", None)
        found = stack.enter_context(open_images(calib, how))
        split = split_images(found.names, images, seed)
        found.fetch((*split.calibration, *split.held_out))
        chosen = describe_images(found, split)
        options = {
            "precision": "int8",
            "method": method,
            "calib": digest(chosen),
            "images": images,
            "seed": seed,
            "keep": sorted(keep),
            "evaluate_on": _listing(evaluate_on) if evaluate_on else None,
            "max_drop": max_drop,
        }
        versions = tool_versions(*LIBRARIES)
        target = output or workspace.root / f"{source.stem}.int8.onnx"
        done = up_to_date(Graph, target, parent=source.parent.sha256, options=options, versions=versions)
        if done is not None:
            return QuantizeResult(done, source.took, True)
        require_clear(target, force=force)
        labelled = choose_labels(calib, evaluate_on, found, split, subject)
        prepared = describe(how, origin) if found.kind != "array" else "as they are in the array"
        job = Job(
            source, subject, how, prepared, str(calib), found, split, chosen, labelled, tuple(keep), max_drop, threads
        )
        artifact = _make(job, method, target, options, versions, use_cache, force, on_progress)
    return QuantizeResult(artifact, source.took, False)


def _require_options(output: Path | None, max_drop: float, images: int) -> None:
    if output is not None and output.suffix != ".onnx":
        raise InputError(f"{output} does not end in .onnx", hint="name it so")
    if not 0 <= max_drop <= 100:
        raise InputError(f"--max-drop {max_drop:g} is not within 0 and 100", hint="give points of top-1, as 0.5")
    if images < 2:
        raise InputError(f"--images {images} is too few", hint="one is measured and one held out at the least")


def _require_images(calib: Path, evaluate_on: Path | None) -> None:
    """Refuse before a graph is exported what could not be read after it."""
    from vexport.run.image_sets import require_images_at
    from vexport.run.images import require_folder

    require_images_at(calib)
    if evaluate_on is not None:
        require_folder(evaluate_on)


def _require_fp32(source: GraphSource) -> None:
    if source.precision == "int8":
        raise InputError(f"{source.path} is quantised already", hint="give the FP32 graph that it was made from")
    if source.precision != "fp32":
        raise InputError(
            f"{source.path} is {source.precision}, not FP32", hint="give the FP32 graph that it was made from"
        )


def _listing(folder: Path) -> str:
    """A hash of the images of a folder by name, size and time: a whole validation set would take long to read."""
    from vexport.run.images import find_images

    rows = [
        [path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for path in find_images(folder)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _make(
    job: Job,
    method: Method | Literal["auto"],
    target: Path,
    options: dict[str, Any],
    versions: dict[str, str],
    use_cache: bool,
    force: bool,
    on_progress: OnProgress,
) -> Graph:
    """Quantise anew. The graph stands under its final name only once the gate has held."""
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import lift_constants
    from vexport.graph.quantize import conv_inputs, require_convs
    from vexport.graph.write import write_graph
    from vexport.run.calibration_images import Loader
    from vexport.run.thresholds import METHODS

    model = lift_constants(read_graph(job.source.path))
    name_nodes(model)
    convs = require_convs(model, job.keep)
    # An equalised model, the same function with other weights, takes the place of `model` from here on: what follows
    # measures and quantises what it is given, and compares with the graph in the file.
    loader = Loader(job.images, fixed_batch(model) or BATCH)
    statistics = find_statistics(job, model, conv_inputs(model, convs), loader, use_cache, on_progress)
    on_progress("answering the held-out images in FP32", None)
    reference = Recorded(job.subject.runner, load_held_out(loader, job.split))
    methods = METHODS if method == "auto" else (method,)
    chosen = choose_method(job, model, statistics, methods, reference, on_progress)
    stamp_provenance(chosen.model, job.source, "int8")
    with stage(target, force=force) as staging:
        write_graph(chosen.model, staging.path)
        held_out, gate = _compare(job, staging.path, reference, on_progress)
        if not gate["passed"]:
            sensitivity = measure_sensitivity(
                model,
                chosen.ranges,
                convs,
                reference,
                threads=job.threads,
                on_share=lambda share: on_progress("the gate is missed: trying each layer alone", share),
            )
            raise missed(gate, chosen.tried, sensitivity)
        facts = _facts(job, model, chosen, statistics, loader, gate)
        entry = {
            "inputs": job.calib,
            "with": job.source.path.name,
            "how": "the file in ONNX Runtime on the CPU, on held-out images",
            **held_out.to_json(),
            "passed": True,
        }
        return staging.publish(
            Graph,
            lambda sha256, size: Manifest(
                "graph", sha256, size, job.source.parent, options, facts, parity=[entry], versions=versions
            ),
        )


def _compare(job: Job, path: Path, reference: Recorded, on_progress: OnProgress) -> tuple[Agreement, dict[str, Any]]:
    """The file itself against FP32: on the held-out images, and by the gate."""
    from vexport.run.ort import OrtRunner

    on_progress("comparing with FP32", None)
    with OrtRunner(path, threads=job.threads) as int8:
        held_out = reference.compare(int8)
        gate = measure_gate(
            job.subject.runner,
            int8,
            held_out,
            job.labelled,
            job.how,
            job.subject.classes,
            max_drop=job.max_drop,
            on_share=lambda share: on_progress("counting right answers of FP32 and INT8", share),
        )
    return held_out, gate


def _facts(
    job: Job,
    model: onnx.ModelProto,
    chosen: Chosen,
    statistics: dict[str, Histogram],
    loader: Loader,
    gate: dict[str, Any],
) -> dict[str, Any]:
    from vexport.graph.inspect import count_operators, count_parameters
    from vexport.graph.quantize import conv_edges

    images, int8 = job.images, chosen.model
    return job.source.facts | {
        "precision": "int8",
        "batch": fixed_batch(model),
        "kept_fp32": dict.fromkeys(job.keep, "asked for with --keep"),
        "calibration": {
            "path": job.calib,
            "kind": images.kind,
            "found": len(images.names),
            "measured": len(job.split.calibration),
            "held_out": len(job.split.held_out),
            "prepared": job.prepared,
            "skipped": loader.skipped,
            "images": job.chosen,
        },
        "operators": count_operators(int8),
        "nodes": len(int8.graph.node),
        "parameters": count_parameters(model),
        "opset": int8.opset_import[0].version,
        "method": chosen.method,
        "methods": chosen.tried,
        "layers": [edges.to_json() for edges in conv_edges(int8)],
        "gate": gate,
        "notes": _notes(job, statistics, gate),
    }


def _notes(job: Job, statistics: dict[str, Histogram], gate: dict[str, Any]) -> list[str]:
    notes = []
    held_out = len(job.split.held_out)
    if held_out < FEW:
        notes.append(f"only {held_out} image(s) held out: the figures say little")
    dead = [name for name, histogram in statistics.items() if not histogram.largest]
    if dead:
        notes.append(f"always 0 on these images: {', '.join(dead)}")
    if job.labelled is not None and job.labelled.left_out:
        notes.append(f"{job.labelled.left_out} labelled image(s) were calibrated on and are left out of the accuracy")
    chance = 100 / job.subject.classes
    if gate["kind"] == "accuracy" and gate["top1_percent_fp32"] < 2 * chance:
        notes.append(f"FP32 is hardly better than guessing ({chance:.1f} %): the accuracy of INT8 says nothing")
    return notes
