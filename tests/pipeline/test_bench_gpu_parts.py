"""What a benchmark does of a GPU's cells, with fakes in place of one; tests/gpu has the real thing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny_bench import tiny_graph
from vexport.bench.cell import OpenArtifact
from vexport.bench.clock import Samples
from vexport.bench.layer_times import KernelTime, LayerTimes
from vexport.bench.peak import PeakRates, Rate
from vexport.errors import EngineError
from vexport.pipeline import bench_roofline, bench_run
from vexport.pipeline.bench import load_recipe
from vexport.pipeline.bench_artifacts import Artifacts, Made
from vexport.pipeline.bench_document import Found, make_document
from vexport.pipeline.bench_files import group_cells
from vexport.pipeline.bench_matrix import Cell, plan_groups, split_large
from vexport.pipeline.bench_roofline import Rooflines, measure_rooflines
from vexport.pipeline.bench_run import Result, noted
from vexport.pipeline.bench_tf32 import OVERRIDE, tf32_allowed, tf32_as_asked, tf32_note
from vexport.workspace import Workspace

MS = 1_000_000
TF32_CONVOLUTIONS = {"runner": {"tf32": {"convolutions": True, "matmuls": False}}}


def result(backend: str, precision: str, made: Made, *, device_ms: float | None = None, **facts: Any) -> Result:
    cell = Cell(
        "vanillanet_9", backend, precision, 1, (3, 32, 32), made,
        OpenArtifact(made.path, backend, 1, (3, 32, 32)), model="vanillanet_9", is_published=True,
    )  # fmt: skip
    parts = {} if device_ms is None else {"device": ((int(device_ms * MS),) * 3,) * 5}
    return Result(cell, Samples(cell.name, ((2 * MS,) * 3,) * 5, parts_ns=parts), {"backend": backend, **facts})


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return tiny_graph(tmp_path / "tiny.onnx")


@pytest.fixture
def engine(graph: Path) -> Made:
    path = graph.with_name("tiny.engine")
    path.write_bytes(b"vtrt")
    return Made(path, path.name, "e" * 64, 4, "random", graph=graph, tf32=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Which peaks and profiles were asked for."""
    found: list[Any] = []

    def peaks(precisions: Sequence[str], threads: int | None, device: str) -> Any:
        found.append((device, tuple(precisions), threads))
        rates = {name: Rate(name, (8e12 if name == "tf32" else 1e12,)) for name in precisions}
        return lambda: PeakRates(device, threads, rates, Rate("copy", (1e12,)))

    def profile(path: Path, batch: int, _size: object, labels: dict[str, str], source: Path | None, trust: bool) -> Any:
        found.append((path.name, batch, sorted(set(labels.values())), source and source.name, trust))
        # As an engine names its layers: both convolutions in one, the pool in another, a change of format.
        kernels = (
            KernelTime("conv1 + relu + conv2", "", 0.2, ("conv1", "conv2")),
            KernelTime("pool", "", 0.05, ("pool",)),
            KernelTime("Reformatting CopyNode", "", 0.01),
        )
        return lambda: LayerTimes("tensorrt-rtx 1.7", 20, kernels, 0.26)

    monkeypatch.setattr(bench_roofline, "MeasurePeaks", peaks)
    monkeypatch.setattr(bench_roofline, "ProfileEngine", profile)
    return found


def hold(results: Sequence[Result]) -> tuple[Rooflines, list[str]]:
    found, told = Rooflines(), list[str]()
    measure_rooflines(results, found, threads=3, own_process=False, tell=told.append)
    return found, told


