"""Real INT8 engines for an A100 from any machine: what computes in what, where the edges are, which graph was taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from colours import colour_graph, prepared, save_graph, save_images
from onnx import numpy_helper

import vexport.pipeline.depthwise as depthwise_module
import vexport.pipeline.half_rest as half_rest_module
from vexport.artifacts import Graph, Manifest
from vexport.bench.clock import Clock
from vexport.engine.build import BuildOptions, build_plan
from vexport.engine.int8 import require_int8_engine
from vexport.engine.runtime import choose_runtime
from vexport.errors import AccuracyError, EngineError, InputError, ParityError, PrecisionError
from vexport.graph.half_rest import depthwise_convs, int8_convs, make_rest_half, round_scales, take_out
from vexport.graph.inspect import read_graph
from vexport.graph.precision import convert_precision, lift_constants
from vexport.graph.quantize import conv_edges, conv_inputs, conv_nodes, quantize
from vexport.pipeline import quantize_gate
from vexport.pipeline.build import build_engine
from vexport.pipeline.build_int8 import plan_of, prepare_int8
from vexport.pipeline.calibration import QuantizeOptions
from vexport.pipeline.convert import name_nodes
from vexport.pipeline.depthwise import choose_by_time
from vexport.pipeline.export import export_graph
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.half_rest import derive_half_rest
from vexport.pipeline.int8_source import find_int8_graph
from vexport.pipeline.quantize import quantize_graph
from vexport.run.compare import random_batches
from vexport.run.ranges import measure_ranges
from vexport.workspace import Workspace, hash_file, read_manifest, stage

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")

A100 = 80
KERNELS_BYTES = 4_000_000  # code and tables beside the weights
DEPTHWISE = ["stem.1", "stages.0.act", "stages.1.act", "stages.2.act"]


def named(path: Path) -> onnx.ModelProto:
    model = lift_constants(read_graph(path))
    name_nodes(model)
    return model


def quantised(path: Path, size: tuple[int, int, int], count: int = 4) -> onnx.ModelProto:
    """With the ranges of some random images; random weights need not pass the gate."""
    model = named(path)
    ranges = measure_ranges(path, random_batches(size, (count,), seed=3))
    return quantize(model, {name: ranges[name] for name in conv_inputs(model, conv_nodes(model))})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, fill: Callable[..., Any], small_spec: Any) -> Path:
    """A folder with the small network's FP32 graph and an INT8 graph of it, `small.int8.onnx`, made once."""
    import argparse

    folder = tmp_path_factory.mktemp("made")
    args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, nb_classes=10, input_size=64)
    torch.save({"model": fill(small_spec), "epoch": 299, "args": args}, folder / "small.pth")
    export_graph(folder / "small.pth", workspace=Workspace(folder))
    onnx.save(quantised(folder / "small.onnx", (3, 64, 64)), folder / "small.int8.onnx")
    return folder


