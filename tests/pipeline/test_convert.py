"""FP16 graphs in the workspace, and Triton repositories."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vexport.pipeline.convert as convert_module
from vexport.artifacts import Engine, Manifest, Parent
from vexport.errors import InputError, ParityError, WorkspaceError
from vexport.pipeline.convert import convert_graph
from vexport.pipeline.export import export_graph
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.serve import write_triton
from vexport.workspace import Workspace, hash_file


@pytest.fixture
def workspace(small_checkpoint: Path, tmp_path: Path) -> Workspace:
    """A workspace with the small network's FP32 graph."""
    workspace = Workspace(tmp_path / "out")
    export_graph(small_checkpoint, workspace=workspace)
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
