"""FP32 graph to INT8: measure activations, choose thresholds, put Q/DQ in, hold it against FP32, write."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vexport.artifacts import Artifact, Graph, Manifest
from vexport.deps import tool_versions
from vexport.errors import InputError, ParityError
from vexport.pipeline.calibration import (
    Job,
    OnProgress,
    QuantizeOptions,
    choose_labels,
    find_statistics,
    load_held_out,
)
from vexport.pipeline.convert import fixed_batch, name_nodes, stamp_provenance
from vexport.pipeline.graphs import GraphSource, find_graph
from vexport.pipeline.held_out import HeldOut, Recorded
from vexport.pipeline.quantize_facts import describe_result
from vexport.pipeline.quantize_search import Candidate, Form, Search
from vexport.pipeline.resolve import Weights
from vexport.pipeline.subject import Opening, choose_preprocessing, describe, open_subject
from vexport.workspace import Workspace, hash_file, load_artifact, require_clear, require_file, stage, up_to_date

LIBRARIES = ("onnx", "onnxruntime", "numpy", "pillow")
# Activations of so many images at a time are held in memory while they are counted.
BATCH = 4


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
    options: QuantizeOptions | None = None,
    evaluate_on: Path | None = None,
    model: str | None = None,
    weights: Weights | None = None,
    threads: int | None = None,
    output: Path | None = None,
    plot: Path | None = None,
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
        options: How it is done; None takes the defaults.
        evaluate_on: A folder with one subfolder of images per class, or a .npz of prepared `images` and `labels`: for
            the accuracy.
        model: A variant or a baseline.
        weights: `pretrained` or `random` in place of a file.
        threads: Of ONNX Runtime; None leaves its choice.
        output: The file to write.
        plot: Where a picture of the channels' ranges goes, before and after equalisation: .png, .svg or .pdf.
        use_cache: Whether statistics of the same graph on the same images may be taken from the cache.
        force: Overwrite a file that vexport did not write.
        on_progress: Told what is going on, and the share that is done where it is known.

    Raises:
        InputError: the graph, the images or an option does not fit.
        AccuracyError: INT8 loses more than `max_drop`; nothing has been written under its name.
        ParityError: without labels, INT8 answers too differently; likewise.
    """
    how_to = options or QuantizeOptions()
    _require_names(output, plot)
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
        split = split_images(found.names, how_to.images, how_to.seed)
        found.fetch((*split.calibration, *split.held_out))
        chosen = describe_images(found, split)
        labelled = choose_labels(calib, evaluate_on, found, split, chosen, subject, how, stack)
        request = {
            "precision": "int8",
            **asdict(how_to),
            "keep": sorted(how_to.keep),
            "calib": digest(chosen),
            "labelled": labelled.digest(),
        }
        versions = tool_versions(*LIBRARIES)
        target = output or workspace.root / f"{source.stem}.int8.onnx"
        done = up_to_date(Graph, target, parent=source.parent.sha256, options=request, versions=versions)
        if done is not None and (plot is None or _is_drawn(plot, done)):
            return QuantizeResult(done, source.took, True)
        if target.resolve() == source.path.resolve():
            raise InputError(f"--output {target} is the FP32 graph itself", hint="give it another name")
        require_clear(target, force=force)
        _require_free(plot, target, force)
        prepared = describe(how, origin) if found.kind != "array" else "as they are in the array"
        job = Job(source, subject, how, prepared, str(calib), found, split, chosen, labelled, how_to, threads)
        artifact = _make(job, target, request, versions, plot, use_cache, force, on_progress)
    return QuantizeResult(artifact, source.took, False)


def _require_names(output: Path | None, plot: Path | None) -> None:
    if output is not None and output.suffix != ".onnx":
        raise InputError(f"{output} does not end in .onnx", hint="name it so")
    if plot is not None:
        from vexport.pipeline.range_picture import require_picture

        require_picture(plot)


def _require_images(calib: Path, evaluate_on: Path | None) -> None:
    """Refuse before a graph is exported what could not be read after it."""
    from vexport.run.image_sets import require_images_at
    from vexport.run.images import require_folder

    require_images_at(calib)
    if evaluate_on is not None and evaluate_on.suffix.lower() == ".npz":
        require_file(evaluate_on, "labelled images")
    elif evaluate_on is not None:
        require_folder(evaluate_on)