def test_an_engine_is_held_against_its_gpu_layer_by_layer(engine: Made, asked: list[Any]) -> None:
    one = result("tensorrt", "fp32", engine, device_ms=0.5)
    found, told = hold([one])
    assert told == []
    assert asked == [
        ("tiny.engine", 1, ["conv1", "conv2", "flatten", "pool", "relu"], "tiny.onnx", False),
        ("cuda", ("fp32", "tf32"), None),
    ]
    roofline = found.by_cell[one.cell.key]
    assert roofline.measured_ms == 0.5, "the GPU's own time: copies and launches are no part of the bound"
    assert [(layer.layer.name, layer.time_ms) for layer in roofline.layers] == [("conv1", 0.2), ("pool", 0.05)]
    # The engine was built with TF32.
    assert roofline.compute_ms == pytest.approx(2 * (30 * 30 * 4 * 27 + 30 * 30 * 40) / 8e12 * 1e3)
    assert found.main_peaks is found.peaks["cuda"]
    document, _ = make_document(
        Found([[one]], {"gpus": ["Example GPU"]}, {}, "x", peaks=found.main_peaks, rooflines=found.by_cell)
    )
    row = json.loads(json.dumps(document))["groups"][0]["rows"][0]
    assert row["roofline"]["profile"]["source"] == "tensorrt-rtx 1.7"
    assert row["roofline"]["efficiency"] == pytest.approx(roofline.bound_ms / 0.5)


def test_a_baseline_in_several_parts_of_a_group_is_profiled_once_and_keeps_its_own_times(
    engine: Made, asked: list[Any]
) -> None:
    cells = [result("tensorrt", "fp32", engine).cell]
    cells += [replace(cells[0], network=name, made=replace(engine, sha256=name * 64)) for name in "abc"]
    parts = split_large(cells, 2, "vanillanet_9")
    assert [[cell.part for cell in part] for part in parts] == [[(1, 3)] * 2, [(2, 3)] * 2, [(3, 3)] * 2]
    assert [cell.part for cell in split_large(cells, 4, "vanillanet_9")[0]] == [(1, 1)] * 4
    baselines = [
        replace(result("tensorrt", "fp32", engine, device_ms=0.5 + which), cell=part[-1])
        for which, part in enumerate(parts)
    ]
    found, _ = hold(baselines)
    assert [entry[0] for entry in asked if len(entry) == 5] == ["tiny.engine"]
    document, _ = make_document(
        Found([[one] for one in baselines], {"gpus": ["Example GPU"]}, {}, "x", rooflines=found.by_cell)
    )
    assert [group["rows"][0]["roofline"]["measured_ms"] for group in document["groups"]] == [0.5, 1.5, 2.5]
    assert [group["part"] for group in document["groups"]] == [[1, 3], [2, 3], [3, 3]]


def test_fp32_engines_with_tf32_and_without_are_of_two_groups(engine: Made) -> None:
    loose, strict = (result("tensorrt", "fp32", replace(engine, tf32=tf32)) for tf32 in (True, False))
    baseline = replace(loose.cell, network="resnet50", made=None, tf32=True)
    groups = group_cells([loose.cell, strict.cell, baseline])
    assert groups == [[loose.cell, baseline], [strict.cell]], "what is still to be built stands where it will belong"
    half = [result("tensorrt", "fp16", replace(engine, tf32=tf32)).cell for tf32 in (True, False)]
    assert group_cells(half) == [half]
    document, _ = make_document(Found([[loose], [strict]], {"gpus": ["Example GPU"]}, {}, "x"))
    assert [group["backend"] for group in document["groups"]] == ["tensorrt with TF32", "tensorrt without TF32"]
    document, _ = make_document(Found([[strict]], {"gpus": ["Example GPU"]}, {}, "x"))
    assert [group["backend"] for group in document["groups"]] == ["tensorrt"]


@pytest.mark.parametrize("allowed", [True, False])
def test_planned_engines_are_grouped_by_the_tf32_of_the_recipe(allowed: bool) -> None:
    recipe = load_recipe("paper_a100", [f"tf32={str(allowed).lower()}"])
    found = {(group[0].backend, group[0].precision): group[0].group[-1] for group in plan_groups(recipe)}
    assert found["tensorrt", "fp32"] is allowed
    assert found["tensorrt", "fp16"] is None


