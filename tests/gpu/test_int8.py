"""What INT8 engines need a GPU for: both ways with depthwise layers timed, layers read back, answers compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from vexport.engine.runtime import MODULES, describe_runtime
from vexport.graph.inspect import read_graph
from vexport.graph.precision import emulate_half, lift_constants
from vexport.graph.quantize import conv_inputs, conv_nodes, quantize
from vexport.pipeline.build import build_engine
from vexport.pipeline.convert import name_nodes
from vexport.pipeline.export import export_graph
from vexport.run import open_runner
from vexport.run.compare import compare, random_batches
from vexport.run.ort import OrtRunner
from vexport.run.ranges import measure_ranges
from vexport.workspace import Workspace

pytestmark = pytest.mark.gpu

SIZE = (3, 64, 64)


@pytest.fixture
def runtime() -> str:
    """The TensorRT of this run: Polygraphy binds to one for the life of a process."""
    for name in MODULES:
        try:
            found = describe_runtime(name)
        except ImportError:
            continue
        if found.strongly_typed:
            return name
    pytest.skip("no TensorRT with strongly typed networks is installed")


@pytest.fixture
def out(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def int8(small_checkpoint: Path, tmp_path: Path) -> Path:
    """The small network, quantised with the ranges of random images."""
    path = export_graph(small_checkpoint, workspace=Workspace(tmp_path / "fp32")).artifact.path
    model = lift_constants(read_graph(path))
    name_nodes(model)
    ranges = measure_ranges(path, random_batches(SIZE, (4,), seed=3))
    made = quantize(model, {name: ranges[name] for name in conv_inputs(model, conv_nodes(model))})
    onnx.save(made, tmp_path / "small.int8.onnx")
    return tmp_path / "small.int8.onnx"


@pytest.mark.parametrize(("depthwise", "layers"), [("on", 9), ("off", 5)])
def test_the_engine_computes_what_the_graph_says(
    int8: Path, out: Workspace, runtime: str, depthwise: str, layers: int
) -> None:
    built = build_engine(int8, workspace=out, precision="int8", runtime=runtime, int8_depthwise=depthwise)  # type: ignore[arg-type]
    facts, parity = built.artifact.facts, built.artifact.manifest.parity[0]
    assert len(facts["int8_layers"]) == layers
    assert (parity["result"], parity["passed"]) == ("run", True)
    read_back = facts["precision_engine"]
    assert read_back["result"] in ("read back", "not readable")
    assert read_back["layers"]
    # Against the graph with FP16 rounded as on a device; by steps of INT8 they may differ.
    rounded = emulate_half(read_graph(built.graph)).SerializeToString()
    with open_runner(built.artifact.path) as engine, OrtRunner(rounded) as reference:
        found = compare(reference, engine, random_batches(SIZE, (1, 3, 8)), float("inf"))
    assert found.finite
    assert found.cosine > 0.99


def test_auto_measures_both_and_keeps_the_faster(int8: Path, out: Workspace, runtime: str) -> None:
    built = build_engine(int8, workspace=out, precision="int8", runtime=runtime)  # type: ignore[arg-type]
    told = built.artifact.facts["int8_depthwise"]
    assert (told["asked"], told["measured"]) == ("auto", True)
    assert told["on_ms"] > 0 < told["off_ms"]
    assert told["chosen"] == ("on" if told["on_ms"] < told["off_ms"] else "off")
    expected = 9 if told["chosen"] == "on" else 5
    assert len(built.artifact.facts["int8_layers"]) == expected
    # Both figures are kept, and not measured anew.
    again = build_engine(int8, workspace=out, precision="int8", runtime=runtime)  # type: ignore[arg-type]
    assert again.up_to_date
    assert again.artifact.facts["int8_depthwise"] == told
    assert np.isfinite([told["on_ms"], told["off_ms"]]).all()
