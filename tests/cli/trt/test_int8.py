"""`vexport trt --int8`: which graph it takes, what it quantises on the way, what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import prepared

from tests.cli.conftest import Invoke, files_of
from vexport.pipeline import quantize_gate
from vexport.workspace import hash_file, read_manifest

from .conftest import A100, Refused

OUT = Path("vexport-out")
ENGINE = OUT / "colours.int8.sm80.engine"


@pytest.fixture
def int8(invoke: Invoke, colours: Path, images: Path) -> Path:
    assert invoke("quantize", colours, "--calib", images).exit_code == 0
    return OUT / "colours.int8.onnx"


def test_nothing_to_take(refused: Refused) -> None:
    said = refused("trt", "--int8", *A100)
    assert "there is no int8 graph in vexport-out" in said
    assert "give --calib DIR" in said
    assert "quantise it first: `vexport quantize --calib DIR`" in said


def test_an_fp32_graph_needs_images(refused: Refused, colours: Path) -> None:
    said = refused("trt", "--int8", colours, *A100)
    assert "colours.onnx is fp32, the engine shall be int8" in said
    assert "give --calib DIR" in said


def test_a_checkpoint_needs_images_before_it_is_exported(refused: Refused, ckpt: Path) -> None:
    assert "ckpt.pth is not quantised" in refused("trt", "--int8", ckpt, *A100)


def test_an_fp32_graph_is_quantised_on_the_way(invoke: Invoke, colours: Path, images: Path) -> None:
    result = invoke("trt", "--int8", colours, "--calib", images, *A100)
    assert result.exit_code == 0, result.output
    assert "graph: vexport-out/colours.int8.onnx, quantised just now from colours.onnx" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("vexport-out/colours.int8.onnx  ")
    assert any(line.startswith("against INT8 on 8 given images: error ") for line in lines)
    assert any(line.startswith("vexport-out/colours.int8.fp16.onnx  ") for line in lines)
    assert "INT8 layers: 2 of 3 convolutions" in lines
    assert "precision in the network, binding for the builder: convolution 2 INT8, 1 FP16" in lines
    assert "precision in the engine, as the builder tells: 3 of 3 layers as in the graph" in lines
    if not torch.cuda.is_available():
        assert "--int8-depthwise auto: not measured here" in result.stderr
        told = "not measured: the engine does not run on this machine"
        assert f"depthwise convolutions in FP16 ({told})" in lines
    manifest = read_manifest(ENGINE)
    assert manifest is not None
    assert manifest.parent is not None
    assert manifest.parent.sha256 == hash_file(OUT / "colours.int8.fp16.onnx")
    again = invoke("trt", "--int8", colours, "--calib", images, *A100)
    assert "up to date: vexport-out/colours.int8.sm80.engine" in again.stdout
    # Bare, it is the INT8 graph that counts, not what was made of it.
    bare = invoke("trt", "--int8", *A100)
    assert "graph: vexport-out/colours.int8.onnx" in bare.stderr
    assert "up to date: vexport-out/colours.int8.sm80.engine" in bare.stdout


def test_the_gate_is_told_in_one_line(invoke: Invoke, int8: Path, images: Path) -> None:
    said = invoke("trt", "--int8", *A100).stdout.splitlines()
    (line,) = (line for line in said if line.startswith("gate of the INT8 graph: "))
    gate = read_manifest(int8).facts["gate"]  # type: ignore[union-attr]
    assert f"top-1 of {gate['images']} labelled images: FP32 {gate['top1_percent_fp32']:.2f} %" in line
    assert "with FP16 around it" in line


def test_manifests_of_before_are_read(invoke: Invoke, int8: Path) -> None:
    """They know only the cosine of whole answers."""
    assert invoke("trt", "--int8", *A100).exit_code == 0
    beside = OUT / "colours.int8.fp16.onnx.json"
    told = json.loads(beside.read_text())
    for entry in told["parity"]:
        entry.pop("centred_cosine", None)
    beside.write_text(json.dumps(told))
    again = invoke("trt", "--int8", *A100)
    assert again.exit_code == 0, again.output
    assert "up to date: vexport-out/colours.int8.fp16.onnx" in again.stdout


def test_a_missed_gate_exits_with_3_and_leaves_no_engine(
    invoke: Invoke, colours: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(folder / "plain.npy", prepared(48))
    monkeypatch.setattr(quantize_gate, "LEAST_COSINE", 1.1)
    before = files_of(folder)
    result = invoke("trt", "--int8", colours, "--calib", "plain.npy", *A100)
    assert result.exit_code == 3, result.output
    assert "error: " in result.stderr
    assert files_of(folder) == before


def test_an_int8_graph_is_taken_as_it_is(invoke: Invoke, int8: Path, images: Path, folder: Path) -> None:
    before = hash_file(int8)
    told = json.loads(invoke("trt", "--int8", int8, "--int8-depthwise", "on", *A100, "--json").stdout)
    assert (told["took"], told["quantised"]) == (str(int8), None)
    facts = told["manifest"]["facts"]
    assert facts["build"]["precision_network"] == {"convolution": {"int8": 3}}
    assert facts["int8_layers"] == ["first", "second", "last"]
    assert facts["int8_depthwise"]["chosen"] == "on"
    result = invoke("trt", "--int8", int8, "--calib", images, *A100)
    assert "is INT8 already: the images of --calib are not used" in result.stderr
    assert hash_file(int8) == before


def test_the_same_images_do_not_quantise_again(invoke: Invoke, int8: Path, images: Path) -> None:
    before = hash_file(int8)
    told = json.loads(invoke("trt", "--int8", "colours.onnx", "--calib", images, *A100, "--json").stdout)
    assert told["quantised"] is None
    assert "made from colours.onnx" in told["took"]
    assert hash_file(int8) == before


def test_other_types_between_int8_layers_are_shown_by_inspect(invoke: Invoke, int8: Path) -> None:
    assert invoke("trt", "--int8", *A100).exit_code == 0
    told = json.loads(invoke("inspect", ENGINE, "--json").stdout)
    assert told["facts"]["precision"] == "int8"
    assert "2 int8" in told["facts"]["computing layers"]
    graph = json.loads(invoke("inspect", OUT / "colours.int8.fp16.onnx", "--json").stdout)
    assert graph["facts"]["precision"] == "int8"
    assert graph["known"] is True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fp16", "--calib", "images"), "--calib and --int8-depthwise go with --int8"),
        (("--int8-depthwise", "off"), "--calib and --int8-depthwise go with --int8"),
        (("--int8", "--calib", "nowhere"), "nowhere"),
    ],
)
def test_options_that_cannot_be(
    refused: Refused, colours: Path, images: Path, options: tuple[str, ...], says: str
) -> None:
    assert says in refused("trt", colours, *options, *A100)


def test_a_choice_that_does_not_exist(invoke: Invoke, int8: Path) -> None:
    assert invoke("trt", "--int8", "--int8-depthwise", "sometimes", *A100).exit_code == 2


def test_a_graph_of_other_precision(refused: Refused, invoke: Invoke, colours: Path) -> None:
    assert invoke("trt", colours, "--fp16", *A100).exit_code == 0
    assert "is fp16, the engine shall be int8" in refused("trt", "--int8", OUT / "colours.fp16.onnx", *A100)