@pytest.fixture
def int8(made: Path) -> Path:
    return made / "small.int8.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.mark.parametrize(
    ("depthwise", "counts", "name"),
    [
        ("on", {"int8": 9}, "small.int8-depthwise.fp16.onnx"),
        ("off", {"int8": 5, "fp16": 4}, "small.int8.fp16.onnx"),
    ],
)
def test_every_convolution_is_int8_or_fp16(
    int8: Path, out: Workspace, depthwise: Any, counts: dict[str, int], name: str
) -> None:
    built = build_engine(int8, workspace=out, precision="int8", target="a100", int8_depthwise=depthwise)
    facts, manifest = built.artifact.facts, built.artifact.manifest
    assert built.artifact.path.name == "small.int8.sm80.engine"
    assert facts["build"]["precision_network"] == {"convolution": counts}
    assert facts["build"]["other_fp32"] == []
    assert (facts["precision"], facts["rest"], facts["kept_fp32"]) == ("int8", "fp16", {})
    assert facts["int8_depthwise"] == {"asked": depthwise, "chosen": depthwise, "measured": False}
    assert facts["taken_out"] == (DEPTHWISE if depthwise == "off" else [])
    # What the builder made of it, not only what it was given.
    told = facts["build"]["precision_built"]
    assert (told["result"], told["nodes_seen"], told["nodes"]) == ("read back", 9, 9)
    # The edges are those of the INT8 graph, on FP16's grid, but for the layers that were taken out.
    before = {edges.node: edges for edges in conv_edges(named(int8))}
    after = {row["node"]: row for row in facts["layers"]}
    assert list(after) == list(before)
    assert facts["int8_layers"] == [node for node in before if depthwise == "on" or node not in DEPTHWISE]
    for node, edges in before.items():
        assert after[node]["quantised"] == (node in facts["int8_layers"])
        if after[node]["quantised"]:
            scale = edges.input_scale
            assert scale is not None
            assert (after[node]["input"], after[node]["input_scale"]) == (edges.input, float(np.float16(scale)))
            assert after[node]["channels"] == edges.channels
    # The chain of parents: engine, the graph that was built, the INT8 graph.
    assert built.converted is not None
    graph = built.converted.artifact
    assert (graph.path.name, manifest.parent) == (name, graph.as_parent())
    assert (graph.manifest.parent and graph.manifest.parent.sha256) == hash_file(int8)
    assert graph.facts["layers"] == facts["layers"]
    pieces, rounded, file = graph.manifest.parity
    assert (pieces["passed"], pieces["tolerance"]) == (True, 1e-2)
    assert 0 < pieces["max_rel"] < 2e-3
    for entry in (rounded, file):
        assert entry["with"] == "small.int8.onnx"
        assert entry["cosine"] >= entry["least_cosine"] == 0.95
    again = build_engine(int8, workspace=out, precision="int8", target="a100", int8_depthwise=depthwise)
    assert again.up_to_date
    assert again.converted is not None
    assert again.converted.up_to_date
    built.artifact.path.unlink()
    cached = build_engine(int8, workspace=out, precision="int8", target="a100", int8_depthwise=depthwise)
    assert cached.from_cache
    assert cached.artifact.sha256 == manifest.sha256


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it is measured")
def test_auto_takes_the_default_and_says_that_it_was_not_measured(int8: Path, out: Workspace) -> None:
    built = build_engine(int8, workspace=out, precision="int8", target="a100")
    told = built.artifact.facts["int8_depthwise"]
    assert (told["asked"], told["chosen"], told["measured"]) == ("auto", half_rest_module.DEFAULT, False)
    assert any("not measured here" in note for note in built.notes)
    # Another request: the manifest shall say what was asked.
    asked = build_engine(int8, workspace=out, precision="int8", target="a100", int8_depthwise="off")
    assert not asked.up_to_date
    assert asked.from_cache
    assert asked.artifact.sha256 == built.artifact.sha256


def test_a_derived_graph_is_taken_as_it_is(int8: Path, out: Workspace) -> None:
    derived = derive_half_rest(find_graph(int8, workspace=out), "on", workspace=out).artifact.path
    built = build_engine(derived, workspace=out, precision="int8", target="a100")
    assert built.converted is None
    assert built.artifact.manifest.parent is not None
    assert built.artifact.manifest.parent.sha256 == hash_file(derived)
    assert built.artifact.facts["build"]["precision_network"] == {"convolution": {"int8": 9}}
    assert built.artifact.facts["int8_depthwise"]["chosen"] == "on"
    with pytest.raises(InputError, match="are chosen"):
        build_engine(derived, workspace=out, precision="int8", target="a100", int8_depthwise="off")
    # It is no INT8 graph to start from.
    with pytest.raises(InputError, match="there is no int8 graph"):
        build_engine(workspace=out, precision="int8", target="a100")