def _require_fp32(source: GraphSource) -> None:
    if source.precision == "int8":
        raise InputError(f"{source.path} is quantised already", hint="give the FP32 graph that it was made from")
    if source.precision != "fp32":
        raise InputError(
            f"{source.path} is {source.precision}, not FP32", hint="give the FP32 graph that it was made from"
        )


def _make(
    job: Job,
    target: Path,
    request: dict[str, Any],
    versions: dict[str, str],
    plot: Path | None,
    use_cache: bool,
    force: bool,
    on_progress: OnProgress,
) -> Graph:
    """Quantise anew. The graph stands under its final name only once the gate has held."""
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import lift_constants
    from vexport.graph.quantize import conv_inputs, conv_nodes, require_convs
    from vexport.graph.write import write_graph
    from vexport.run.calibration_images import Loader

    model = lift_constants(read_graph(job.source.path))
    name_nodes(model)
    convs = require_convs(model, job.options.keep)
    loader = Loader(job.images, fixed_batch(model) or BATCH)
    tensors = conv_inputs(model, conv_nodes(model))
    statistics = find_statistics(job, model, tensors, loader, use_cache, on_progress)
    on_progress("answering the held-out images in FP32", None)
    reference = Recorded(job.subject.runner, load_held_out(loader, job.split))
    _require_answers(reference, job)
    search = Search(job, loader, reference, on_progress)
    found = search.run(Form("plain", model, statistics), use_cache)
    drawn = None
    if plot is not None:
        from vexport.pipeline.range_picture import draw_ranges

        draw_ranges(plot, found.forms, job.source.path.name)
        drawn = {"path": str(plot), "sha256": hash_file(plot)}
    gate = search.gate_in_memory(found.best.model)
    if not gate["passed"]:
        found = search.leave_out(found, convs, gate)
        gate = search.gate_in_memory(found.best.model)
    stamp_provenance(found.best.model, job.source, "int8")
    steps = None
    if job.options.steps:
        from vexport.pipeline.quantize_steps import measure_steps

        steps = measure_steps(job, search, found, gate, on_progress)
    facts = describe_result(job, model, found, reference, loader, gate) | {"steps": steps, "plot": drawn}
    with stage(target, force=force) as staging:
        write_graph(found.best.model, staging.path)
        held_out = _compare(staging.path, reference, found.best, job.threads)
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
                "graph", sha256, size, job.source.parent, request, facts, parity=[entry], versions=versions
            ),
        )


def _is_drawn(plot: Path, graph: Artifact | None) -> bool:
    """Whether a picture is the one that was drawn for a graph."""
    drawn = graph.facts.get("plot") if graph is not None else None
    return drawn is not None and plot.is_file() and hash_file(plot) == drawn["sha256"]


def _require_free(plot: Path | None, target: Path, force: bool) -> None:
    """Refuse to draw over a file that was not drawn for this graph."""
    if plot is not None and plot.exists() and not force and not _is_drawn(plot, load_artifact(target)):
        raise InputError(f"{plot} is there already", hint="name another file, or overwrite it with --force")


def _require_answers(reference: Recorded, job: Job) -> None:
    """Refuse an FP32 graph whose answers nothing can be held against."""
    if not reference.finite:
        raise InputError(
            f"{job.source.path} itself answers NaN or infinite to held-out images",
            hint="check the checkpoint that it was made from with `vexport eval`",
        )
    if not reference.varies:
        raise InputError(
            f"{job.source.path} answers the same to all held-out images: no other graph can be held against it",
            hint="check that its weights are trained, and that the images are prepared as it takes them",
        )


def _compare(path: Path, reference: Recorded, best: Candidate, threads: int | None) -> HeldOut:
    """The file itself against FP32 on the held-out images: what is in it is what the gate was shown."""
    from vexport.run.ort import OrtRunner

    with OrtRunner(path, threads=threads) as int8:
        found = reference.compare(int8)
    if found.top1_agreement != best.agreement.top1_agreement or not found.finite:
        raise ParityError(
            f"the file answers otherwise than the graph that was measured: {found.to_json()}",
            hint="run it again; report it with the graph if it stays so",
        )
    return found
