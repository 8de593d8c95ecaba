"""Stages after one another: manifests form a chain, a failed proof leaves no file, baselines take the same road."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from vexport.errors import ExportError, InputError, ParityError
from vexport.pipeline import export
from vexport.pipeline.check import check_parity, preprocessing_of
from vexport.pipeline.export import export_graph
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.run.compare import Parity
from vexport.workspace import Workspace, hash_file, load_artifact


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def zero_weights(graph: onnx.ModelProto) -> None:
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = bytes(len(tensor.raw_data))


def test_the_chain_of_manifests(small_checkpoint: Path, workspace: Workspace) -> None:
    done: list[str] = []
    fused = fuse_checkpoint(small_checkpoint, workspace=workspace, on_block=lambda name, _: done.append(name))
    exported = export_graph(workspace=workspace)
    assert done == ["stem", "stages.0", "stages.1", "stages.2", "head"]
    assert fused.artifact.manifest.parent is not None
    assert fused.artifact.manifest.parent.sha256 == hash_file(small_checkpoint)
    assert exported.artifact.manifest.parent == fused.artifact.as_parent()
    assert load_artifact(exported.artifact.path) == exported.artifact
    assert (fused.artifact.form, exported.artifact.precision) == ("deployed", "fp32")
    assert exported.artifact.model == fused.artifact.model == "vanillanet_5"
    assert names(workspace.root) == [
        "ckpt.deploy.safetensors",
        "ckpt.deploy.safetensors.json",
        "ckpt.onnx",
        "ckpt.onnx.json",
    ]
    for path in (small_checkpoint, fused.artifact.path, exported.artifact.path):
        preprocessing = preprocessing_of(path)
        assert preprocessing is not None
        assert preprocessing.input_size == (3, 64, 64)
        assert check_parity(small_checkpoint, path).parity.passed


def test_a_graph_that_disagrees_is_not_written(
    small_checkpoint: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse_checkpoint(small_checkpoint, workspace=workspace)
    make = export._make_graph

    def spoilt(*args: object) -> object:
        raw, plain, notes = make(*args)  # type: ignore[arg-type]
        for graph in (raw, plain):
            zero_weights(graph)
        return raw, plain, notes

    monkeypatch.setattr(export, "_make_graph", spoilt)
    with pytest.raises(ParityError, match="disagrees with the network"):
        export_graph(workspace=workspace)
    assert names(workspace.root) == ["ckpt.deploy.safetensors", "ckpt.deploy.safetensors.json"]


def test_the_exported_graph_is_kept_where_the_plain_one_disagrees(
    small_checkpoint: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = export._make_graph

    def spoilt(*args: object) -> object:
        raw, plain, notes = make(*args)  # type: ignore[arg-type]
        zero_weights(plain)
        return raw, plain, notes

    monkeypatch.setattr(export, "_make_graph", spoilt)
    result = export_graph(small_checkpoint, workspace=workspace)
    assert "this one is as exported" in result.notes[-1]
    assert result.artifact.manifest.parity[0]["graph"] == "as exported"
    assert result.artifact.facts["operators"] == result.artifact.facts["operators_exported"]
    assert check_parity(small_checkpoint, result.artifact.path).parity.passed


def test_a_merge_that_does_not_hold_is_not_written(
    small_checkpoint: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ParityError("stages.1 disagrees", hint="none")

    monkeypatch.setattr("vexport.model.prove.merge_and_prove", wrong)
    with pytest.raises(ParityError):
        fuse_checkpoint(small_checkpoint, workspace=workspace)
    assert not workspace.root.exists()


def test_a_baseline_takes_no_checkpoint(small_checkpoint: Path, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="resnet50 is a baseline"):
        export_graph(small_checkpoint, workspace=workspace, model="resnet50")


def test_an_image_that_shrinks_to_nothing(small_checkpoint: Path, workspace: Workspace) -> None:
    with pytest.raises((ExportError, InputError)) as caught:
        export_graph(small_checkpoint, workspace=workspace, size=8)
    assert "8x8" in str(caught.value)
    assert not list(workspace.root.glob("*.onnx*"))


def test_check_gives_both_hashes(small_checkpoint: Path) -> None:
    result = check_parity(small_checkpoint, small_checkpoint)
    assert isinstance(result.parity, Parity)
    assert result.parity.max_abs == 0
    assert result.sha256 == (hash_file(small_checkpoint),) * 2
    result.require_passed()


@pytest.mark.slow
def test_random_weights_are_the_same_again_on_any_number_of_threads(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    hashes = set()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            workspace = Workspace(tmp_path / str(number))
            result = fuse_checkpoint(workspace=workspace, model="vanillanet_5", weights="random")
            assert result.artifact.path.name == "vanillanet_5.random.deploy.safetensors"
            hashes.add(result.artifact.sha256)
    finally:
        torch.set_num_threads(threads)
    assert len(hashes) == 1


def test_the_same_checkpoint_gives_the_same_bytes_every_time(small_checkpoint: Path, tmp_path: Path) -> None:
    # Eight times: a file whose entries come in an order of the run's own passes twice by luck.
    hashes = {
        fuse_checkpoint(small_checkpoint, workspace=Workspace(tmp_path / str(number))).artifact.sha256
        for number in range(8)
    }
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_baseline_takes_the_same_road(workspace: Workspace) -> None:
    threads = torch.get_num_threads()
    result = export_graph(workspace=workspace, model="resnet50", weights="random")
    assert result.artifact.manifest.parity[0]["passed"]
    assert result.artifact.facts["operators"]["Conv"] == 53
    assert "BatchNormalization" not in result.artifact.facts["operators"]
    assert names(workspace.root) == ["resnet50.random.onnx", "resnet50.random.onnx.json"]
    assert export_graph(workspace=workspace, model="resnet50", weights="random").up_to_date
    assert torch.get_num_threads() == threads
