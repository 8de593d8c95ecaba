"""Triton repositories: the configuration field by field, labels, preprocessing, evidence, and what is replaced."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vexport.artifacts import Engine, Graph, Manifest, Parent, Preprocessing
from vexport.errors import InputError, WorkspaceError
from vexport.pipeline.serve import describe_preprocessing, render_config, write_triton
from vexport.run.images import prepare, resized_size
from vexport.run.ort import OrtRunner
from vexport.workspace import hash_file, stage

PLAN = b"plan\x00 of a tensorrt \xff"
TENSORRT = {"name": "tensorrt", "version": "10.13"}
RTX = {"name": "tensorrt-rtx", "version": "1.7"}


def network(batch: int | str = "n", classes: int | str = 5) -> onnx.ModelProto:
    """A classifier of 3x8x6 images."""
    weight = np.random.default_rng(0).normal(size=(5, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["conv"], name="conv"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["scores"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 8, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def profile(least: int, most: int) -> dict[str, list[int]]:
    return {"min": [least, 3, 8, 6], "opt": [least, 3, 8, 6], "max": [most, 3, 8, 6]}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of the workspace, with its manifest."""
    with stage(tmp_path / "out" / "my net.fp16.onnx") as staging:
        onnx.save(network(), staging.path)
        facts = {"model": "vanillanet_5", "precision": "fp16"}
        made = staging.publish(
            Graph, lambda sha256, size: Manifest("graph", sha256, size, Parent("ckpt.onnx", "ab"), {}, facts)
        )
    return made.path


def make_engine(graph: Path, runtime: dict[str, str] = TENSORRT, **facts: Any) -> Engine:
    """An engine's file and manifest, for what only copies them."""
    path = graph.with_name("my net.fp16.sm80.engine")
    path.write_bytes(PLAN)
    known = {"runtime": runtime, "stripped": False, "profile": profile(1, 8), "precision": "fp16", **facts}
    parity = [{"inputs": "random", "passed": True, "max_rel": 1e-3}]
    parent = Parent(graph.name, hash_file(graph))
    return Engine(path, Manifest("engine", hash_file(path), len(PLAN), parent, {}, known, parity=parity))


Fields = dict[str, Any]