def test_layers_that_were_left_in_fp32_become_fp16(made: Path, out: Workspace, tmp_path: Path) -> None:
    model = named(made / "small.onnx")
    ranges = measure_ranges(made / "small.onnx", random_batches((3, 64, 64), (4,), seed=3))
    keep = ["stages.1.conv", "stem.1"]
    kept = quantize(model, {name: ranges[name] for name in conv_inputs(model, conv_nodes(model))}, keep=keep)
    onnx.save(kept, tmp_path / "kept.onnx")
    built = build_engine(tmp_path / "kept.onnx", workspace=out, precision="int8", target="a100", int8_depthwise="on")
    assert built.artifact.facts["build"]["precision_network"] == {"convolution": {"int8": 7, "fp16": 2}}
    assert built.artifact.facts["kept_fp32"] == {}
    assert not set(keep) & set(built.artifact.facts["int8_layers"])


def test_what_overflows_stays_in_fp32_and_int8_stays_int8(made: Path, out: Workspace, tmp_path: Path) -> None:
    model = onnx.load(made / "small.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    # From the first convolution to the next everything is a million times larger; ReLU does not mind.
    for name, factor in (("stem.0.weight", 1e6), ("stem.0.bias", 1e6), ("stem.1.weight", 1e-6)):
        values = numpy_helper.to_array(weights[name]) * np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "large.onnx")
    onnx.save(quantised(tmp_path / "large.onnx", (3, 64, 64)), tmp_path / "large.int8.onnx")
    path = tmp_path / "large.int8.onnx"
    on = build_engine(path, workspace=out, precision="int8", target="a100", int8_depthwise="on")
    kept = on.artifact.facts["kept_fp32"]
    # The depthwise one has scales of 1e-8: FP32 is kept around it as well.
    assert {"stem.0", "stem.0.relu", "stem.1"} <= set(kept)
    assert "stages.1.conv" not in kept
    assert on.artifact.facts["build"]["precision_network"] == {"convolution": {"int8": 9}}
    off = build_engine(path, workspace=out, precision="int8", target="a100", int8_depthwise="off")
    assert off.artifact.facts["build"]["precision_network"] == {"convolution": {"int8": 5, "fp16": 3, "fp32": 1}}


def test_a_layer_that_is_not_what_the_graph_says_is_refused(int8: Path, tmp_path: Path) -> None:
    """A cast between DequantizeLinear and convolution: typed FP16, and for TensorRT no INT8 layer."""
    half = make_rest_half(round_scales(named(int8)))
    plan = plan_of(half)
    (node,) = (node for node in half.graph.node if node.name == "stages.0.conv")
    (index,) = (index for index, one in enumerate(half.graph.node) if one.name == "stages.0.conv")
    double = onnx.helper.make_node("Mul", [node.input[0], "one"], ["between"], name="between")
    half.graph.initializer.append(numpy_helper.from_array(np.float16(1.0), "one"))
    node.input[0] = "between"
    half.graph.node.insert(index, double)
    path = tmp_path / "between.onnx"
    onnx.save(half, path)
    runtime = choose_runtime("tensorrt-rtx", by_name=True)
    with pytest.raises(PrecisionError) as caught:
        build_plan(path, BuildOptions("int8", targets=(A100,)), runtime, int8=plan)
    assert caught.value.exit_code == 3
    assert caught.value.details == ("stages.0.conv (convolution) is fp16, not int8",)


