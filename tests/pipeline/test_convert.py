"""FP16 graphs in the workspace, and Triton repositories."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import vexport.pipeline.convert as convert_module
import vexport.pipeline.graphs as graphs_module
from vexport.artifacts import Engine, Graph, Manifest, Parent, Preprocessing
from vexport.errors import InputError, ParityError, WorkspaceError
from vexport.graph.inspect import metadata
from vexport.pipeline.convert import convert_graph
from vexport.pipeline.export import ExportResult, export_graph
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.serve import write_triton
from vexport.run.images import load_images
from vexport.run.ort import OrtRunner
from vexport.workspace import Workspace, hash_file, load_artifact, manifest_path, read_manifest, stage


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, fill: Any, small_spec: Any) -> Path:
    """The FP32 graph of the small network, and the same for batches of four, made once for many tests."""
    folder = tmp_path_factory.mktemp("exported")
    state = fill(small_spec)
    args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, nb_classes=10, input_size=64)
    torch.save({"model": state, "model_ema": state, "epoch": 299, "args": args}, folder / "ckpt.pth")
    export_graph(folder / "ckpt.pth", workspace=Workspace(folder))
    export_graph(folder / "ckpt.pth", workspace=Workspace(folder), batch=4, output=folder / "four.onnx")
    return folder


@pytest.fixture
def workspace(exported: Path, tmp_path: Path) -> Workspace:
    """A workspace with the small network's FP32 graph."""
    workspace = Workspace(tmp_path / "out")
    workspace.root.mkdir()
    for file in (*exported.glob("ckpt.onnx*"), *exported.glob("ckpt.deploy*")):
        shutil.copy(file, workspace.root)
    return workspace


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        values = np.random.default_rng(index).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
    return folder


def test_fp16_is_proven_and_again_up_to_date(workspace: Workspace) -> None:
    source = find_graph(None, workspace=workspace)
    made = convert_graph(source, "fp16", workspace=workspace)
    parity, in_onnxruntime = made.artifact.manifest.parity
    assert "rounded to FP16" in parity["how"]
    assert in_onnxruntime["passed"]
    assert (made.artifact.path.name, parity["passed"], parity["images"]) == ("ckpt.fp16.onnx", True, 16)
    assert 0 < parity["max_rel"] < 1e-2
    assert made.artifact.manifest.parent == source.parent
    assert convert_graph(source, "fp16", workspace=workspace).up_to_date
    assert sorted(path.name for path in workspace.root.glob("*.onnx")) == ["ckpt.fp16.onnx", "ckpt.onnx"]


def test_given_images_are_another_request(workspace: Workspace, tmp_path: Path) -> None:
    source = find_graph(None, workspace=workspace)
    convert_graph(source, "fp16", workspace=workspace)
    folder = pictures(tmp_path / "images", 8)
    made = convert_graph(source, "fp16", workspace=workspace, images=folder)
    assert (made.up_to_date, made.artifact.manifest.parity[0]["images"]) == (False, 8)
    assert convert_graph(source, "fp16", workspace=workspace, images=folder).up_to_date
    pictures(tmp_path / "more", 9)
    assert not convert_graph(source, "fp16", workspace=workspace, images=tmp_path / "more").up_to_date


def test_a_missed_gate_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vexport.run.compare.TOLERANCES", {"fp16": 1e-9})
    with pytest.raises(ParityError, match="the FP16 graph disagrees") as caught:
        convert_graph(find_graph(None, workspace=workspace), "fp16", workspace=workspace)
    assert caught.value.exit_code == 3
    assert not list(workspace.root.glob("*fp16*"))
    assert not list(workspace.root.glob(".vexport*"))


def test_given_images_must_keep_their_classes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(convert_module.LEAST_TOP1, "fp16", 1.0)
    source, folder = find_graph(None, workspace=workspace), pictures(tmp_path / "images", 4)
    made = convert_graph(source, "fp16", workspace=workspace, images=folder)
    assert made.artifact.manifest.parity[0]["least_top1"] == 1.0
    made = convert_graph(source, "fp16", workspace=workspace)
    assert made.artifact.manifest.parity[0]["least_top1"] == 0.0


