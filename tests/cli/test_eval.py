"""`vexport eval`: what it prints, its exit codes, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Invoke, Save, State, files_of

Refused = Callable[..., str]
LAYOUT = "DIR/<class>/<image>"


@pytest.fixture
def data(folder: Path) -> Path:
    """`data/val` with ten class folders of two images."""
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / "data" / "val" / f"c{label}").mkdir(parents=True)
        for index in range(2):
            pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "val" / f"c{label}" / f"{index}.png")
    return Path("data")


@pytest.fixture
def biased(save: Save, state: State) -> Path:
    """A checkpoint that always answers `c3`: right on two images of twenty."""
    state["cls2.0.bias"][3] += 1000
    return save(state, "biased.pth")


def test_the_table(invoke: Invoke, biased: Path, data: Path, folder: Path) -> None:
    before = files_of(folder)
    result = invoke("eval", biased, "--data", data)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["Accuracy", "on", "data/val"]
    (row,) = [line for line in lines if line[0] == "biased.pth"]
    assert row[1:7] == ["pytorch", "eager", "FP32", "20", "2", "10.00"]
    assert result.stderr.splitlines() == [
        "test crop as biased.pth says: shorter side to 73 (bicubic), centre 64x64 (crop 0.875); "
        "sorted folders are the classes",
        "note: images: data/val (in data itself there are no class folders)",
    ]
    assert files_of(folder) == before


def test_json_is_one_document(invoke: Invoke, biased: Path, data: Path) -> None:
    result = invoke("eval", biased, "--data", data, "--json", "--limit", "10")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert (said["artifact"]["images"], said["artifact"]["top1_percent"]) == (10, 10.0)
    assert said["data"] == "data/val"
    assert said["preprocessing"]["input_size"] == [3, 64, 64]
    assert said["per_class"][0] == {
        "class": "c0", "images": 1, "right": 0, "top1_percent": 0.0, "confused_with": "c3", "confused": 1,
    }  # fmt: skip


def test_the_backend_is_named(invoke: Invoke, refused: Refused, biased: Path, data: Path) -> None:
    result = invoke("eval", biased, "--data", data, "--backend", "pytorch-channels-last", "--json")
    assert result.exit_code == 0, result.output
    assert "channels-last" in json.loads(result.stdout)["artifact"]["backend"]
    said = refused("eval", biased, "--data", data, "--backend", "pytorch-fp17")
    assert "there is no backend pytorch-fp17" in said
    assert "pytorch-fp16" in said, "the hint lists them"


def test_class_by_class(invoke: Invoke, biased: Path, data: Path) -> None:
    (data / "val" / "c7").rename(data / "val" / "[bold]c7")  # names are no markup
    result = invoke("eval", biased, "--data", data, "--per-class")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert rows["c2"] == ["-", "2", "2", "100.00"], "the brackets sort before the letters: c2 is the fourth"
    assert rows["c9"] == ["c2", "(2)", "2", "0", "0.00"]
    assert rows["[bold]c7"] == ["c2", "(2)", "2", "0", "0.00"]
    assert "Class" not in invoke("eval", biased, "--data", data).stdout


def test_against_its_graph(invoke: Invoke, ckpt: Path, data: Path) -> None:
    assert invoke("onnx", ckpt).exit_code == 0
    result = invoke("eval", ckpt, "--data", data, "--against", "vexport-out/ckpt.onnx", "--batch", "3")
    assert result.exit_code == 0
    assert "the first answer is the same on 100.00 % of the images" in result.stdout
    assert "ckpt.pth is right on 0 image(s) where ckpt.onnx is not, and wrong on 0 where ckpt.onnx is right" in (
        result.stdout
    )


def test_against_another(invoke: Invoke, save: Save, state: State, biased: Path, data: Path) -> None:
    state["cls2.0.bias"][3] -= 1000
    state["cls2.0.bias"][5] += 1000
    other = save(state, "other.pth")
    result = invoke("eval", biased, "--data", data, "--against", other)
    assert "the first answer is the same on 0.00 % of the images" in result.stdout
    assert (
        "biased.pth is right on 2 image(s) where other.pth is not, and wrong on 2 where other.pth is right; "
        "both are right on 0, neither on 16"
    ) in result.stdout
    agreement = json.loads(invoke("eval", biased, "--data", data, "--against", other, "--json").stdout)["agreement"]
    assert agreement == {
        "both_right": 0, "only_a": 2, "only_b": 2, "both_wrong": 16, "same": 0, "agreement_percent": 0.0,
    }  # fmt: skip


def test_below_what_is_asked(invoke: Invoke, biased: Path, data: Path) -> None:
    assert invoke("eval", biased, "--data", data, "--min-top1", "10").exit_code == 0
    result = invoke("eval", biased, "--data", data, "--min-top1", "10.1")
    assert result.exit_code == 3
    assert "Accuracy on" in result.stdout
    said = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert said[0] == "error: biased.pth is right on 10.00 %, 10.1 % are asked"
    assert said[1] == "  2 of 20 images"
    assert said[-1].startswith("hint: ")
    as_json = invoke("eval", biased, "--data", data, "--min-top1", "10.1", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["gate"] == {"least_top1_percent": 10.1, "passed": False}


def test_the_record(invoke: Invoke, biased: Path, data: Path, folder: Path) -> None:
    result = invoke("eval", biased, "--data", data, "--output", "out/a.json")
    assert result.stdout.splitlines()[-1] == "written: out/a.json"
    told = json.loads(invoke("eval", biased, "--data", data, "--json", "-o", "out/a.json").stdout)
    assert json.loads((folder / "out" / "a.json").read_text()) == told
    assert {"out/a.json", "out/a.json.json"} <= set(files_of(folder))


def test_a_foreign_file_stays(invoke: Invoke, refused: Refused, biased: Path, data: Path, folder: Path) -> None:
    (folder / "mine.json").write_text("{}")
    assert "is in the way" in refused("eval", biased, "--data", data, "--output", "mine.json")
    assert invoke("eval", biased, "--data", data, "--output", "mine.json", "--force").exit_code == 0


def test_skipped_images_are_named(invoke: Invoke, refused: Refused, biased: Path, data: Path) -> None:
    (data / "val" / "c4" / "1.png").write_bytes(b"no image")
    result = invoke("eval", biased, "--data", data)
    assert result.exit_code == 0
    assert "skipped: c4/1.png: cannot identify image file" in result.stderr
    said = refused("eval", biased, "--data", data, "--max-damaged", "0")
    assert "more than 0 image(s) cannot be read" in said
    assert "  c4/1.png: " in said
    assert "--max-damaged" in said


def test_refusals(refused: Refused, ckpt: Path, data: Path, folder: Path) -> None:
    (folder / "empty").mkdir()
    one = folder / "one" / "a"
    one.mkdir(parents=True)
    (data / "val" / "c0" / "0.png").rename(one / "0.png")
    assert "no such file: none.onnx" in refused("eval", "none.onnx", "--data", data)
    assert "the image folder nowhere does not exist" in refused("eval", ckpt, "--data", "nowhere")
    assert LAYOUT in refused("eval", ckpt, "--data", "empty")
    assert "has no class folders with images in them" in refused("eval", ckpt, "--data", one)
    assert "accuracy over one class says nothing" in refused("eval", ckpt, "--data", "one")
    (data / "val" / "c9" / "0.png").rename(folder / "one" / "0.png")
    (folder / "one" / "b").mkdir()
    (folder / "one" / "0.png").rename(folder / "one" / "b" / "0.png")
    assert "one has 2 class folder(s), ckpt.pth tells 10 classes apart" in refused("eval", ckpt, "--data", "one")
    assert "--real out" in refused("eval", ckpt, "--data", data, "--real")
    assert "no such file: none.pth" in refused("eval", ckpt, "--data", data, "--against", "none.pth")
    assert "--batch 0 is not positive" in refused("eval", ckpt, "--data", data, "--batch", "0")


def test_usage(invoke: Invoke, ckpt: Path) -> None:
    assert invoke("eval", ckpt).exit_code == 2
    assert invoke("eval", "--data", ".").exit_code == 2
    assert invoke("eval", ckpt, "--data", ".", "--min-top1", "high").exit_code == 2