def test_a_missed_proof_leaves_nothing(int8: Path, out: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_graph(int8, workspace=out)
    monkeypatch.setattr("vexport.run.compare.TOLERANCES", {"fp16": 1e-6})
    with pytest.raises(ParityError, match="pieces of the graph differ") as caught:
        derive_half_rest(source, workspace=out)
    assert caught.value.exit_code == 3
    assert any(line.startswith("stem.1: error") for line in caught.value.details)
    monkeypatch.undo()
    monkeypatch.setattr(half_rest_module, "LEAST_RANDOM_COSINE", 1.0)
    with pytest.raises(ParityError, match="answers otherwise"):
        derive_half_rest(source, workspace=out)
    assert not list(out.root.iterdir())


def test_answers_are_compared_on_what_was_held_out(tmp_path: Path, out: Workspace) -> None:
    """As long as it is there, and the same: else on random images, which prove less."""
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    quantize_graph(graph, workspace=out, calib=calib, options=QuantizeOptions(images=64), threads=1)
    source = find_graph(out.root / "colours.int8.onnx", workspace=out)
    held_out = [entry["name"] for entry in source.facts["calibration"]["images"] if entry["part"] == "held out"]

    def inputs() -> set[str]:
        return {entry["inputs"] for entry in derive_half_rest(source, workspace=out).artifact.manifest.parity}

    assert inputs() == {f"{calib}, held out"}
    assert derive_half_rest(source, workspace=out).up_to_date
    kept = (calib / held_out[0]).read_bytes()
    (calib / held_out[0]).write_bytes((calib / held_out[1]).read_bytes())
    assert inputs() == {"random"}
    (calib / held_out[0]).unlink()
    assert inputs() == {"random"}
    (calib / held_out[0]).write_bytes(kept)
    assert inputs() == {f"{calib}, held out"}


def test_other_images_in_the_same_place_are_quantised_anew_as_before(tmp_path: Path, out: Workspace) -> None:
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    options = QuantizeOptions(images=64, keep=("last",), method="minmax")
    quantize_graph(graph, workspace=out, calib=calib, options=options, threads=1)
    assert find_int8_graph(graph, workspace=out, calib=calib).quantised is None
    shutil.rmtree(calib)
    save_images(calib, first=500)
    found = find_int8_graph(graph, workspace=out, calib=calib)
    assert found.quantised is not None
    assert not found.quantised.up_to_date
    facts = found.quantised.artifact.facts
    assert (facts["method"], list(facts["kept_fp32"])) == ("minmax", ["last"])


def test_the_engine_says_how_its_graph_was_made(tmp_path: Path, out: Workspace) -> None:
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    made = quantize_graph(graph, workspace=out, calib=calib, threads=1).artifact.facts
    built = build_engine(graph, workspace=out, precision="int8", target="a100")
    assert built.converted is not None
    for facts in (built.converted.artifact.facts, built.artifact.facts):
        told = facts["int8_graph"]
        assert told["gate"] == made["gate"]
        assert (told["method"], told["equalised"]) == (made["method"], made["equalised"])


def test_answers_that_share_an_offset_are_compared_without_it(tmp_path: Path, out: Workspace) -> None:
    """Uncentred, any answers with a large common part agree."""
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    quantize_graph(graph, workspace=out, calib=calib, threads=1)
    derived = derive_half_rest(find_graph(out.root / "colours.int8.onnx", workspace=out), workspace=out)
    for entry in derived.artifact.manifest.parity[1:]:
        assert entry["centred_cosine"] >= entry["least_cosine"]
        assert entry["centred_cosine"] <= entry["cosine"] + 1e-9


def test_labels_are_counted_again_on_the_graph_that_is_built(tmp_path: Path, out: Workspace) -> None:
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    made = quantize_graph(graph, workspace=out, calib=calib, options=QuantizeOptions(images=64), threads=1).artifact
    gate = made.facts["gate"]
    assert gate["kind"] == "accuracy"
    built = build_engine(made.path, workspace=out, precision="int8", target="a100")
    assert built.converted is not None
    derived = built.converted.artifact
    again = derived.facts["gate_of_rest"]
    assert (again["images"], again["passed"]) == (gate["images"], True)
    assert again["drop_points"] == gate["top1_percent_fp32"] - again["top1_percent"] <= gate["max_drop_points"]
    assert built.artifact.facts["gate_of_rest"] == again
    # A graph that loses more than was allowed is not written.
    before = hash_file(derived.path)
    beside = made.path.with_name(f"{made.path.name}.json")
    told = json.loads(beside.read_text())
    told["facts"]["gate"]["top1_percent_fp32"] = again["top1_percent"] + 1.0
    beside.write_text(json.dumps(told))
    with pytest.raises(AccuracyError, match=r"loses 1\.00 points of top-1, 0\.5 are allowed") as caught:
        derive_half_rest(find_graph(made.path, workspace=out), "on", workspace=out)
    assert caught.value.exit_code == 3
    assert not (out.root / "colours.int8-depthwise.fp16.onnx").exists()
    assert hash_file(derived.path) == before


def test_labels_that_cannot_be_counted_again_are_a_note(tmp_path: Path, out: Workspace) -> None:
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    made = quantize_graph(graph, workspace=out, calib=calib, options=QuantizeOptions(images=64), threads=1).artifact
    shutil.rmtree(calib)
    built = build_engine(made.path, workspace=out, precision="int8", target="a100")
    assert built.artifact.facts["gate_of_rest"].startswith("not run: there are no calibration images")
    assert any("not again with FP16 around its INT8 layers" in note for note in built.notes)
    # Once the images are back they are counted.
    save_images(calib)
    for entry in made.facts["calibration"]["images"]:
        assert (calib / entry["name"]).is_file()
    told = json.loads(made.path.with_name(f"{made.path.name}.json").read_text())
    assert told["options"]["labelled"] is not None
    again = derive_half_rest(find_graph(made.path, workspace=out), workspace=out)
    assert not again.up_to_date


def test_a_further_image_in_the_same_place_is_seen(tmp_path: Path, out: Workspace) -> None:
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    labels = save_images(tmp_path / "labels", first=300)
    options = QuantizeOptions(method="minmax")
    quantize_graph(graph, workspace=out, calib=calib, options=options, evaluate_on=labels, threads=1)
    shutil.copy(labels / "red" / "000.png", calib / "red" / "more.png")
    found = find_int8_graph(graph, workspace=out, calib=calib)
    assert found.quantised is not None
    facts = found.quantised.artifact.facts
    assert facts["method"] == "minmax"
    assert facts["gate"]["folder"] == str(labels)
    assert any("calibrated on other images" in note for note in found.notes)
    assert find_int8_graph(graph, workspace=out, calib=calib).quantised is None


def test_a_graph_that_does_not_say_how_images_are_prepared(tmp_path: Path, out: Workspace) -> None:
    model = colour_graph()
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    np.save(tmp_path / "images.npy", prepared(48))
    assert find_int8_graph(tmp_path / "bare.onnx", workspace=out, calib=tmp_path / "images.npy").quantised
    assert not find_int8_graph(tmp_path / "bare.onnx", workspace=out, calib=tmp_path / "images.npy").quantised


def test_a_checkpoint_leads_to_its_int8_graph(made: Path, out: Workspace) -> None:
    """Under any name, and its FP32 graph stays as it was exported."""
    exported = export_graph(made / "small.pth", workspace=out, batch=2).artifact
    with pytest.raises(InputError, match=r"small\.pth is not quantised"):
        find_int8_graph(made / "small.pth", workspace=out)
    path = out.root / "mine.onnx"
    with stage(path) as staging:
        shutil.copyfile(made / "small.int8.onnx", staging.path)
        facts = exported.facts | {"precision": "int8"}
        staging.publish(Graph, lambda sha256, size: Manifest("graph", sha256, size, exported.as_parent(), {}, facts))
    found = find_int8_graph(made / "small.pth", workspace=out)
    assert (found.graph.path, found.quantised) == (path, None)
    assert "made from" in found.graph.took
    assert hash_file(exported.path) == exported.sha256


def test_noisy_int8_may_differ_by_as_much_again(tmp_path: Path, out: Workspace) -> None:
    """The bound of the cosine follows how far the INT8 graph is from FP32."""
    allowed = half_rest_module._allowed
    assert allowed(tmp_path / "unknown.onnx") == 1.0
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images")
    made = quantize_graph(graph, workspace=out, calib=calib, threads=1).artifact
    beside = made.path.with_name(f"{made.path.name}.json")
    told = json.loads(beside.read_text())
    for cosine, bound in ((0.999, 0.996), (0.98, 0.92), (0.5, 0.9)):
        told["parity"][0]["centred_cosine"] = cosine
        beside.write_text(json.dumps(told))
        assert allowed(made.path) == pytest.approx(bound)


def test_a_graph_of_depthwise_layers_alone(tmp_path: Path, out: Workspace) -> None:
    model = named(save_graph(tmp_path / "colours.onnx"))
    onnx.save(quantize(model, {"pooled": 6.0}, keep=["first", "last"]), tmp_path / "one.int8.onnx")
    with pytest.raises(InputError, match="none would be left"):
        build_engine(tmp_path / "one.int8.onnx", workspace=out, precision="int8", target="a100")
    built = build_engine(
        tmp_path / "one.int8.onnx", workspace=out, precision="int8", target="a100", int8_depthwise="on"
    )
    assert built.artifact.facts["build"]["precision_network"] == {"convolution": {"int8": 1, "fp16": 2}}


def test_a_graph_without_int8_depthwise_layers_has_nothing_to_choose(tmp_path: Path, out: Workspace) -> None:
    model = named(save_graph(tmp_path / "colours.onnx"))
    onnx.save(quantize(model, {"input": 4.0, "second": 5.0}, keep=["second"]), tmp_path / "two.int8.onnx")
    built = build_engine(tmp_path / "two.int8.onnx", workspace=out, precision="int8", target="a100")
    assert built.artifact.facts["int8_depthwise"]["reason"] == "no depthwise convolution of the graph is INT8"
    assert built.notes == () or not any("not measured" in note for note in built.notes)


def test_the_options_go_with_int8(made: Path, out: Workspace) -> None:
    with pytest.raises(InputError, match="go with --int8"):
        build_engine(made / "small.onnx", workspace=out, int8_depthwise="on", target="a100")


class Twin:
    """A runner that takes as long as its name says, by a clock that the test winds."""

    now = 0

    def __init__(self, path: Path) -> None:
        self.cost = {"on": 3_000_000, "off": 2_000_000}[path.stem]

    def __call__(self, images: Any) -> None:
        assert images.shape == (2, 3, 8, 8)
        Twin.now += self.cost

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def wound() -> Clock:
    return Clock(warmup_s=0.0, duration_s=0.05, least_count=4, rounds=2, now_ns=lambda: Twin.now)


def test_auto_times_both_in_turns_and_keeps_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.run.open_runner", Twin)
    facts = {"profile": {"opt": [2, 3, 8, 8]}}
    asked: list[str] = []

    def build(mode: str, file: Path) -> Any:
        asked.append(mode)
        return SimpleNamespace(artifact=SimpleNamespace(path=file, facts=facts))

    told = choose_by_time(build, clock=wound())
    assert asked == ["on", "off"]
    assert (told["asked"], told["chosen"], told["measured"], told["batch"]) == ("auto", "off", True, 2)
    assert (told["on_ms"], told["off_ms"]) == (pytest.approx(3.0), pytest.approx(2.0))


def test_an_engine_that_fails_while_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Twin):
        def __call__(self, images: Any) -> None:
            raise EngineError("no memory", hint="-")

    monkeypatch.setattr("vexport.run.open_runner", Broken)
    engine = SimpleNamespace(path=Path("on.engine"), facts={"profile": {"opt": [2, 3, 8, 8]}})
    with pytest.raises(EngineError, match="failed while it was timed"):
        choose_by_time(lambda _mode, file: SimpleNamespace(artifact=SimpleNamespace(path=file, facts=engine.facts)),  # type: ignore[arg-type,return-value]
                       clock=wound())  # fmt: skip


