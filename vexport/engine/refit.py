"""New weights for a built engine, from its graph: what a stripped plan needs before it can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vexport.artifacts import Manifest
from vexport.engine.messages import first_lines, heard
from vexport.engine.runtime import TensorRT, use_polygraphy
from vexport.errors import EngineError
from vexport.workspace import hash_file


def find_parent_graph(plan: Path, manifest: Manifest, candidates: Sequence[Path] = ()) -> Path | None:
    """The graph that a plan was built from: beside it, or one of the candidates; known by its hash."""
    assert manifest.parent is not None
    places = (plan.with_name(manifest.parent.name), *candidates)
    return next((path for path in places if path.is_file() and hash_file(path) == manifest.parent.sha256), None)


def require_parent_graph(plan: Path, manifest: Manifest, candidates: Sequence[Path] = ()) -> Path:
    """As `find_parent_graph`, where one is needed.

    Raises:
        EngineError: it is not there, or is another one.
    """
    graph = find_parent_graph(plan, manifest, candidates)
    if graph is None:
        assert manifest.parent is not None
        what = "is stripped: its weights are in" if manifest.facts.get("stripped") else "was built from"
        raise EngineError(
            f"{plan.name} {what} {manifest.parent.name}, which is not beside it",
            hint=f"copy {manifest.parent.name} (sha256 {manifest.parent.sha256[:12]}) to {plan.parent}",
        )
    return graph


def refit_engine(engine: Any, runtime: TensorRT, graph: Path) -> None:
    """Set the weights of a refittable engine to those of a graph of the same network, in place.

    Args:
        engine: TensorRT's ICudaEngine, built with `--refit` or `--strip`.
        runtime: The TensorRT that it belongs to.
        graph: The .onnx file.

    Raises:
        EngineError: the engine is not refittable, or the graph's weights do not fit.
    """
    if not engine.refittable:
        raise EngineError("the engine is not refittable", hint="build it with --refit")
    backend = use_polygraphy(runtime)
    trt = runtime.load()
    if not hasattr(trt, "OnnxParserRefitter"):
        raise EngineError(
            f"{runtime.name} {runtime.version} does not refit from a graph", hint="install TensorRT 10 or later"
        )
    with heard() as said:
        logger = backend.get_trt_logger()
        refitter = trt.Refitter(engine, logger)
        parsed = trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(graph))
        done = parsed and refitter.refit_cuda_engine()
    if not done:
        raise EngineError(
            f"the weights of {graph.name} do not fit the engine",
            details=first_lines(said) or [f"missing: {', '.join(refitter.get_missing_weights()[:8])}"],
            hint="refit it from a graph of the same network and precision",
        )
