"""Accuracy of artifacts: the counts by hand, every form alike, and every way to be refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from vexport.artifacts import Evaluation, Manifest, Parent, Preprocessing
from vexport.errors import AccuracyError, InputError, WorkspaceError
from vexport.model.variants import NetworkSpec, make_spec
from vexport.pipeline.check import preprocessing_of
from vexport.pipeline.convert import convert_graph
from vexport.pipeline.evaluate import evaluate
from vexport.pipeline.export import export_graph
from vexport.pipeline.facts import read_facts
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.graphs import find_graph
from vexport.run import BACKENDS, open_runner
from vexport.run.images import load_images
from vexport.workspace import Workspace, hash_file, load_artifact, manifest_path, read_manifest, write_manifest

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Draw = Callable[..., Path]
Save = Callable[..., Path]


def draw(path: Path, seed: int, width: int = 72, height: int = 66) -> None:
    random = np.random.default_rng(seed)
    tint = random.integers(0, 256, 3)
    pixels = (random.integers(0, 256, (height, width, 3)) + 2 * tint) // 3
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten class folders, `c0` to `c9`, with three images each."""
    for label in range(10):
        for index in range(3):
            draw(tmp_path / "data" / f"c{label}" / f"{index}.png", 10 * label + index)
    return tmp_path / "data"


@pytest.fixture
def named_data(data: Path) -> Path:
    """The same under the names of the classes; no image of `nine`."""
    for label, name in enumerate(NAMES):
        (data / f"c{label}").rename(data / name)
    for image in (data / "nine").iterdir():
        image.unlink()
    (data / "nine").rmdir()
    return data