def test_a_strict_engine_is_held_against_fp32(engine: Made, asked: list[Any]) -> None:
    found, _ = hold([result("tensorrt", "fp32", replace(engine, tf32=False))])
    assert asked[-1] == ("cuda", ("fp32",), None)
    (roofline,) = found.by_cell.values()
    assert roofline.measured_ms == 2, "the whole call where the device does not tell its own time"


def test_others_are_held_against_the_bound_of_the_same_network(engine: Made, asked: list[Any], graph: Path) -> None:
    """PyTorch has no graph: another cell's is of the same network."""
    checkpoint = Made(Path("x.safetensors"), "x", "c" * 64, 1, "random")
    eager = result("pytorch-cuda", "fp32", checkpoint, device_ms=1.5, **TF32_CONVOLUTIONS)
    ort = result("onnxruntime-cuda", "fp32", Made(graph, "tiny.onnx", "f" * 64, 1, "random"))
    half = result("pytorch-fp16", "fp16", checkpoint, device_ms=1.0)
    found, told = hold([eager, ort, half, result("tensorrt", "fp32", engine)])
    assert told == []
    of_eager, of_ort = (found.by_cell[one.cell.key] for one in (eager, ort))
    assert of_eager.bound_ms == of_ort.bound_ms > 0
    assert (of_eager.measured_ms, of_ort.measured_ms) == (1.5, 2)
    assert (of_eager.to_json()["layers"], of_eager.times) == ([], None), "the engine's cell has the layers"
    assert half.cell.key not in found.by_cell, "no cell has its graph in FP16"
    assert sum(len(entry) == 3 for entry in asked) == 1, "peaks are measured once"


@pytest.mark.parametrize(("counted", "borrows"), [({}, False), ({"parameters": 7}, False), ({"parameters": 8}, True)])
def test_a_network_of_the_same_name_and_another_size_lends_no_bound(
    counted: dict[str, int], borrows: bool, asked: list[Any], graph: Path
) -> None:
    ort = result("onnxruntime-cuda", "fp32", Made(graph, "tiny.onnx", "f" * 64, 1, "random"))
    eager = result("pytorch-cuda", "fp32", Made(Path("x.safetensors"), "x", "c" * 64, 1, "random"), **TF32_CONVOLUTIONS)
    eager = replace(eager, cell=replace(eager.cell, is_published=False, counted=counted))
    ort = replace(ort, cell=replace(ort.cell, counted={"parameters": 8}))
    found, told = hold([eager, ort])
    assert (eager.cell.key in found.by_cell) is borrows
    assert told == []
    assert len(asked) == 1


def test_cells_of_both_devices_have_their_own_peaks(engine: Made, asked: list[Any], graph: Path) -> None:
    cpu = result("openvino", "fp32", Made(graph, "tiny.onnx", "f" * 64, 1, "random"))
    found, _ = hold([cpu, result("tensorrt", "fp32", engine)])
    assert [entry for entry in asked if len(entry) == 3] == [("cpu", ("fp32",), 3), ("cuda", ("fp32", "tf32"), None)]
    assert {one.peaks.device for one in found.by_cell.values()} == {"cpu", "cuda"}