def test_what_was_measured_is_kept_for_an_engine_that_stands(
    int8: Path, out: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = choose_runtime("tensorrt-rtx", by_name=True)
    engine = out.root / "small.int8.sm80.engine"
    measured: list[int] = []

    def measure(build: Any, **_: Any) -> Mapping[str, Any]:
        measured.append(1)
        device = depthwise_module._device()
        return {"asked": "auto", "chosen": "on", "measured": True, "device": device, "on_ms": 1.0, "off_ms": 2.0}

    monkeypatch.setattr("vexport.pipeline.build_int8.choose_by_time", measure)

    def prepare() -> Any:
        source = find_graph(int8, workspace=out)
        return prepare_int8(
            source, "auto", workspace=out, engine=engine, runtime=runtime, can_run=True, build=lambda *_: None  # type: ignore[arg-type,return-value]
        )  # fmt: skip

    ready = prepare()
    assert (len(measured), len(ready.plan.int8)) == (1, 9)
    out.root.mkdir(exist_ok=True)
    from vexport.artifacts import Engine

    with stage(engine) as staging:
        staging.path.write_bytes(b"plan")
        staging.publish(
            Engine, lambda sha256, size: Manifest("engine", sha256, size, None, {}, dict(ready.graph.facts))
        )
    assert prepare().graph.facts["int8_depthwise"]["on_ms"] == 1.0
    assert len(measured) == 1
    manifest = read_manifest(engine)
    assert manifest is not None
    of = manifest.facts["int8_depthwise"]["of"]
    told = depthwise_module.recorded_choice(engine, of)
    assert told is not None
    assert told["chosen"] == "on"
    # Figures of another graph, other options, another TensorRT or another GPU say nothing here.
    for other in ({"graph": "another"}, {"options": {"opt_batch": 8}}, {"runtime": {"name": "tensorrt"}}):
        assert depthwise_module.recorded_choice(engine, of | other) is None
    monkeypatch.setattr(depthwise_module, "_device", lambda: "another GPU")
    assert depthwise_module.recorded_choice(engine, of) is None


def test_which_graph_is_taken(tmp_path: Path, out: Workspace) -> None:
    fp32, calib, other = (tmp_path / name for name in ("colours.onnx", "images", "others"))
    save_graph(fp32)
    save_images(calib)
    save_images(other, each=20)
    with pytest.raises(InputError, match="is fp32, the engine shall be int8") as caught:
        find_int8_graph(fp32, workspace=out)
    assert "--calib DIR" in caught.value.hint
    assert "vexport quantize" in caught.value.hint
    first = find_int8_graph(fp32, workspace=out, calib=calib)
    assert first.quantised is not None
    assert "quantised just now" in first.graph.took
    # The FP32 graph is not in the workspace, its INT8 graph is: both names lead there.
    for path in (fp32, first.graph.path, None):
        found = find_int8_graph(path, workspace=out)
        assert (found.quantised, found.graph.path, found.notes) == (None, first.graph.path, ())
    # Calibrated there already, with whatever options: it is taken as it is.
    assert find_int8_graph(fp32, workspace=out, calib=calib).quantised is None
    assert "not used" in find_int8_graph(first.graph.path, workspace=out, calib=other).notes[0]
    again = find_int8_graph(fp32, workspace=out, calib=other)
    assert again.quantised is not None
    assert again.quantised.artifact.facts["calibration"]["path"] == str(other)


def test_the_newest_int8_graph_is_that_of_the_newest_fp32_graph(tmp_path: Path, out: Workspace) -> None:
    calib = save_images(tmp_path / "images")
    paths = {}
    for name in ("a", "b"):
        paths[name] = publish(out, f"{name}.onnx", spread=1.0 if name == "a" else 1.5)
    made = quantize_graph(paths["a"], workspace=out, calib=calib).artifact.path
    assert find_int8_graph(None, workspace=out).graph.path == made
    touch(paths["b"])
    with pytest.raises(InputError, match=r"there is no int8 graph in .* of b\.onnx"):
        find_int8_graph(None, workspace=out)
    touch(paths["a"])
    found = find_int8_graph(None, workspace=out)
    assert (found.graph.path, "made from" in found.graph.took) == (made, True)


def publish(out: Workspace, name: str, **options: Any) -> Path:
    out.root.mkdir(exist_ok=True)
    path = out.root / name
    with stage(path) as staging:
        save_graph(staging.path, **options)
        facts = {"model": "colours", "precision": "fp32", "batch": None}
        staging.publish(Graph, lambda sha256, size: Manifest("graph", sha256, size, None, {}, facts))
    return path


def touch(path: Path) -> None:
    import os
    import time

    ahead = time.time() + 5 + touch.count  # type: ignore[attr-defined]
    touch.count += 5  # type: ignore[attr-defined]
    os.utime(path.with_name(path.name + ".json"), (ahead, ahead))


touch.count = 0  # type: ignore[attr-defined]


@pytest.mark.slow
def test_vanillanet_5_at_full_width(tmp_path: Path) -> None:
    """Read back from builder and network, in both ways, and the sizes beside FP16."""
    import onnx_ir

    from vexport.graph.export import export_module
    from vexport.graph.naming import name_after_modules
    from vexport.graph.rewrite import make_plain
    from vexport.model.build import build_network
    from vexport.model.randomize import randomize_
    from vexport.model.variants import make_spec

    size = (3, 224, 224)
    module = randomize_(build_network(make_spec("vanillanet_5"), form="deployed"), size, batch=1)
    model = onnx_ir.to_proto(make_plain(export_module(module, size)))
    name_after_modules(model)
    onnx.save(model, tmp_path / "fp32.onnx")
    int8 = quantised(tmp_path / "fp32.onnx", size, count=1)
    assert len(int8_convs(int8)) == 9
    assert depthwise_convs(int8) == DEPTHWISE
    runtime = choose_runtime("tensorrt-rtx", by_name=True)
    options = BuildOptions("int8", targets=(A100,))
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    sizes = {}
    for mode, start, counts in (("on", int8, (9, 0)), ("off", take_out(int8, DEPTHWISE), (5, 4))):
        half = make_rest_half(round_scales(start))
        onnx.save(half, tmp_path / f"{mode}.onnx")
        plan = plan_of(half)
        assert (len(plan.int8), len(plan.others), plan.rest) == (*counts, "fp16")
        built = build_plan(tmp_path / f"{mode}.onnx", options, runtime, int8=plan)
        assert require_int8_engine(built.built, plan, {}) == 9
        sizes[mode] = len(built.plan)
    onnx.save(convert_precision(named(tmp_path / "fp32.onnx"), "fp16"), tmp_path / "fp16.onnx")
    fp16 = build_plan(tmp_path / "fp16.onnx", replace(options, precision="fp16"), runtime)
    assert parameters <= sizes["off"] <= 1.25 * parameters + KERNELS_BYTES
    assert sizes["off"] < 0.6 * len(fp16.plan)
    assert sizes["on"] < 0.65 * len(fp16.plan)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "convs"), [("vanillanet_5", 9), ("vanillanet_9", 17)])
