"""`vexport quantize`: what it prints, its exit codes, and how it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from colours import prepared, save_graph

from vexport.graph.quantize import conv_edges
from vexport.workspace import hash_file, read_manifest

from .conftest import Invoke, Save, State, files_of

Refused = Callable[..., str]
OUT = Path("vexport-out/colours.int8.onnx")


@pytest.fixture
def plain(folder: Path) -> Path:
    np.save(folder / "plain.npy", prepared(96))
    return Path("plain.npy")


def test_the_tables(invoke: Invoke, colours: Path, images: Path) -> None:
    result = invoke("quantize", colours, "--calib", images, "--images", "64", "--layers")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "graph: colours.onnx",
        "images: test crop as colours.onnx says: shorter side to 8 (bilinear), centre 8x8 (crop 1)",
        "note: only 8 image(s) held out: the figures say little",
        "note: one of 64 labelled images is 1.6 points: the accuracy says little, and agreement was asked as well",
    ]
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    rows = {line[0]: line for line in lines}
    assert rows["calibration"][-1] == "56"
    assert rows["held"][-1] == "8"
    assert rows["not"] == ["not", "used", "56"]
    tried = [line for line in lines if line[0] in ("plain,", "equalised,")]
    assert len(tried) == 9, "four methods, twice, and biases corrected"
    assert sum("written" in line for line in tried) == 1
    edges = conv_edges(onnx.load(OUT))
    for edge in edges:
        assert rows[edge.node][1:3] == [edge.input, f"{edge.input_scale:.3e}"]
        assert rows[edge.node][-1] == str(edge.channels)
    assert "colours: 3 of 3 convolutions take INT8 and have INT8 weights" in result.stdout
    assert (
        "accuracy on 64 labelled images of images: FP32 100.00 %, INT8 100.00 %: a drop of 0.00 points, "
        "95 % interval -3.06 to 3.06 (0.5 allowed)" in result.stdout
    )
    assert result.stdout.splitlines()[-1].startswith(f"{OUT}  ")


def test_without_labels_it_says_that_it_is_not_accuracy(invoke: Invoke, colours: Path, plain: Path) -> None:
    result = invoke("quantize", colours, "--calib", plain)
    assert result.exit_code == 0, result.output
    assert "the same class as FP32 on 100.0% of 12 held-out images" in result.stdout
    assert "this is agreement, not accuracy" in result.stderr


def test_again_is_up_to_date(invoke: Invoke, colours: Path, images: Path, folder: Path) -> None:
    first = invoke("quantize", colours, "--calib", images)
    before = files_of(folder)
    again = invoke("quantize", colours, "--calib", images)
    assert again.exit_code == 0
    assert again.stdout.replace("up to date: ", "") == first.stdout
    assert again.stdout.splitlines()[-1].startswith(f"up to date: {OUT}")
    assert files_of(folder) == before
    said = json.loads(invoke("quantize", colours, "--calib", images, "--json").stdout)
    assert (said["up_to_date"], said["path"]) == (True, str(OUT))


def test_json_is_one_document(invoke: Invoke, colours: Path, images: Path) -> None:
    result = invoke("quantize", colours, "--calib", images, "--keep", "last", "--keep", "first", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    manifest = read_manifest(OUT)
    assert manifest is not None
    assert said["manifest"] == manifest.to_json()
    assert manifest.sha256 == hash_file(OUT)
    assert list(said["manifest"]["facts"]["kept_fp32"]) == ["last", "first"]
    assert [layer["quantised"] for layer in said["manifest"]["facts"]["layers"]] == [False, True, False]


def test_it_is_the_graph_that_the_other_commands_take(invoke: Invoke, colours: Path, images: Path) -> None:
    assert invoke("quantize", colours, "--calib", images).exit_code == 0
    evaluated = json.loads(invoke("eval", OUT, "--data", images, "--json").stdout)
    assert evaluated["artifact"]["top1_percent"] == 100.0
    inspected = json.loads(invoke("inspect", OUT, "--json").stdout)
    assert inspected["facts"]["precision"] == "int8"
    checked = invoke("check", colours, OUT, "--tolerance", "0.2")
    assert checked.exit_code == 0, checked.output


def test_a_missed_gate_exits_with_3_and_ranks_the_layers(invoke: Invoke, images: Path, folder: Path) -> None:
    save_graph(folder / "hostile.onnx", spread=1e4)
    before = files_of(folder)
    naive = ("quantize", "hostile.onnx", "--calib", images, "--no-equalize", "--no-mixed")
    result = invoke(*naive)
    assert result.exit_code == 3
    assert "error: INT8 loses" in result.stderr
    assert "alone in INT8" in result.stderr
    assert "hint: leave the worst layers in floating point (--keep second)" in result.stderr
    assert result.stdout == ""
    assert files_of(folder) == before
    as_json = invoke(*naive, "--json")
    assert json.loads(as_json.stdout)["exit_code"] == 3
    assert invoke(*naive, "--keep", "second").exit_code == 0
    few = invoke(*naive, "--max-drop", "100")
    assert few.exit_code == 3
    assert "error: 15 labelled images are too few to count on, and INT8 answers otherwise" in few.stderr
    assert invoke(*naive, "--max-drop", "100", "--images", "60").exit_code == 0
    mixed = invoke(*naive[:-1])
    assert mixed.exit_code == 0
    assert "2 of 3 convolutions take INT8" in mixed.stdout
    assert "left in floating point: second" in mixed.stdout
    equalised = invoke(*naive[:-2])
    assert equalised.exit_code == 0
    assert "3 of 3 convolutions take INT8" in equalised.stdout


def test_step_by_step(invoke: Invoke, images: Path, folder: Path) -> None:
    save_graph(folder / "hostile.onnx", spread=1e4)
    result = invoke("quantize", "hostile.onnx", "--calib", images, "--steps", "--plot", "ranges.png")
    assert result.exit_code == 0, result.output
    assert "Step by step, on 15 labelled images" in result.stdout
    rows = [line.strip() for line in result.stdout.splitlines()]
    assert any(row.startswith("FP16") and " 100.00 " in row for row in rows)
    assert sum(row.startswith("INT8, per-") for row in rows) == 2
    assert (folder / "ranges.png").stat().st_size > 10_000


def test_bare_it_takes_the_newest_fp32_graph(invoke: Invoke, save: Save, state: State, images: Path) -> None:
    """A checkpoint that always answers `c3`: with random weights all classes would be nearly tied."""
    state["cls2.0.bias"][3] += 1000
    assert invoke("onnx", save(state)).exit_code == 0
    result = invoke("quantize", "--calib", images, "--method", "minmax")
    assert result.exit_code == 0, result.output
    assert "graph: vexport-out/ckpt.onnx, the newest" in result.stderr
    assert "vanillanet_5: 9 of 9 convolutions take INT8" in result.stdout
    # Now the newest is INT8: the FP32 graph is taken all the same.
    assert "up to date" in invoke("quantize", "--calib", images, "--method", "minmax").stdout


def test_refusals(refused: Refused, colours: Path, images: Path, plain: Path, folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "there is no image in empty" in refused("quantize", colours, "--calib", "empty")
    assert "nowhere does not exist" in refused("quantize", colours, "--calib", "nowhere")
    assert "holds no calibration images" in refused("quantize", colours, "--calib", colours)
    np.save("large.npy", np.zeros((4, 3, 16, 16), np.float32))
    assert "holds 4x3x16x16, the network takes Nx3x8x8" in refused("quantize", colours, "--calib", "large.npy")
    np.save("same.npy", np.repeat(prepared(1), 32, axis=0))
    assert "all 28 images are the same" in refused("quantize", colours, "--calib", "same.npy")
    np.save("grey.npy", np.zeros((32, 3, 8, 8), np.float32))
    assert "of one colour: there is nothing to calibrate on" in refused("quantize", colours, "--calib", "grey.npy")
    assert "no convolution relu" in refused("quantize", colours, "--calib", plain, "--keep", "relu")
    np.save("one.npy", prepared(1))
    assert "there is 1 image to calibrate on" in refused("quantize", colours, "--calib", "one.npy")
    for index in range(11):
        Path(images, "red", f"{index:03}.png").write_bytes(b"no image")
    said = refused("quantize", colours, "--calib", images)
    assert "more than 10 calibration images cannot be read" in said
    assert said.count("red/") >= 11


def test_a_quantised_graph_is_refused(invoke: Invoke, refused: Refused, colours: Path, plain: Path) -> None:
    assert invoke("quantize", colours, "--calib", plain).exit_code == 0
    shutil.copy(OUT, "other.onnx")
    assert "other.onnx is quantised already" in refused("quantize", "other.onnx", "--calib", plain)


def test_usage(invoke: Invoke, colours: Path) -> None:
    assert invoke("quantize", colours).exit_code == 2, "there is nothing to calibrate on"
    assert invoke("quantize", colours, "--calib", ".", "--method", "best").exit_code == 2