def test_an_engine_that_cannot_be_profiled_keeps_its_bound(
    engine: Made, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> LayerTimes:
        raise EngineError("the engine is gone", hint="build it again")

    monkeypatch.setattr(bench_roofline, "ProfileEngine", lambda *_: fails)
    found, told = hold([result("tensorrt", "fp32", engine)])
    assert told == ["the layers of vanillanet_9, tensorrt FP32, batch 1 have no times: the engine is gone"]
    (roofline,) = found.by_cell.values()
    assert roofline.times is None
    assert roofline.bound_ms > 0
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("backend", "tf32", "facts", "allowed", "said"),
    [
        ("pytorch-cuda", None, {"tf32": {"convolutions": True, "matmuls": False}}, "convolutions",
         "FP32 with TF32 in convolutions (PyTorch's default, as published), none in products"),
        ("pytorch-cuda", None, {"tf32": {"convolutions": True, "matmuls": True}}, "everywhere",
         "allowed in all layers"),
        ("pytorch-cuda", None, {"tf32": {"convolutions": False, "matmuls": False}}, "nowhere", "FP32 throughout"),
        ("onnxruntime-cuda", None, {}, "everywhere", "allowed in all layers"),
        ("tensorrt", True, {}, "everywhere", "allowed in all layers"),
        ("tensorrt-rtx", False, {}, "nowhere", "FP32 throughout"),
    ],
)  # fmt: skip
def test_a_row_says_what_fp32_was(
    backend: str, tf32: bool | None, facts: dict[str, Any], allowed: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    one = result(backend, "fp32", Made(Path("x"), "x", "ab", 1, "random", ("a note",), tf32=tf32), runner=facts)
    assert tf32_allowed(one.cell, one.facts) == allowed
    assert said in str(tf32_note(one.cell, one.facts))
    marked = noted(one.cell, one.facts)
    assert marked.made is not None
    assert marked.made.notes == ("a note", tf32_note(one.cell, one.facts))
    monkeypatch.setenv(OVERRIDE, "0")
    assert tf32_allowed(one.cell, one.facts) == "nowhere"


def test_only_fp32_on_a_gpu_is_in_question() -> None:
    made = Made(Path("x"), "x", "ab", 1, "random")
    for backend, precision in (("onnxruntime", "fp32"), ("pytorch-fp16", "fp16"), ("tensorrt", "int8")):
        one = result(backend, precision, made, **TF32_CONVOLUTIONS)
        assert tf32_note(one.cell, one.facts) is None
        assert noted(one.cell, one.facts) is one.cell


def test_tf32_is_forbidden_to_the_processes_of_a_benchmark_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv(OVERRIDE, raising=False)
    with tf32_as_asked(False):
        assert os.environ[OVERRIDE] == "0"
    assert OVERRIDE not in os.environ
    monkeypatch.setenv(OVERRIDE, "1")
    with tf32_as_asked(False):
        assert os.environ[OVERRIDE] == "0"
    with tf32_as_asked(True):
        assert os.environ[OVERRIDE] == "1"


@pytest.mark.parametrize(("tf32", "kind"), [(True, "tf32"), (False, "fp32")])
def test_engines_are_built_with_the_tensorrt_and_the_types_that_are_asked_for(
    tf32: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexport.pipeline import build

    source = tiny_graph(tmp_path / "resnet50.random.onnx")
    monkeypatch.setattr(Artifacts, "graph", lambda *_: Made(source, source.name, "ab", 1, "random", ("random",)))
    given: dict[str, Any] = {}

    def build_engine(graph: Path, **options: Any) -> Any:
        given.update(options, graph=graph)
        options["output"].parent.mkdir(parents=True, exist_ok=True)
        options["output"].write_bytes(b"vtrt")

        class Built:
            class artifact:  # noqa: N801
                path, sha256 = options["output"], "cd"

            notes, up_to_date, graph = ("built",), False, source

        return Built

    monkeypatch.setattr(build, "build_engine", build_engine)
    artifacts = Artifacts(Workspace(tmp_path), lambda *_: None)
    made = artifacts.engine("resnet50", "fp32", 224, 8, runtime="tensorrt-rtx", tf32=tf32)
    assert given["output"].name == f"resnet50.random.{kind}.batch8.tensorrt-rtx.engine"
    assert (given["runtime"], given["options"].batches, given["options"].tf32) == ("tensorrt-rtx", (8, 8, 8), tf32)
    assert (made.graph, made.tf32, made.notes, artifacts.made_anew) == (source, tf32, ("random", "built"), True)
    half = artifacts.engine("resnet50", "fp16", 224, 1, runtime="tensorrt", tf32=True)
    assert given["output"].name == "resnet50.random.fp16.batch1.tensorrt.engine"
    assert (given["options"].tf32, half.tf32) == (False, False)


def planned_for(monkeypatch: pytest.MonkeyPatch, *cells: Cell, **options: Any) -> tuple[Any, list[list[Cell]]]:
    """What `vexport bench FILE` would measure."""
    from vexport.pipeline import bench

    given: list[Any] = []
    monkeypatch.setattr(bench, "cells_of_file", lambda path, *_, **__: [cells[int(path.name)]])
    monkeypatch.setattr(bench, "run_session", lambda *both: given.extend(both))
    bench.measure_latency(
        [Path(str(index)) for index in range(len(cells))], workspace=Workspace(Path("out")), **options
    )  # fmt: skip
    return given[0], given[1]


def named(backend: str, precision: str, *, size: int = 224, tf32: bool | None = None) -> Cell:
    made = Made(Path("x"), "x", f"{backend}{precision}", 1, "trained", tf32=tf32)
    return Cell("mine", backend, precision, 1, (3, size, size), made)


def test_baselines_stand_beside_an_engine_in_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency on a GPU says nothing beside baselines on the CPU."""
    session, groups = planned_for(
        monkeypatch, named("tensorrt-rtx", "fp16"), named("tensorrt", "fp32", tf32=False), named("onnxruntime", "fp32")
    )
    assert [[(cell.network, cell.backend, cell.precision) for cell in group] for group in groups] == [
        [(network, backend, precision) for network in ("mine", "resnet50", "swin_tiny")]
        for backend, precision in (("tensorrt-rtx", "fp16"), ("tensorrt", "fp32"), ("onnxruntime", "fp32"))
    ]
    assert session.engine_tf32 is False, "as the engine that they stand beside"
    assert planned_for(monkeypatch, named("tensorrt", "fp32", tf32=True))[0].engine_tf32 is True


def test_no_baselines_beside_small_networks_or_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell, options in ((named("tensorrt", "fp16", size=32), {}), (named("tensorrt", "fp16"), {"baselines": False})):
        _, groups = planned_for(monkeypatch, cell, **options)
        assert [[one.network for one in group] for group in groups] == [["mine"]]


def test_a_recipe_says_how_engines_are_launched_and_what_fp32_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "networks: [resnet50]\nbackends: [tensorrt]\ncuda_graph: true\ntf32: false\ntimeouts: {make_s: 60}\n"
    )
    found = load_recipe(path)
    assert (found.cuda_graph, found.tf32, found.timeouts.make_s) == (True, False, 60)


def test_the_published_table_is_rebuilt_in_full() -> None:
    from vexport.model.baselines import BASELINES, FIGURES_ONLY
    from vexport.model.variants import VARIANTS

    table, wide = load_recipe("paper_a100"), load_recipe("paper_gpu")
    assert set(table.networks) == {*VARIANTS, *BASELINES}
    assert set(table.published) == set(FIGURES_ONLY)
    assert (table.batches, table.tf32) == ((1,), True)
    assert [(cells[0].backend, cells[0].precision) for cells in plan_groups(table)] == [
        ("pytorch-cuda", "fp32"),
        ("tensorrt", "fp32"),
        ("tensorrt", "fp16"),
        ("tensorrt-rtx", "fp32"),
        ("tensorrt-rtx", "fp16"),
    ]
    assert (wide.networks, wide.published, wide.batches) == (table.networks, table.published, (1,))
    assert set(wide.backends) > set(table.backends)
    # What the paper compares stands in one group.
    first = split_large(plan_groups(table)[0], table.max_open, "resnet50")[0]
    assert {cell.network for cell in first} == {*VARIANTS, "swin_tiny", "swin_small", "resnet50"}


@pytest.mark.parametrize(("ready", "reserved", "holds"), [(False, 0, 0), (True, 0, 0), (True, 1 << 20, 1)])
def test_only_a_process_with_memory_on_the_gpu_is_one_of_those_that_use_it(
    ready: bool, reserved: int, holds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: ready)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    assert bench_run._holds_gpu() == holds