def test_from_random_weights_to_an_engine(
    model: str, convs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full width, by the commands' own functions: the edges in the files are those that the reports name."""
    # Classes of random weights are nearly tied, and one image is held out of a dozen: that is no matter of accuracy.
    monkeypatch.setattr(quantize_gate, "LEAST_TOP1", 0.0)
    monkeypatch.setattr(quantize_gate, "LEAST_COSINE", 0.9)
    workspace = Workspace(tmp_path / "out")
    np.save(tmp_path / "images.npy", np.concatenate(random_batches((3, 224, 224), (4, 4, 4), seed=7)))
    fp32 = export_graph(workspace=workspace, model=model, weights="random").artifact.path
    made = quantize_graph(
        fp32,
        workspace=workspace,
        calib=tmp_path / "images.npy",
        options=QuantizeOptions(images=12, method="minmax", equalize=model == "vanillanet_5", mixed=False),
    ).artifact
    assert made.facts["layers"] == [edges.to_json() for edges in conv_edges(read_graph(made.path))]
    assert [row["quantised"] for row in made.facts["layers"]] == [True] * convs
    assert made.facts["int8_share_of_macs"] == 1
    assert made.path.stat().st_size < 0.27 * fp32.stat().st_size
    built = build_engine(made.path, workspace=workspace, precision="int8", target="a100")
    depthwise = depthwise_convs(read_graph(made.path))
    told = {row["node"]: row for row in built.artifact.facts["layers"]}
    for before in made.facts["layers"]:
        after = told[before["node"]]
        assert after["quantised"] == (before["node"] not in depthwise)
        if after["quantised"]:
            assert after["input_scale"] == pytest.approx(before["input_scale"], rel=1e-3)  # on FP16's grid
            assert after["channels"] == before["channels"]
    assert built.artifact.facts["build"]["precision_network"] == {
        "convolution": {"int8": convs - len(depthwise), "fp16": len(depthwise)}
    }
    assert built.artifact.path.stat().st_size > 1_000_000