def test_what_is_fp16_already_is_refused(workspace: Workspace) -> None:
    made = convert_graph(find_graph(None, workspace=workspace), "fp16", workspace=workspace)
    with pytest.raises(InputError, match="is fp16 already"):
        convert_graph(find_graph(made.artifact.path, workspace=workspace), "fp16", workspace=workspace)


def test_which_graph_is_taken(workspace: Workspace, small_checkpoint: Path, tmp_path: Path) -> None:
    graph = workspace.root / "ckpt.onnx"
    assert find_graph(None, workspace=workspace).path == graph
    copied = Path(shutil.copy(graph, tmp_path / "foreign.onnx"))
    foreign = find_graph(copied, workspace=workspace)
    assert (foreign.precision, foreign.stem, foreign.facts["model"]) == ("fp32", "foreign", "vanillanet_5")
    assert find_graph(small_checkpoint, workspace=workspace).path == graph
    with pytest.raises(InputError, match="is a graph of vanillanet_5, not of vanillanet_6"):
        find_graph(graph, workspace=workspace, model="vanillanet_6")
    with pytest.raises(InputError, match="there is no int8 graph"):
        find_graph(None, workspace=workspace, precisions=("int8",))
    with pytest.raises(InputError, match="exclude each other"):
        find_graph(graph, workspace=workspace, weights="random")