@pytest.fixture
def save(tmp_path: Path, fill: Any, small_spec: NetworkSpec) -> Save:
    """Save a checkpoint of the small network, with what it says of itself."""

    def write(name: str = "own.pth", *, spec: NetworkSpec = small_spec, size: int = 64, **facts: Any) -> Path:
        args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, input_size=size)
        torch.save({"model": fill(spec), "epoch": 299, "args": args, "vexport": facts}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


def by_hand(artifact: Path, data: Path, how: Preprocessing | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every image at once, and the labels of sorted folders."""
    how = how or preprocessing_of(artifact)
    assert how is not None
    folders = sorted(data.iterdir())
    labels = [number for number, folder in enumerate(folders) for _ in folder.iterdir()]
    with open_runner(artifact, input_size=how.input_size) as network:
        return network(load_images(data, how, limit=10_000)), np.array(labels)


def test_the_counts_by_hand(small_checkpoint: Path, data: Path) -> None:
    result = evaluate(small_checkpoint, data, batch=7)
    logits, labels = by_hand(small_checkpoint, data)
    best = np.argsort(-logits, axis=1)
    score = result.subject.score
    assert (score.images, score.right) == (30, (best[:, 0] == labels).sum())
    assert score.right_in_5 == (best[:, :5] == labels[:, None]).any(axis=1).sum()
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert score.cross_entropy == pytest.approx(float(expected), rel=1e-5)
    for number, one in enumerate(score.by_class):
        assert (one.images, one.right) == (3, (best[labels == number, 0] == number).sum())
    assert result.class_names == tuple(f"c{number}" for number in range(10))
    assert result.labelling == "sorted folders are the classes"
    assert result.subject.sha256 == hash_file(small_checkpoint)
    assert result.batch == 7
    assert result.prepared == ("test crop as ckpt.pth says: shorter side to 73 (bicubic), centre 64x64 (crop 0.875)")
    assert result.preprocessing == preprocessing_of(small_checkpoint)
    assert (result.notes, result.skipped, result.passed) == ((), (), True)


def test_every_form_answers_alike(small_checkpoint: Path, data: Path, workspace: Workspace) -> None:
    fused = fuse_checkpoint(small_checkpoint, workspace=workspace).artifact.path
    graph = export_graph(workspace=workspace).artifact.path
    half = convert_graph(find_graph(graph, workspace=workspace), "fp16", workspace=workspace).artifact.path
    alone = evaluate(small_checkpoint, data).subject.score
    for other in (fused, graph):
        result = evaluate(small_checkpoint, data, against=other)
        assert result.subject.score == alone
        assert result.against is not None
        assert result.against.path == other
        assert (result.against.score.right, result.against.score.right_in_5) == (alone.right, alone.right_in_5)
        assert result.agreement is not None
        assert result.agreement.agreement_percent == 100
        assert result.agreement.only_a == result.agreement.only_b == 0
        assert result.notes == ()
    found = evaluate(graph, data, against=half)
    assert found.agreement is not None
    assert found.agreement.same >= 29
    assert found.against is not None
    assert found.against.backend == "onnxruntime CPU"


def test_the_backend_that_is_named_answers(small_checkpoint: Path, data: Path, workspace: Workspace) -> None:
    """The second artifact keeps its usual one, so that one file can be held against itself in another backend."""
    graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
    found = evaluate(small_checkpoint, data, backend="pytorch-channels-last", against=graph)
    assert found.subject.backend != evaluate(small_checkpoint, data).subject.backend
    assert "channels-last" in found.subject.backend
    assert found.against is not None
    assert found.against.backend == "onnxruntime CPU"
    assert found.agreement is not None
    assert found.agreement.agreement_percent == 100
    same = evaluate(graph, data, backend="onnxruntime", against=graph, output=graph.with_name("found.json"))
    assert same.record is not None
    assert same.record.manifest.options["backend"] == "onnxruntime"


@pytest.mark.skipif(BACKENDS["openvino"].why_not_here() is not None, reason="the extra `openvino` brings it")
def test_a_graph_is_held_against_itself_in_another_backend(
    small_checkpoint: Path, data: Path, workspace: Workspace
) -> None:
    graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
    found = evaluate(graph, data, backend="openvino", against=graph, threads=1)
    assert found.against is not None
    assert (found.subject.backend, found.against.backend) == ("openvino CPU FP32", "onnxruntime CPU")
    assert found.agreement is not None
    assert found.agreement.agreement_percent == 100


def test_a_backend_that_does_not_fit_is_refused(small_checkpoint: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"the backend openvino takes a graph, and .* is a checkpoint") as caught:
        evaluate(small_checkpoint, data, backend="openvino")
    assert "pytorch-fp16" in str(caught.value.hint)
    with pytest.raises(InputError, match="there is no backend onnx") as caught:
        evaluate(small_checkpoint, data, backend="onnx")
    assert "onnxruntime" in str(caught.value.hint)


def test_right_on_images_where_the_other_is_not(save: Save, data: Path, fill: Any, small_spec: NetworkSpec) -> None:
    a = save("a.pth")
    state = fill(small_spec)
    state["cls2.0.bias"] = state["cls2.0.bias"].roll(1) * 5
    b = a.with_name("b.pth")
    torch.save({"model": state, "epoch": 299, "args": torch.load(a, weights_only=False)["args"]}, b)
    result = evaluate(a, data, against=b, batch=4)
    answers = {path: by_hand(path, data)[0].argmax(axis=1) for path in (a, b)}
    labels = by_hand(a, data)[1]
    a_right, b_right = answers[a] == labels, answers[b] == labels
    found = result.agreement
    assert found is not None
    assert (found.only_a, found.only_b) == ((a_right & ~b_right).sum(), (b_right & ~a_right).sum())
    assert (found.both_right, found.both_wrong) == ((a_right & b_right).sum(), (~a_right & ~b_right).sum())
    assert found.same == (answers[a] == answers[b]).sum() < 30


def test_a_fixed_batch_is_filled(small_checkpoint: Path, data: Path, workspace: Workspace) -> None:
    graph = export_graph(small_checkpoint, workspace=workspace, batch=8).artifact.path
    result = evaluate(graph, data, against=small_checkpoint)
    assert result.batch == 8
    assert result.subject.score.images == 30
    assert result.agreement is not None
    assert result.agreement.same == 30
    assert evaluate(graph, data, batch=3).batch == 8
    assert evaluate(small_checkpoint, data, against=graph, batch=13).agreement == result.agreement


def test_a_limit_takes_some_of_every_class(small_checkpoint: Path, data: Path) -> None:
    result = evaluate(small_checkpoint, data, limit=10)
    assert [one.images for one in result.subject.score.by_class] == [1] * 10
    assert result.notes == ("10 of 30 images, spread evenly",)


@pytest.mark.parametrize("kind", ["checkpoint", "deployed", "graph", "half", "graph without a manifest"])
def test_folders_are_classes_by_name(save: Save, named_data: Path, workspace: Workspace, kind: str) -> None:
    artifact = save(class_names=list(NAMES))
    expected = evaluate(artifact, named_data).subject.score
    if kind == "deployed":
        artifact = fuse_checkpoint(artifact, workspace=workspace).artifact.path
    elif kind != "checkpoint":
        artifact = export_graph(artifact, workspace=workspace).artifact.path
    if kind == "half":
        artifact = convert_graph(find_graph(artifact, workspace=workspace), "fp16", workspace=workspace).artifact.path
    elif kind.endswith("manifest"):
        manifest_path(artifact).unlink()
    result = evaluate(artifact, named_data)
    assert result.class_names == NAMES
    assert result.labelling == "folders are classes by name"
    assert result.notes == ("1 of 10 classes have no images: nine",)
    assert [one.images for one in result.subject.score.by_class] == [3] * 9 + [0]
    assert abs(result.subject.score.right - expected.right) <= (kind == "half")
    row = result.to_json()["per_class"][9]
    assert (row["class"], row["images"], row["top1_percent"]) == ("nine", 0, None)


def test_an_unknown_folder_is_refused(save: Save, named_data: Path) -> None:
    (named_data / "seven").rename(named_data / "sieben")
    with pytest.raises(InputError) as caught:
        evaluate(save(class_names=list(NAMES)), named_data)
    assert caught.value.details[0] == "no class: sieben"
    assert caught.value.details[1] == f"its classes: {', '.join(NAMES)}"


def test_the_other_artifact_may_know_the_names(save: Save, named_data: Path) -> None:
    result = evaluate(save("a.pth"), named_data, against=save("b.pth", class_names=list(NAMES)))
    assert result.class_names == NAMES


def test_one_class_needs_its_name(save: Save, named_data: Path) -> None:
    for name in NAMES[1:9]:
        (named_data / name).rename(named_data.parent / name)
    result = evaluate(save(class_names=list(NAMES)), named_data)
    assert result.subject.score.images == result.subject.score.by_class[0].images == 3
    with pytest.raises(InputError, match="accuracy over one class says nothing"):
        evaluate(save(), named_data)


def test_other_numbers_of_classes(save: Save, data: Path) -> None:
    (data / "c9").rename(data.parent / "c9")
    with pytest.raises(InputError, match=r"has 9 class folder\(s\), own\.pth tells 10 classes apart"):
        evaluate(save(), data)
    with pytest.raises(InputError, match=r"names 2 classes and gives 10 logits"):
        evaluate(save(class_names=["c0", "c1"]), data)


def test_damaged_class_names(small_checkpoint: Path, data: Path, workspace: Workspace) -> None:
    graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
    for text in ("[1, 2]", "{", "3"):
        model = onnx.load(graph)
        entry = model.metadata_props.add()
        entry.key, entry.value = "vexport.class_names", text
        onnx.save(model, workspace.root / "spoilt.onnx")
        with pytest.raises(InputError, match="is damaged"):
            evaluate(workspace.root / "spoilt.onnx", data)


def test_size_and_crop(small_checkpoint: Path, data: Path) -> None:
    result = evaluate(small_checkpoint, data, size=96, crop_pct=1.0)
    own = preprocessing_of(small_checkpoint)
    assert own is not None
    how = replace(own, input_size=(3, 96, 96), crop_pct=1.0)
    assert result.preprocessing == how
    assert result.prepared.startswith("test crop as ckpt.pth says, with --size 96 and --crop-pct 1: shorter side to 96")
    logits, labels = by_hand(small_checkpoint, data, how)
    assert result.subject.score.right == (logits.argmax(axis=1) == labels).sum()
    assert result.subject.score != evaluate(small_checkpoint, data).subject.score


def test_a_graphs_size_is_obeyed(small_checkpoint: Path, save: Save, data: Path, workspace: Workspace) -> None:
    graph = export_graph(small_checkpoint, workspace=workspace, size=96).artifact.path
    assert evaluate(graph, data, size=96).preprocessing.input_size == (3, 96, 96)
    with pytest.raises(InputError, match=r"ckpt\.onnx takes 3x96x96 only, not --size 64"):
        evaluate(graph, data, size=64)
    # A checkpoint computes at the first one's size; a graph of another cannot.
    assert evaluate(graph, data, against=small_checkpoint).agreement is not None
    with pytest.raises(InputError, match=r"ckpt\.pth takes 3x64x64, ckpt\.onnx takes 3x96x96") as caught:
        evaluate(small_checkpoint, data, against=graph)
    assert "--size" in caught.value.hint
    assert evaluate(small_checkpoint, data, against=graph, size=96).agreement is not None


def test_an_image_too_small_for_the_network(small_checkpoint: Path, data: Path) -> None:
    with pytest.raises(InputError):
        evaluate(small_checkpoint, data, size=8)


def test_a_graph_that_says_nothing_is_taken_as_imagenets(
    small_checkpoint: Path, data: Path, workspace: Workspace
) -> None:
    model = onnx.load(export_graph(small_checkpoint, workspace=workspace).artifact.path)
    del model.metadata_props[:]
    path = workspace.root / "foreign.onnx"
    onnx.save(model, path)
    assert read_facts(path) == type(read_facts(path))()
    result = evaluate(path, data)
    assert result.prepared.startswith("test crop as usual for ImageNet, since foreign.onnx does not say: ")
    assert result.preprocessing == Preprocessing(input_size=(3, 64, 64))


def test_both_are_prepared_as_the_first(save: Save, data: Path) -> None:
    told = Preprocessing((3, 64, 64), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear").to_json()
    a, b = save("a.pth"), save("b.pth", preprocessing=told)
    result = evaluate(a, data, against=b)
    assert result.agreement is not None
    assert result.agreement.same == 30
    assert result.notes == (
        "b.pth would prepare images otherwise: test crop of its own: shorter side to 64 (bilinear), centre 64x64 "
        "(crop 1)",
    )


def test_networks_of_other_classes_are_not_compared(save: Save, data: Path) -> None:
    seven = save("seven.pth", spec=make_spec("vanillanet_5", width=1 / 32, num_classes=7))
    with pytest.raises(InputError, match=r"tells 10 classes apart, seven\.pth 7"):
        evaluate(save(), data, against=seven)
    with pytest.raises(InputError, match="same classes in the same order"):
        evaluate(save("a.pth", class_names=list(NAMES)), data, against=save("b.pth", class_names=list(reversed(NAMES))))


def test_damaged_images_are_skipped_and_told(small_checkpoint: Path, data: Path) -> None:
    whole = (data / "c3" / "1.png").read_bytes()
    (data / "c3" / "1.png").write_bytes(whole[:2000])
    (data / "c7" / "0.png").write_bytes(b"")
    result = evaluate(small_checkpoint, data)
    assert [image for image, _ in result.skipped] == ["c3/1.png", "c7/0.png"]
    assert result.subject.score.images == 28
    assert [one.images for one in result.subject.score.by_class] == [3, 3, 3, 2, 3, 3, 3, 2, 3, 3]
    with pytest.raises(InputError, match=r"more than 1 image\(s\) cannot be read") as caught:
        evaluate(small_checkpoint, data, max_damaged=1)
    assert [line.partition(":")[0] for line in caught.value.details] == ["c3/1.png", "c7/0.png"]


@pytest.fixture
def imagenet(tmp_path: Path, save: Save) -> tuple[Path, Path]:
    """A network of 1000 classes, and some of ImageNet's folders."""
    names = {"n01440764": (293, 3), "n01443537": (236, 4), "n15075141": (1, 5)}
    for folder, numbers in names.items():
        for number in numbers:
            draw(tmp_path / "in" / folder / f"ILSVRC2012_val_{number:08d}.png", number)
            (tmp_path / "in" / folder / f"ILSVRC2012_val_{number:08d}.png").rename(
                tmp_path / "in" / folder / f"ILSVRC2012_val_{number:08d}.JPEG"
            )
    return save("net.pth", spec=make_spec("vanillanet_5", width=1 / 32, num_classes=1000)), tmp_path / "in"


def test_imagenets_folders_are_known_by_name(imagenet: tuple[Path, Path]) -> None:
    result = evaluate(*imagenet)
    assert result.labelling == "folders are ImageNet's classes by name"
    filled = {one.label: one.images for one in result.subject.score.by_class if one.images}
    assert filled == {0: 2, 1: 2, 999: 2}
    assert result.subject.real is None
    (imagenet[1] / "n01440764").rename(imagenet[1] / "tench")
    with pytest.raises(InputError, match=r"has 3 class folder\(s\), net\.pth tells 1000 classes apart"):
        evaluate(*imagenet)


def test_real(imagenet: tuple[Path, Path], save: Save, data: Path) -> None:
    from vexport.run.imagenet import read_real_labels

    result = evaluate(*imagenet, real=True)
    labels = read_real_labels()
    files = [path.name for path in sorted(imagenet[1].rglob("*.JPEG"))]
    how = preprocessing_of(imagenet[0])
    assert how is not None
    with open_runner(imagenet[0]) as network:
        answers = network(load_images(imagenet[1], how)).argmax(axis=1)
    found = result.subject.real
    assert found is not None
    assert found.left_out == sum(not labels[file] for file in files) > 0
    assert found.right == sum(int(answer) in labels[file] for answer, file in zip(answers, files, strict=True))
    assert (found.images + found.left_out, result.subject.score.images) == (6, 6)
    with pytest.raises(InputError, match=r"ReaL labels are of ImageNet's 1000 classes, own\.pth tells 10 apart"):
        evaluate(save(), data, real=True)
    image = next(imagenet[1].rglob("*.JPEG"))
    image.rename(image.with_name("tench.JPEG"))
    with pytest.raises(InputError, match=r"1 image\(s\) have no ReaL labels"):
        evaluate(*imagenet, real=True)


def test_the_gate(small_checkpoint: Path, data: Path) -> None:
    score = evaluate(small_checkpoint, data).subject.score
    exact = score.top1_percent
    assert exact is not None
    held = evaluate(small_checkpoint, data, least_top1_percent=exact)
    held.require_passed()
    assert held.to_json()["gate"] == {"least_top1_percent": exact, "passed": True}
    missed = evaluate(small_checkpoint, data, least_top1_percent=exact + 0.01)
    assert not missed.passed
    with pytest.raises(AccuracyError) as caught:
        missed.require_passed()
    assert caught.value.exit_code == 3
    assert caught.value.details[0] == f"{score.right} of 30 images"


def test_the_record(small_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "accuracy.json"
    result = evaluate(small_checkpoint, data, output=output)
    assert isinstance(result.record, Evaluation)
    assert json.loads(output.read_text()) == json.loads(json.dumps(result.to_json()))
    assert load_artifact(output) == result.record
    assert result.record.manifest.parent == Parent("ckpt.pth", hash_file(small_checkpoint))
    assert sorted(path.name for path in output.parent.iterdir()) == ["accuracy.json", "accuracy.json.json"]
    again = evaluate(small_checkpoint, data, limit=10, output=output)
    assert again.record is not None
    assert again.record.manifest.replaces == result.record.sha256


def test_what_is_not_ours_is_not_overwritten(small_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "notes.json"
    foreign.write_text("{}")
    with pytest.raises(WorkspaceError, match="is in the way"):
        evaluate(small_checkpoint, data, output=foreign)
    assert foreign.read_text() == "{}"
    with pytest.raises(InputError, match=r"does not end in \.json"):
        evaluate(small_checkpoint, data, output=tmp_path / "notes.txt")
    with pytest.raises(InputError, match=r"is the name of ckpt\.pth's manifest"):
        evaluate(small_checkpoint, data, output=manifest_path(small_checkpoint), force=True)
    assert evaluate(small_checkpoint, data, output=foreign, force=True).record is not None


def test_nothing_is_written_otherwise(small_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    evaluate(small_checkpoint, data, against=small_checkpoint)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "--batch 0 is not positive"),
        ({"limit": 0}, "--limit 0 is not positive"),
        ({"size": -1}, "--size -1 is not positive"),
        ({"max_damaged": -1}, "--max-damaged -1 is negative"),
        ({"crop_pct": 87.5}, "--crop-pct 87.5 is not a share above 0 and up to 1"),
        ({"crop_pct": 0.0}, "--crop-pct 0 is not a share above 0 and up to 1"),
        ({"crop_pct": float("nan")}, "--crop-pct nan is not a share above 0 and up to 1"),
        ({"least_top1_percent": 101.0}, "--min-top1 101 is not within 0 and 100"),
        ({"threads": 0}, "0 threads cannot compute"),
    ],
)
def test_options_that_make_no_sense(small_checkpoint: Path, data: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(small_checkpoint, data, **options)
    assert caught.value.message == said
    assert caught.value.hint


def test_what_is_missing(small_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        evaluate(tmp_path / "none.onnx", data)
    with pytest.raises(InputError, match="no such file"):
        evaluate(small_checkpoint, data, against=tmp_path / "none.onnx")
    with pytest.raises(InputError, match="does not exist"):
        evaluate(small_checkpoint, tmp_path / "none")
    with pytest.raises(InputError, match="is a vanillanet_5"):
        evaluate(small_checkpoint, data, model="vanillanet_6")


class Engine:
    """Stands in for an engine: answers with the class that it is told."""

    name, backend, input_shape, batch_range = "net", "tensorrt FP16", (None, 3, 64, 64), (2, 4)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert 2 <= len(images) <= 4
        return np.tile(np.eye(10, dtype=np.float32)[3], (len(images), 1))

    def close(self) -> None: ...

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_an_engine_says_what_its_manifest_says(
    named_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Preprocessing((3, 64, 64), crop_pct=1.0)
    plan = tmp_path / "net.engine"
    plan.write_bytes(b"plan")
    facts = {"preprocessing": how.to_json(), "class_names": list(NAMES), "model": "vanillanet_5"}
    manifest_path(plan).touch()
    parity = [{"result": "not run"}]
    write_manifest(plan, Manifest("engine", hash_file(plan), 4, Parent("net.onnx", "0"), {}, facts, parity=parity))
    monkeypatch.setattr("vexport.run.tensorrt.open_engine", lambda *_, **__: Engine())
    result = evaluate(plan, named_data)
    assert (result.preprocessing, result.class_names, result.batch) == (how, NAMES, 4)
    assert result.subject.score.right == result.subject.score.by_class[3].right == 3
    assert result.subject.score.by_class[0].confused_with == 3
    assert result.notes[-1] == "net.engine is not proven against its graph yet: `vexport check` proves it"
    manifest = read_manifest(plan)
    assert manifest is not None
    assert manifest.parity == parity, "an evaluation records nothing"