def parse(text: str) -> Fields:
    """A protobuf text file as dictionaries and lists; the field's name is needed, a second value is an error."""
    tokens = re.findall(r'"[^"\n]*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', text)
    assert "".join(tokens).replace(" ", "") == re.sub(r"\s", "", text), "something is no token"

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while tokens[0] != "]":
                items.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
                    assert tokens[0] != "]"
            tokens.pop(0)
            return items
        assert re.fullmatch(r'"[^"]*"|\d+|[A-Z][A-Z0-9_]*', token), f"{token} is no value"
        return int(token) if token.isdigit() else token

    def message(end: str | None) -> Fields:
        fields: Fields = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            assert re.fullmatch("[a-z_]+", name), f"{name} is no field"
            assert name not in fields, f"{name} stands twice"
            if tokens[0] == ":":
                tokens.pop(0)
            else:
                assert tokens[0] in "{[", f"{name} has no colon"
            fields[name] = value()
        if end:
            assert tokens.pop(0) == end
        return fields

    return message(None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_configuration_for_an_open_batch(graph: Path, tmp_path: Path) -> None:
    labels = ["cat", "dog", "owl", "Käfer", "fox"]
    model, _ = write_triton(make_engine(graph, class_names=labels), graph, tmp_path / "models")
    assert parse((model / "config.pbtxt").read_text(encoding="utf-8")) == {
        "name": '"my_net"',
        "platform": '"tensorrt_plan"',
        "max_batch_size": 8,
        "input": [{"name": '"pixels"', "data_type": "TYPE_FP32", "dims": [3, 8, 6]}],
        "output": [
            {"name": '"scores"', "data_type": "TYPE_FP32", "dims": [5], "label_filename": '"labels.txt"'},
        ],
        "instance_group": [{"kind": "KIND_GPU", "count": 1}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }
    assert model == tmp_path / "models" / "my_net", "Triton wants the folder to be called as the model"


def test_the_configuration_for_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    onnx.save(network(batch=4), path)
    model, _ = write_triton(make_engine(path, profile=profile(4, 4)), path, tmp_path / "models")
    config = parse((model / "config.pbtxt").read_text())
    assert config == {
        "name": '"fixed"',
        "platform": '"tensorrt_plan"',
        "max_batch_size": 0,
        "input": [{"name": '"pixels"', "data_type": "TYPE_FP32", "dims": [4, 3, 8, 6]}],
        "output": [{"name": '"scores"', "data_type": "TYPE_FP32", "dims": [4, 5]}],
        "instance_group": [{"kind": "KIND_GPU", "count": 1}],
    }


@pytest.mark.parametrize(("least", "most", "batched"), [(1, 8, True), (1, 1, False), (2, 8, False)])
def test_requests_are_batched_where_any_number_goes(least: int, most: int, batched: bool) -> None:
    text = render_config("net", network().graph, {"profile": profile(least, most)}, as_plan=True, labels=False)
    config = parse(text)
    assert ("dynamic_batching" in config) == batched
    assert config["max_batch_size"] == most


def test_the_number_of_classes() -> None:
    facts = {"profile": profile(1, 8)}
    unknown = network(classes="k").graph
    text = render_config("net", unknown, facts | {"num_classes": 7}, as_plan=False, labels=False)
    assert parse(text)["output"][0]["dims"] == [7]
    assert parse(render_config("net", network().graph, facts | {"num_classes": 7}, as_plan=True, labels=False))[
        "output"
    ][0]["dims"] == [5], "the graph knows better"
    with pytest.raises(InputError, match="how many classes"):
        render_config("net", unknown, facts, as_plan=True, labels=False)


def test_a_classic_plan_is_served_as_it_is(graph: Path, tmp_path: Path) -> None:
    model, notes = write_triton(make_engine(graph, class_names=["a", "b", "c", "d", "e"]), graph, tmp_path / "models")
    assert set(files(model)) == {"1/model.plan", "config.pbtxt", "labels.txt", "PREPROCESSING.md", "vexport.json"}
    assert files(model)["1/model.plan"] == PLAN
    assert notes == ()


@pytest.mark.parametrize(
    ("runtime", "stripped", "said"),
    [(RTX, False, "opens no plans of TensorRT for RTX"), (TENSORRT, True, "refits no stripped plans")],
    ids=["RTX", "stripped"],
)
def test_where_triton_cannot_open_the_plan_the_graph_is_served(
    graph: Path, tmp_path: Path, runtime: dict[str, str], stripped: bool, said: str
) -> None:
    engine = make_engine(graph, runtime, stripped=stripped)
    model, notes = write_triton(engine, graph, tmp_path / "models")
    assert set(files(model)) == {"1/model.onnx", "config.pbtxt", "PREPROCESSING.md", "vexport.json"}
    assert files(model)["1/model.onnx"] == graph.read_bytes()
    assert parse((model / "config.pbtxt").read_text())["platform"] == '"onnxruntime_onnx"'
    assert said in notes[0]
    assert notes[1:] == ("no labels.txt: the class names are not known",)


def test_the_graphs_external_data_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    model, _ = write_triton(make_engine(path, RTX), path, tmp_path / "models")
    images = np.ones((2, 3, 8, 6), np.float32)
    with OrtRunner(path) as here, OrtRunner(model / "1" / "model.onnx") as served:
        assert np.array_equal(here(images), served(images))
    model, _ = write_triton(make_engine(path, TENSORRT), path, tmp_path / "models")
    assert [file.name for file in (model / "1").iterdir()] == ["model.plan"]


def test_labels_are_one_a_line_in_the_classes_order(graph: Path, tmp_path: Path) -> None:
    names = ["tench, Tinca tinca", "Käfer", "3", "a b", "z"]
    model, _ = write_triton(make_engine(graph, class_names=names), graph, tmp_path / "models")
    assert (model / "labels.txt").read_bytes() == ("\n".join(names) + "\n").encode()


def test_preprocessing_in_numbers(graph: Path, tmp_path: Path) -> None:
    how = Preprocessing(
        input_size=(3, 160, 160), mean=(0.5, 0.25, 0.125), std=(0.1, 0.2, 0.3), crop_pct=0.5, interpolation="bilinear"
    )
    model, _ = write_triton(make_engine(graph, preprocessing=how.to_json()), graph, tmp_path / "models")
    text = (model / "PREPROCESSING.md").read_text()
    assert "N x 3 x 160 x 160, RGB" in text
    assert "Resize the shorter side to 320 pixels (bilinear, antialiased)" in text
    assert "Crop the centre, 160 x 160" in text
    assert "mean (0.5, 0.25, 0.125) and divide by the standard deviation (0.1, 0.2, 0.3)" in text
    assert "logits" in text
    grey = replace(how, input_size=(1, 32, 32), mean=(0.5,), std=(0.25,), crop_pct=1.0)
    text = describe_preprocessing({"preprocessing": grey.to_json()})
    assert "N x 1 x 32 x 32, grey" in text
    assert "to 32 pixels" in text
    assert "does not say" in describe_preprocessing({})


def test_preprocessing_as_described_is_what_vexport_does() -> None:
    """Each step of the text by hand, with the numbers read out of it."""
    how = Preprocessing(input_size=(3, 64, 64), crop_pct=0.8)
    text = describe_preprocessing({"preprocessing": how.to_json()})
    side = int(re.findall(r"shorter side to (\d+)", text)[0])
    crop = int(re.findall(r"Crop the centre, (\d+) x", text)[0])
    mean, std = ([float(number) for number in part.split(",")] for part in re.findall(r"\(([\d., ]+)\)", text))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 150, 3), dtype=np.uint8))
    resized = image.resize((side * 150 // 100, side), Image.Resampling.BICUBIC)
    top, left = (side - crop) // 2, (resized.width - crop) // 2
    pixels = np.asarray(resized.crop((left, top, left + crop, top + crop)), np.float32) / 255
    by_hand = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    np.testing.assert_allclose(by_hand, prepare(image, how), atol=1e-5)


def test_the_evidence_is_both_manifests(graph: Path, tmp_path: Path) -> None:
    engine = make_engine(graph)
    model, _ = write_triton(engine, graph, tmp_path / "models")
    evidence = json.loads((model / "vexport.json").read_text())
    assert evidence["tool"] == "vexport"
    assert Manifest.from_json(evidence["engine"]) == engine.manifest
    assert evidence["engine"]["parity"][0]["passed"]
    assert evidence["engine"]["sha256"] == hash_file(model / "1" / "model.plan")
    assert evidence["graph"]["sha256"] == evidence["engine"]["parent"]["sha256"] == hash_file(graph)
    foreign = tmp_path / "foreign.onnx"
    onnx.save(network(), foreign)
    model, _ = write_triton(make_engine(foreign), foreign, tmp_path / "models")
    assert json.loads((model / "vexport.json").read_text())["graph"] is None


def test_its_own_model_is_replaced_whole(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    first, _ = write_triton(make_engine(graph, RTX, class_names=list("abcde")), graph, folder)
    (first / "2").mkdir()
    (first / "2" / "model.onnx").write_text("another version")
    model, _ = write_triton(make_engine(graph), graph, folder)
    assert model == first
    assert set(files(model)) == {"1/model.plan", "config.pbtxt", "PREPROCESSING.md", "vexport.json"}
    assert [path.name for path in folder.iterdir()] == ["my_net"]


def test_other_models_of_the_repository_stay(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    other = folder / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("theirs")
    write_triton(make_engine(graph), graph, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["my_net", "other"]
    assert other.read_text() == "theirs"


@pytest.mark.parametrize("what", ["folder", "empty folder", "file"])
def test_what_it_did_not_write_is_refused(graph: Path, tmp_path: Path, what: str) -> None:
    target = tmp_path / "models" / "my_net"
    target.parent.mkdir()
    if what == "file":
        target.write_text("theirs")
    else:
        target.mkdir()
    if what == "folder":
        (target / "config.pbtxt").write_text("theirs")
    before = files(tmp_path / "models")
    engine = make_engine(graph)
    with pytest.raises(WorkspaceError, match="was not written by vexport") as caught:
        write_triton(engine, graph, tmp_path / "models")
    assert "--force" in caught.value.hint
    assert files(tmp_path / "models") == before
    model, _ = write_triton(engine, graph, tmp_path / "models", force=True)
    assert files(model)["1/model.plan"] == PLAN
    assert [path.name for path in target.parent.iterdir()] == ["my_net"]


def test_a_missing_graph_is_refused(graph: Path, tmp_path: Path) -> None:
    engine = make_engine(graph)
    graph.unlink()
    with pytest.raises(InputError, match="no such file"):
        write_triton(engine, graph, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_repository_that_is_a_file_is_refused(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(WorkspaceError, match="is not a folder"):
        write_triton(make_engine(graph), graph, tmp_path / "models")


@pytest.mark.parametrize("there", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("halfway", [False, True], ids=["nothing written", "half written"])
def test_a_full_disk_leaves_what_was_there(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, halfway: bool
) -> None:
    def full(source: Path, target: Path) -> None:
        if halfway:
            Path(target).write_bytes(Path(source).read_bytes()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    folder, engine = tmp_path / "models", make_engine(graph)
    if there:
        write_triton(engine, graph, folder)
    before = files(tmp_path)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(WorkspaceError, match="no space left to write"):
        write_triton(make_engine(graph, RTX), graph, folder)
    assert files(tmp_path) == before
    assert [path.name for path in folder.iterdir()] == (["my_net"] if there else [])


def test_a_failed_exchange_puts_the_old_model_back(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    target, _ = write_triton(make_engine(graph), graph, folder)
    before, rename, calls = files(tmp_path), Path.rename, []

    def second_fails(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(WorkspaceError, match="no permission"):
        write_triton(make_engine(graph, RTX), graph, folder)
    assert len(calls) == 3
    assert files(tmp_path) == before
    assert [path.name for path in folder.iterdir()] == [target.name]


@pytest.mark.parametrize("crop_pct", [0.9, 0.95])
def test_the_resize_is_described_as_it_is_done(crop_pct: float) -> None:
    how = Preprocessing(crop_pct=crop_pct)
    text = describe_preprocessing({"preprocessing": how.to_json()})
    assert f"shorter side to {resized_size(500, 600, how)[0]} pixels" in text


def test_external_data_of_another_name_goes_too(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model, _ = write_triton(make_engine(path, RTX), path, tmp_path / "models")
    with OrtRunner(model / "1" / "model.onnx") as served:
        assert served.input_shape == (None, 3, 8, 6)


def test_what_is_no_manifest_is_no_evidence(graph: Path, tmp_path: Path) -> None:
    graph.with_name(graph.name + ".json").write_text("notes on this graph")
    model, _ = write_triton(make_engine(graph), graph, tmp_path / "models")
    assert json.loads((model / "vexport.json").read_text())["graph"] is None