@pytest.fixture
def engine(workspace: Workspace) -> Engine:
    """An engine's file and manifest, for what only copies them."""
    graph = workspace.root / "ckpt.onnx"
    path = workspace.root / "ckpt.fp32.sm80.engine"
    path.write_bytes(b"vtrt plan")
    source = find_graph(graph, workspace=workspace)
    facts = source.facts | {
        "runtime": {"name": "tensorrt-rtx", "version": "1.7"},
        "stripped": False,
        "profile": {"min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [8, 3, 64, 64]},
    }
    return Engine(path, Manifest("engine", hash_file(path), 9, Parent(graph.name, hash_file(graph)), {}, facts))


def as_classic(engine: Engine, **facts: Any) -> Engine:
    runtime = {"name": "tensorrt", "version": "10.13"}
    return replace(engine, manifest=replace(engine.manifest, facts=engine.facts | {"runtime": runtime} | facts))


def test_triton_serves_the_graph_of_an_rtx_engine(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    graph = workspace.root / "ckpt.onnx"
    model, notes = write_triton(engine, graph, tmp_path / "models")
    assert sorted(p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()) == [
        "1/model.onnx",
        "PREPROCESSING.md",
        "config.pbtxt",
        "vexport.json",
    ]
    assert hash_file(model / "1" / "model.onnx") == hash_file(graph)
    config = (model / "config.pbtxt").read_text()
    assert re.search(r'^name: "ckpt"$', config, re.M)
    assert re.search(r'^platform: "onnxruntime_onnx"$', config, re.M)
    assert re.search(r"^max_batch_size: 8$", config, re.M)
    assert re.findall(r"dims: \[ (.*) \]", config) == ["3, 64, 64", "10"]
    assert config.count("{") == config.count("}")
    assert config.count("[") == config.count("]")
    assert len(notes) == 2
    assert "N x 3 x 64 x 64, RGB" in (model / "PREPROCESSING.md").read_text()
    assert json.loads((model / "vexport.json").read_text())["engine"]["sha256"] == engine.sha256


def test_triton_serves_a_classic_plan_with_labels(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    classic = as_classic(engine, class_names=[f"class {n}" for n in range(10)])
    model, notes = write_triton(classic, workspace.root / "ckpt.onnx", tmp_path / "models")
    assert (model / "1" / "model.plan").read_bytes() == b"vtrt plan"
    assert (model / "labels.txt").read_text().splitlines()[9] == "class 9"
    config = (model / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in config
    assert 'label_filename: "labels.txt"' in config
    assert notes == ()


def test_triton_replaces_its_own_and_nothing_else(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    graph, folder = workspace.root / "ckpt.onnx", tmp_path / "models"
    write_triton(engine, graph, folder)
    model, _ = write_triton(as_classic(engine), graph, folder)
    assert [path.name for path in (model / "1").iterdir()] == ["model.plan"]
    (model / "vexport.json").unlink()
    with pytest.raises(WorkspaceError, match="was not written by vexport"):
        write_triton(engine, graph, folder)
    write_triton(engine, graph, folder, force=True)


def test_triton_on_a_full_disk(
    engine: Engine, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    graph, folder = workspace.root / "ckpt.onnx", tmp_path / "models"
    model, _ = write_triton(engine, graph, folder)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    monkeypatch.setattr("vexport.pipeline.serve.shutil.copyfile", full)
    with pytest.raises(WorkspaceError, match="no space left"):
        write_triton(engine, graph, folder)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.iterdir()] == ["ckpt"]


@pytest.fixture
def fp32(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported / "ckpt.onnx", tmp_path / "ckpt.onnx"))


@pytest.fixture
def out(tmp_path: Path) -> Workspace:
    """A workspace with nothing in it."""
    return Workspace(tmp_path / "out")


def scaled(graph: Path, factor: float) -> Path:
    """The same network with activations of the first layer `factor` times as large, a power of two."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        scale = {"stem.0.weight": factor, "stem.0.bias": factor, "stem.1.weight": 1 / factor}.get(tensor.name)
        if scale is not None:
            values = numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = graph.with_name("scaled.onnx")
    onnx.save(model, path)
    return path


def conv_types(path: Path) -> dict[str, int]:
    """In which type each convolution computes: that of its weight, after the checker has seen the whole graph."""
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {node.name: weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


STEM = {"stem.0", "stem.0.relu", "stem.1"}


@pytest.mark.parametrize(
    ("factor", "kept"),
    [(2**8, set()), (2**11, STEM), (2**13, STEM), (2**17, STEM)],
    ids=["fits", "within the headroom", "activations overflow", "weights overflow"],
)
def test_layers_that_overflow_stay_in_fp32_and_say_why(
    fp32: Path, out: Workspace, factor: float, kept: set[str]
) -> None:
    hot = scaled(fp32, factor)
    images = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    with OrtRunner(fp32) as before, OrtRunner(hot) as after:
        np.testing.assert_allclose(after(images), before(images), rtol=1e-4, atol=1e-4)
    made = convert_graph(find_graph(hot, workspace=out), "fp16", workspace=out)
    manifest = read_manifest(made.artifact.path)
    assert manifest is not None
    assert set(made.kept) == set(manifest.facts["kept_fp32"]) == kept
    assert all(entry["passed"] for entry in manifest.parity)
    assert len(manifest.parity) == 2
    reached = manifest.facts["max_abs_by_tensor"]["stem.0"]
    assert (reached > 65504) == (factor > 2**11)
    if factor == 2**17:
        assert re.match(r"weight stem\.0\.(weight|bias) reaches 1\.\d+e\+05$", made.kept["stem.0"])
    elif kept:
        assert made.kept["stem.0"] == f"it gives activations up to {reached:.3g}"
    if kept:
        assert made.kept["stem.0.relu"].startswith("it takes activations up to ")
        assert made.kept["stem.1"].startswith("it takes activations up to ")
    types = conv_types(made.artifact.path)
    assert len(types) == 9
    assert {name for name, kind in types.items() if kind == TensorProto.FLOAT} == kept & set(types)
    assert {kind for name, kind in types.items() if name not in kept} == {TensorProto.FLOAT16}


def test_the_gate_sees_an_overflow_that_nothing_was_kept_from(
    fp32: Path, out: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vexport.graph.precision.overflowing_nodes", lambda *_: {})
    with pytest.raises(ParityError, match="the FP16 graph disagrees") as caught:
        convert_graph(find_graph(scaled(fp32, 2**13), workspace=out), "fp16", workspace=out)
    assert "is nan" in caught.value.details[0]
    assert caught.value.exit_code == 3
    assert left_in(out.root) == []


def test_a_failed_gate_leaves_the_graph_that_was_there(
    fp32: Path, out: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_graph(fp32, workspace=out)
    convert_graph(source, "fp16", workspace=out)
    before = {path.name: path.read_bytes() for path in out.root.iterdir()}
    monkeypatch.setattr("vexport.run.compare.TOLERANCES", {"fp16": 0.0})
    with pytest.raises(ParityError):
        convert_graph(source, "fp16", workspace=out, images=pictures(tmp_path / "images", 4))
    assert {path.name: path.read_bytes() for path in out.root.iterdir()} == before


def test_bf16_needs_no_layer_in_fp32(fp32: Path, out: Workspace) -> None:
    made = convert_graph(find_graph(scaled(fp32, 2**17), workspace=out), "bf16", workspace=out)
    assert (made.artifact.path.name, made.artifact.precision, made.kept) == ("scaled.bf16.onnx", "bf16", {})
    assert set(conv_types(made.artifact.path).values()) == {TensorProto.BFLOAT16}
    (parity,) = made.artifact.manifest.parity  # ONNX Runtime's CPU has no BF16 kernels
    assert "rounded to BF16" in parity["how"]
    assert (parity["passed"], parity["tolerance"]) == (True, 5e-2)
    assert 1e-4 < parity["max_rel"] < 5e-2
    assert made.artifact.facts["opset"] == onnx.load(made.artifact.path).opset_import[0].version >= 22
    assert convert_graph(find_graph(fp32.with_name("scaled.onnx"), workspace=out), "bf16", workspace=out).up_to_date


def test_an_fp16_and_a_bf16_graph_stand_side_by_side(fp32: Path, out: Workspace) -> None:
    source = find_graph(fp32, workspace=out)
    half, brain = (convert_graph(source, kind, workspace=out).artifact for kind in ("fp16", "bf16"))  # type: ignore[arg-type]
    assert left_in(out.root) == [
        "ckpt.bf16.onnx",
        "ckpt.bf16.onnx.json",
        "ckpt.fp16.onnx",
        "ckpt.fp16.onnx.json",
    ]
    for made, precision in ((half, "fp16"), (brain, "bf16")):
        with pytest.raises(InputError, match=f"is {precision} already"):
            convert_graph(find_graph(made.path, workspace=out), "fp16", workspace=out)
        props = metadata(onnx.load(made.path))
        assert (props["vexport.precision"], props["vexport.parent_sha256"]) == (precision, hash_file(fp32))
        assert props["vexport.model"] == made.model == "vanillanet_5"
        assert "vexport.preprocessing" in props
        assert load_artifact(made.path) == made


def test_a_changed_graph_is_another_request(fp32: Path, out: Workspace) -> None:
    convert_graph(find_graph(fp32, workspace=out), "fp16", workspace=out)
    shutil.copy(scaled(fp32, 2), fp32)
    made = convert_graph(find_graph(fp32, workspace=out), "fp16", workspace=out)
    assert not made.up_to_date
    assert made.artifact.manifest.parent is not None
    assert made.artifact.manifest.parent.sha256 == hash_file(fp32)


def test_ranges_are_those_of_the_given_images(fp32: Path, out: Workspace, tmp_path: Path) -> None:
    source, folder = find_graph(fp32, workspace=out), pictures(tmp_path / "images", 4)
    facts = convert_graph(source, "fp16", workspace=out, images=folder).artifact.facts
    assert source.preprocessing is not None
    loaded = load_images(folder, source.preprocessing)
    assert loaded.shape == (4, 3, 64, 64)
    assert facts["max_abs_by_tensor"]["input"] == pytest.approx(float(np.abs(loaded).max()), rel=1e-6)
    assert facts["max_activation"] == max(facts["max_abs_by_tensor"].values())
    assert [row["node"] for row in facts["weights"]][:2] == ["stem.0", "stem.0"]
    assert sum(row["values"] for row in facts["weights"]) == facts["parameters"]


def test_images_must_fill_a_fixed_batch(exported: Path, out: Workspace, tmp_path: Path) -> None:
    source = find_graph(exported / "four.onnx", workspace=out)
    with pytest.raises(InputError, match="3 images do not fill the graph's batch of 4"):
        convert_graph(source, "fp16", workspace=out, images=pictures(tmp_path / "three", 3))
    assert left_in(out.root) == []
    made = convert_graph(source, "fp16", workspace=out, images=pictures(tmp_path / "nine", 9))
    assert (made.artifact.manifest.parity[0]["images"], made.artifact.facts["batch"]) == (8, 4)
    made = convert_graph(source, "fp16", workspace=out)
    assert (made.up_to_date, made.artifact.manifest.parity[0]["images"]) == (False, 16)
    with OrtRunner(made.artifact.path) as runner:
        assert runner.input_shape == (4, 3, 64, 64)


def test_a_folder_without_images_is_refused(fp32: Path, out: Workspace, tmp_path: Path) -> None:
    source = find_graph(fp32, workspace=out)
    with pytest.raises(InputError, match="does not exist"):
        convert_graph(source, "fp16", workspace=out, images=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no image"):
        convert_graph(source, "fp16", workspace=out, images=tmp_path / "empty")


def test_what_others_wrote_is_not_replaced(fp32: Path, out: Workspace) -> None:
    out.root.mkdir()
    (out.root / "ckpt.fp16.onnx").write_text("theirs")
    source = find_graph(fp32, workspace=out)
    with pytest.raises(WorkspaceError, match="was not written by vexport"):
        convert_graph(source, "fp16", workspace=out)
    assert (out.root / "ckpt.fp16.onnx").read_text() == "theirs"
    assert not convert_graph(source, "fp16", workspace=out, force=True).up_to_date
    assert set(conv_types(out.root / "ckpt.fp16.onnx").values()) == {TensorProto.FLOAT16}


def test_external_data_is_read(fp32: Path, out: Workspace, tmp_path: Path) -> None:
    whole = convert_graph(find_graph(fp32, workspace=out), "fp16", workspace=out).artifact
    (tmp_path / "other").mkdir()
    split = tmp_path / "other" / "ckpt.onnx"
    onnx.save(onnx.load(fp32), split, save_as_external_data=True, location="ckpt.onnx.data", size_threshold=0)
    made = convert_graph(find_graph(split, workspace=out), "fp16", workspace=Workspace(tmp_path / "two")).artifact
    ours, theirs = (onnx.load(path).graph.initializer for path in (made.path, whole.path))
    assert [(tensor.name, tensor.raw_data) for tensor in ours] == [(tensor.name, tensor.raw_data) for tensor in theirs]


def classifier(path: Path, weight: np.ndarray, bias: np.ndarray, *, batch: int | str = "n", **props: str) -> Path:
    """A graph of 1x1 convolution, pooling and flattening on 3x8x8 images, of nodes without names."""
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["conv"]),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(bias)])],
        [
            numpy_helper.from_array(weight.astype(np.float32).reshape(-1, 3, 1, 1), "weight"),
            numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


def test_given_images_that_lose_their_class_miss_the_gate(out: Workspace, tmp_path: Path) -> None:
    """Two classes whose logits FP16 cannot tell apart: the error is within the tolerance, the class is another."""
    path = classifier(tmp_path / "tie.onnx", np.zeros((3, 3)), np.array([1, 1 + 2**-12, 0]))
    source, folder = find_graph(path, workspace=out), pictures(tmp_path / "images", 4)
    with pytest.raises(ParityError, match="disagrees") as caught:
        convert_graph(source, "fp16", workspace=out, images=folder)
    assert caught.value.exit_code == 3
    assert caught.value.details[1] == "top-1 agrees on 0.0% of 4 images, 99% are asked"
    assert left_in(out.root) == []
    made = convert_graph(source, "fp16", workspace=out)
    assert [entry["top1_agreement"] for entry in made.artifact.manifest.parity] == [0, 0]


def test_nodes_without_a_name_are_kept_too(out: Workspace, tmp_path: Path) -> None:
    path = classifier(tmp_path / "anonymous.onnx", np.ones((3, 3)), np.array([40000, 1, 2]))
    made = convert_graph(find_graph(path, workspace=out), "fp16", workspace=out)
    assert set(made.kept) == {"Conv#0", "GlobalAveragePool#1", "Flatten#2"}
    assert len({node.name for node in onnx.load(made.artifact.path).graph.node}) == made.artifact.facts["nodes"]
    assert conv_types(made.artifact.path) == {"Conv#0": TensorProto.FLOAT}


def put(workspace: Workspace, name: str, when: int, *, model: str = "vanillanet_9", precision: str = "fp32") -> Path:
    """A graph of the workspace, asked for at a time."""
    with stage(workspace.root / name) as staging:
        staging.path.write_text(name)
        facts = {"model": model, "precision": precision, "num_classes": 10, "max_activation": 1.0}
        made = staging.publish(Graph, lambda sha256, size: Manifest("graph", sha256, size, Parent("a", "b"), {}, facts))
    os.utime(manifest_path(made.path), (when, when))
    return made.path


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was asked of the export, which answers with a graph at once."""
    asked: list[dict[str, Any]] = []

    def export(path: Path | None, **options: Any) -> ExportResult:
        asked.append({"path": path, **options})
        graph = Workspace(tmp_path / "exported")
        artifact = load_artifact(put(graph, "exported.onnx", 1, model=options["model"] or "vanillanet_5"))
        assert isinstance(artifact, Graph)
        return ExportResult(artifact, "as exported", False, ())

    monkeypatch.setattr(graphs_module, "export_graph", export)
    return asked


def test_a_path_comes_before_the_newest_graph(out: Workspace, tmp_path: Path, exports: list[dict[str, Any]]) -> None:
    put(out, "newest.onnx", 2)
    named = put(Workspace(tmp_path / "elsewhere"), "named.fp16.onnx", 1, precision="fp16")
    found = find_graph(named, workspace=out)
    assert (found.path, found.stem, found.precision, found.took) == (named, "named", "fp16", str(named))
    assert found.parent == Parent("named.fp16.onnx", hash_file(named))
    assert found.facts == {"model": "vanillanet_9", "num_classes": 10}, (
        "only what holds of the network, not of the file"
    )
    assert exports == []


def test_a_checkpoint_is_exported_whatever_the_workspace_has(
    out: Workspace, small_checkpoint: Path, exports: list[dict[str, Any]]
) -> None:
    put(out, "newest.onnx", 2)
    found = find_graph(small_checkpoint, workspace=out, force=True)
    assert [(call["path"], call["weights"], call["force"]) for call in exports] == [(small_checkpoint, None, True)]
    assert (found.path.name, found.took) == ("exported.onnx", "as exported")
    assert found.exported is not None


def test_weights_come_before_the_newest_graph(out: Workspace, exports: list[dict[str, Any]]) -> None:
    put(out, "newest.onnx", 2, model="vanillanet_5")
    found = find_graph(None, workspace=out, model="vanillanet_5", weights="random")
    assert [(call["path"], call["model"], call["weights"]) for call in exports] == [(None, "vanillanet_5", "random")]
    assert found.path.name == "exported.onnx"


def test_the_newest_fitting_graph_comes_before_the_model(out: Workspace, exports: list[dict[str, Any]]) -> None:
    put(out, "old.onnx", 1)
    newest = put(out, "new.onnx", 3)
    put(out, "half.fp16.onnx", 5, precision="fp16")
    other = put(out, "other.onnx", 2, model="vanillanet_5")
    put(out, "changed.onnx", 4).write_text("changed")
    found = find_graph(None, workspace=out)
    assert (found.path, found.took, found.exported) == (newest, f"{newest}, the newest", None)
    assert find_graph(None, workspace=out, model="vanillanet_5").path == other
    assert find_graph(None, workspace=out, precisions=("fp16", "fp32")).path.name == "half.fp16.onnx"
    assert exports == []


def test_a_model_that_no_graph_is_of_is_exported(out: Workspace, exports: list[dict[str, Any]]) -> None:
    put(out, "newest.onnx", 2)
    found = find_graph(None, workspace=out, model="vanillanet_6")
    assert [(call["path"], call["model"], call["workspace"]) for call in exports] == [(None, "vanillanet_6", out)]
    assert found.facts["model"] == "vanillanet_6"


def test_int8_is_not_exported(out: Workspace, exports: list[dict[str, Any]]) -> None:
    put(out, "newest.onnx", 2)
    with pytest.raises(InputError, match=f"there is no int8 graph in {out.root}"):
        find_graph(None, workspace=out, precisions=("int8",))
    with pytest.raises(InputError, match="there is no int8 graph"):
        find_graph(None, workspace=out, model="vanillanet_9", precisions=("int8",))
    quantized = put(out, "q.int8.onnx", 1, precision="int8")
    assert find_graph(None, workspace=out, precisions=("int8",)).path == quantized
    assert exports == []


def test_a_graph_of_another_network_is_refused(out: Workspace, tmp_path: Path) -> None:
    known = put(out, "known.onnx", 1)
    stamped = classifier(tmp_path / "stamped.onnx", np.ones((2, 3)), np.ones(2), **{"vexport.model": "vanillanet_9"})
    for path in (known, stamped):
        with pytest.raises(InputError, match=f"{path.name} is a graph of vanillanet_9, not of vanillanet_5"):
            find_graph(path, workspace=out, model="vanillanet_5")
        assert find_graph(path, workspace=out, model="vanillanet_9").path == path


def test_a_foreign_graph_says_what_it_can(out: Workspace, tmp_path: Path) -> None:
    path = classifier(tmp_path / "my.net.onnx", np.ones((2, 3)), np.ones(2))
    found = find_graph(path, workspace=out, model="vanillanet_9")
    assert (found.facts, found.precision, found.preprocessing) == ({"model": "my.net"}, "fp32", None)
    assert (found.parent, found.took) == (Parent("my.net.onnx", hash_file(path)), str(path))
    made = convert_graph(found, "fp16", workspace=out)
    assert (made.artifact.path.name, made.artifact.model) == ("my.net.fp16.onnx", "my.net")
    how = Preprocessing(input_size=(3, 8, 8), crop_pct=1.0)
    told = {"vexport.preprocessing": json.dumps(how.to_json()), "vexport.class_names": '["cat", "dog"]'}
    found = find_graph(classifier(path, np.ones((2, 3)), np.ones(2), **told), workspace=out)
    assert (found.preprocessing, found.facts["class_names"]) == (how, ["cat", "dog"])


def test_a_graph_whose_manifest_is_another_files_is_foreign(out: Workspace, tmp_path: Path) -> None:
    path = put(out, "known.onnx", 1)
    classifier(path, np.ones((2, 3)), np.ones(2))
    found = find_graph(path, workspace=out)
    assert (found.facts, found.parent.sha256) == ({"model": "known"}, hash_file(path))


def test_no_graph_at_the_path(out: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find_graph(tmp_path / "none.onnx", workspace=out)
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(InputError, match="is not a whole ONNX graph"):
        find_graph(tmp_path / "text.onnx", workspace=out)
    with pytest.raises(InputError, match="unknown model"):
        find_graph(None, workspace=out, model="vanillanet5")


def test_any_number_of_images_does_for_an_open_batch(out: Workspace, tmp_path: Path) -> None:
    path = classifier(tmp_path / "open.onnx", np.eye(3), np.zeros(3))
    images = pictures(tmp_path / "images", 3)
    made = convert_graph(find_graph(path, workspace=out), "fp16", workspace=out, images=images)
    assert made.artifact.manifest.parity[0]["images"] == 3


def test_a_fixed_batch_larger_than_32_can_be_filled(out: Workspace, tmp_path: Path) -> None:
    path = classifier(tmp_path / "forty.onnx", np.eye(3), np.zeros(3), batch=40)
    images = pictures(tmp_path / "images", 41)
    made = convert_graph(find_graph(path, workspace=out), "fp16", workspace=out, images=images)
    assert made.artifact.manifest.parity[0]["images"] == 40


def test_images_of_the_same_names_and_sizes_are_another_request(out: Workspace, tmp_path: Path) -> None:
    source = find_graph(classifier(tmp_path / "net.onnx", np.eye(3), np.zeros(3)), workspace=out)
    (tmp_path / "images").mkdir()
    for shade in (10, 200):
        for index in range(4):
            Image.new("RGB", (16, 16), (shade, 0, index)).save(tmp_path / "images" / f"{index}.bmp")
        made = convert_graph(source, "fp16", workspace=out, images=tmp_path / "images")
        assert not made.up_to_date


def test_damaged_metadata_is_refused(out: Workspace, tmp_path: Path) -> None:
    path = classifier(tmp_path / "net.onnx", np.eye(3), np.zeros(3), **{"vexport.preprocessing": "{"})
    with pytest.raises(InputError):
        find_graph(path, workspace=out)


def test_weights_among_the_inputs_are_no_batch() -> None:
    """As files of IR 3 list them, weights first: the batch is the image's."""
    from onnx import TensorProto, helper, numpy_helper

    from vexport.pipeline.convert import fixed_batch

    weight = numpy_helper.from_array(np.ones((6, 3, 1, 1), np.float32), "weight")
    for batch, wanted in (("n", None), (4, 4)):
        inputs = [("weight", [6, 3, 1, 1]), ("image", [batch, 3, 8, 8])]
        graph = helper.make_graph(
            [helper.make_node("Conv", ["image", "weight"], ["logits"])],
            "weights first",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 6, 8, 8])],
            [weight],
        )
        assert fixed_batch(helper.make_model(graph)) == wanted
