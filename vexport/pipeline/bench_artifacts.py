"""What a benchmark measures, made first: graphs, engines and checkpoints of named networks.

Trained artifacts of the workspace are taken where they are of the published size. Otherwise the network gets seeded
random weights, since latency hardly depends on values; such artifacts live in `bench/artifacts` of the workspace, where
no other command takes them for trained ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from vexport.artifacts import Checkpoint, Graph, Manifest
from vexport.deps import tool_versions
from vexport.model.baselines import published_figures
from vexport.model.variants import VARIANTS
from vexport.pipeline.export import export_graph
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.resolve import RANDOM_SEED, random_parent, stem_of
from vexport.workspace import Workspace, hash_file, read_manifest, size_bytes, stage, up_to_date

if TYPE_CHECKING:
    from vexport.engine.runtime import RuntimeName
    from vexport.pipeline.ready import Precision

Weights = Literal["trained", "random"]
OnStep = Callable[[str, float | None], None]
RANDOM_NOTE = "for latency only: random weights, accuracy unproven"
NOISE_NOTE = "for latency only: INT8 ranges of noise images, accuracy unproven"
NOISE_IMAGES = 2
QUANTISED = "quantised in the graph: "  # a backend may compute them in FP32 all the same
_LIBRARIES = ("onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Made:
    """Something to measure.

    Args:
        path: The file; None for a baseline in PyTorch, which is made anew from its seed.
        name: For the report.
        sha256: Of the file; of the description of the weights where there is none.
        size_bytes: Of the file.
        weights: Whether they are trained.
        notes: What the reader should know.
        graph: The graph that an engine was built from, where it is at hand.
        tf32: Whether an engine's FP32 layers may round to TF32; None where it has no say.
    """

    path: Path | None
    name: str
    sha256: str
    size_bytes: int | None
    weights: Weights
    notes: tuple[str, ...] = ()
    graph: Path | None = None
    tf32: bool | None = None


class Artifacts:
    """Finds or makes them, each once.

    Args:
        workspace: Where trained ones are looked for, and below which others are made.
        on_step: Told what is going on.

    `made_anew` says whether anything was not there already.
    """

    def __init__(self, workspace: Workspace, on_step: OnStep) -> None:
        self.workspace, self.on_step = workspace, on_step
        self.made_anew = False
        self.made = Workspace(workspace.root / "bench" / "artifacts")
        self._known: dict[tuple[object, ...], Made] = {}

    def graph(self, network: str, precision: str, size: int) -> Made:
        """The graph of a network, of any batch.

        Raises:
            VexportError: it cannot be made.
        """
        key = ("graph", network, precision, size)
        if key not in self._known:
            if precision in ("fp16", "bf16"):
                self._known[key] = self._half(network, size, precision)
            else:
                self._known[key] = (self._int8 if precision == "int8" else self._fp32)(network, size)
        return self._known[key]

    def module(self, network: str, size: int) -> Made:
        """A network for PyTorch: a variant's deployed checkpoint, or a baseline.

        Raises:
            VexportError: it cannot be made.
        """
        key = ("module", network, size)
        if key not in self._known:
            self._known[key] = self._module(network)
        return self._known[key]

    def engine(
        self, network: str, precision: str, size: int, batch: int, *, runtime: RuntimeName, tf32: bool = True
    ) -> Made:
        """A TensorRT engine for the GPU at hand, for one batch.

        Args:
            network: Variant or baseline.
            precision: Of the engine.
            size: Height and width of the images.
            batch: Images per call.
            runtime: Which TensorRT.
            tf32: Whether FP32 layers may round to TF32.

        Raises:
            VexportError: it cannot be built.
        """
        from vexport.engine.build import BuildOptions
        from vexport.pipeline.build import build_engine

        graph = self.graph(network, "int8" if precision == "int8" else "fp32", size)
        assert graph.path is not None
        allowed = tf32 and precision == "fp32"
        kind = "tf32" if allowed else precision
        built = build_engine(
            graph.path,
            workspace=self.made,
            precision=cast("Precision", precision),
            runtime=runtime,
            options=BuildOptions(precision, min_batch=batch, opt_batch=batch, max_batch=batch, tf32=allowed),
            output=self.made.root / f"{stem_of(graph.path)}.{kind}.batch{batch}.{runtime}.engine",
            on_progress=lambda text, share: self.on_step(f"{network}: {text}", share),
        )
        self.made_anew |= not built.up_to_date
        found = _of(built.artifact.path, built.artifact.sha256, graph.weights, (*graph.notes, *built.notes))
        return replace(found, graph=built.graph, tf32=allowed)

    @cached_property
    def _trained(self) -> list[Graph | Checkpoint]:
        """Artifacts of the workspace with trained weights, newest first."""
        found: list[tuple[int, Graph | Checkpoint]] = []
        root = self.workspace.root
        for beside in root.glob("*.json") if root.is_dir() else ():
            path = beside.with_suffix("")
            manifest = read_manifest(path)
            if manifest is None or not path.is_file() or ".random" in path.name:
                continue
            if manifest.kind in ("graph", "checkpoint"):
                artifact = Graph(path, manifest) if manifest.kind == "graph" else Checkpoint(path, manifest)
                found.append((beside.stat().st_mtime_ns, artifact))
        return [artifact for _, artifact in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def _find(self, kind: type[Graph | Checkpoint], fits: Callable[[Any], bool]) -> Made | None:
        for artifact in self._trained:
            if isinstance(artifact, kind) and fits(artifact) and hash_file(artifact.path) == artifact.sha256:
                return _of(artifact.path, artifact.sha256, "trained")
        return None

    def _find_graph(self, network: str, precision: str, size: int) -> Made | None:
        def fits(graph: Graph) -> bool:
            facts = graph.facts
            sides = tuple(facts.get("preprocessing", {}).get("input_size", ()))[1:]
            return (
                graph.model == network
                and graph.precision == precision
                and "rest" not in facts
                and facts.get("batch") is None
                and sides == (size, size)
                and is_published_size(facts, network)
            )

        return self._find(Graph, fits)

    def _fp32(self, network: str, size: int) -> Made:
        found = self._find_graph(network, "fp32", size)
        if found is not None:
            return found
        self.on_step(f"exporting {network}", None)
        usual = size == 224
        result = export_graph(
            workspace=self.made,
            model=network,
            weights="random",
            size=None if usual else size,
            output=None if usual else self.made.root / f"{network}.random.{size}.onnx",
            on_step=lambda text: self.on_step(f"{network}: {text}", None),
        )
        self.made_anew |= not result.up_to_date
        made = result.artifact
        return _of(made.path, made.sha256, "random", (RANDOM_NOTE,))

    def _half(self, network: str, size: int, precision: str) -> Made:
        from vexport.pipeline.convert import convert_graph
        from vexport.pipeline.graphs import find_graph

        found = self._find_graph(network, precision, size)
        if found is not None:
            return found
        fp32 = self.graph(network, "fp32", size)
        self.on_step(f"{network}: converting to {precision.upper()}", None)
        source = find_graph(fp32.path, workspace=self.made)
        half: Literal["fp16", "bf16"] = "fp16" if precision == "fp16" else "bf16"
        result = convert_graph(source, half, workspace=self.made)
        self.made_anew |= not result.up_to_date
        made = result.artifact
        return _of(made.path, made.sha256, fp32.weights, fp32.notes)

    def _int8(self, network: str, size: int) -> Made:
        found = self._find_graph(network, "int8", size)
        if found is not None:
            return found
        fp32 = self.graph(network, "fp32", size)
        assert fp32.path is not None
        self.on_step(f"{network}: quantising", None)
        made, was_there = quantize_for_latency(fp32.path, self.made, size)
        self.made_anew |= not was_there
        return _of(made.path, made.sha256, fp32.weights, (*fp32.notes, *made.facts["notes"]))

    def _module(self, network: str) -> Made:
        if network not in VARIANTS:
            parent = random_parent(network)
            return Made(None, parent.name, parent.sha256, None, "random", (RANDOM_NOTE,))

        def fits(checkpoint: Checkpoint) -> bool:
            facts = checkpoint.facts
            return checkpoint.form == "deployed" and checkpoint.model == network and is_published_size(facts, network)

        found = self._find(Checkpoint, fits)
        if found is not None:
            return found
        self.on_step(f"{network}: merging", None)
        result = fuse_checkpoint(None, workspace=self.made, model=network, weights="random")
        self.made_anew |= not result.up_to_date
        made = result.artifact
        return _of(made.path, made.sha256, "random", (RANDOM_NOTE,))


def quantize_for_latency(fp32: Path, workspace: Workspace, size: int) -> tuple[Graph, bool]:
    """The INT8 graph of an FP32 graph with ranges of a few noise images: as fast as a proven one, and no more.

    Args:
        fp32: The graph.
        workspace: Where the result goes.
        size: Height and width of the images.

    Returns:
        The graph, and whether it was there already.

    Raises:
        VexportError: it cannot be quantised.
    """
    target = workspace.root / f"{stem_of(fp32)}.latency.int8.onnx"
    parent = hash_file(fp32)
    options = {"precision": "int8", "for": "latency", "images": NOISE_IMAGES, "size": size, "seed": RANDOM_SEED}
    versions = tool_versions(*_LIBRARIES)
    done = up_to_date(Graph, target, parent=parent, options=options, versions=versions)
    if done is not None:
        return done, True
    from vexport.graph.inspect import count_operators, count_parameters, read_graph
    from vexport.graph.precision import lift_constants
    from vexport.graph.quantize import conv_edges, conv_inputs, conv_nodes, quantize
    from vexport.graph.write import write_graph
    from vexport.pipeline.convert import name_nodes, stamp_provenance
    from vexport.pipeline.graphs import find_graph
    from vexport.run.compare import random_batches
    from vexport.run.ranges import measure_ranges

    source = find_graph(fp32, workspace=workspace)
    model = lift_constants(read_graph(fp32))
    name_nodes(model)
    images = random_batches((3, size, size), (NOISE_IMAGES,), seed=5)
    ranges = {model.graph.input[0].name: float(abs(images[0]).max()), **measure_ranges(fp32, images)}
    wanted = conv_inputs(model, conv_nodes(model))
    result = quantize(model, {name: ranges[name] for name in wanted if name in ranges})
    stamp_provenance(result, source, "int8")
    convs = conv_edges(result)
    operators = count_operators(result)
    left = operators.get("MatMul", 0) + operators.get("Gemm", 0)
    notes = [NOISE_NOTE, f"{QUANTISED}{sum(one.quantised for one in convs)} of {len(convs)} convolutions"]
    if left:
        notes[-1] += f"; matrix products stay FP32: {left}"
    facts = source.facts | {
        "precision": "int8",
        "batch": None,
        "operators": operators,
        "nodes": len(result.graph.node),
        "parameters": count_parameters(result),
        "notes": notes,
    }
    with stage(target) as staging:
        write_graph(result, staging.path)
        made = staging.publish(
            Graph,
            lambda sha256, bytes_: Manifest("graph", sha256, bytes_, source.parent, options, facts, versions=versions),
        )
    return made, False


def is_published_size(facts: dict[str, Any], network: str) -> bool:
    """Whether an artifact is the network that was published: for ImageNet's classes, and of the variant's widths."""
    told = facts.get("network", {})
    if "ablation" in told or facts.get("num_classes") != 1000:
        return False
    if network not in VARIANTS or not told:  # 16-bit and INT8 graphs do not repeat the widths
        figures = published_figures(network)
        count = facts.get("parameters")
        # Checkpoints of baselines say nothing of their size; they are the library's own.
        slack = 0.03 if network in VARIANTS else 0.1  # a graph has constants that the published counts leave out
        return count is None or figures is None or abs(count / 1e6 - figures.params_m) <= slack * figures.params_m
    return tuple(told.get("dims", ())) == VARIANTS[network].dims


def _of(path: Path, sha256: str, weights: Weights, notes: tuple[str, ...] = ()) -> Made:
    return Made(path, path.name, sha256, size_bytes(path), weights, notes)
