"""`vexport explain`: what it prints, its exit codes, and how it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import Invoke, Save, State

Refused = Callable[..., str]


@pytest.fixture
def data(folder: Path) -> Path:
    """`data` with ten class folders of two images."""
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / "data" / f"c{label}").mkdir(parents=True)
        for index in range(2):
            pixels = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / f"c{label}" / f"{index}.png")
    return Path("data")


@pytest.fixture
def biased(save: Save, state: State) -> Path:
    """A checkpoint that always answers the fourth class."""
    state["cls2.0.bias"][3] += 1000
    return save(state, "biased.pth")


def test_samples(invoke: Invoke, biased: Path, ckpt: Path, data: Path, folder: Path) -> None:
    result = invoke("explain", biased, "--data", data, "--beside", ckpt, "--samples", "2", "--out", "maps")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["[1] biased.pth: stages.2, 2x2", "[2] ckpt.pth: stages.2, 2x2"]
    rows = [re.split(" {2,}", line.strip()) for line in lines if re.match(r" \[\d\] ", line)]
    assert [row[:3] for row in rows] == [
        ["[1]", "right by [1]", "2"],
        ["[2]", "right by [1]", "2"],
        ["[1]", "wrong by [1]", "2"],
        ["[2]", "wrong by [1]", "2"],
    ]
    header = next(line for line in lines if line.lstrip().startswith("network "))
    assert re.split(" {2,}", header.strip()) == [
        "network", "images", "count", "above half", "effective", "above half - [1]", "effective - [1]",
        "hidden - other's map",
    ]  # fmt: skip
    assert "Maps of the predicted class, in %: mean ± standard deviation" in lines
    assert "hidden - other's map: points of probability lost" in result.stdout
    assert max(len(line.rstrip()) for line in lines) <= 120
    assert result.stdout.splitlines()[-1] == "written: maps/sheet.png and 5 more file(s) beside it"
    assert "images for samples; sorted folders are the classes" in result.stderr
    assert "note: biased.pth: a map of 2x2 is coarse" in result.stderr
    assert len(list((folder / "maps").glob("*.png"))) == 5


def test_named_images(invoke: Invoke, biased: Path, data: Path) -> None:
    result = invoke("explain", biased, data / "c3" / "0.png", "--class", "5")
    assert result.exit_code == 0, result.output
    assert "data/c3/0.png" in result.stdout
    assert "Maps of the 'class 5' class, in %" in result.stdout
    assert "no other image of their group has a map to compare with" in result.stderr
    (row,) = [line.split() for line in result.stdout.splitlines() if re.match(r" \[1\] ", line)]
    assert (row[:3], row[-1]) == (["[1]", "given", "1"], "-")
    assert "written: vexport-out/biased.explain/sheet.png" in result.stdout


def test_json_is_one_document(invoke: Invoke, biased: Path, data: Path, folder: Path) -> None:
    result = invoke("explain", biased, "--data", data, "--samples", "1", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said.pop("folder") == "vexport-out/biased.explain"
    assert json.loads((folder / "vexport-out" / "biased.explain" / "explain.json").read_text()) == said
    assert (said["method"], said["class"]) == ("GradCAM++", "predicted")
    assert [one["group"] for one in said["images"]] == ["correct", "misclassified"]


def test_refusals(refused: Refused, biased: Path, data: Path, folder: Path) -> None:
    image = data / "c3" / "0.png"
    assert "there is nothing to explain" in refused("explain", biased)
    assert "no such file: none.pth" in refused("explain", "none.pth", image)
    assert "no such file: none.png" in refused("explain", biased, "none.png")
    assert "which weights?" in refused("explain", "vanillanet_5", image)
    said = refused("explain", biased, image, "--layer", "stages.22")
    assert "biased.pth has no layer stages.22" in said
    assert "hint: did you mean stages.2" in said
    (folder / "broken.png").write_bytes(b"no image")
    assert "the image broken.png cannot be read" in refused("explain", biased, "broken.png")
    (folder / "loose").mkdir()
    Image.new("RGB", (70, 70)).save(folder / "loose" / "a.png")
    assert "has no class folders" in refused("explain", biased, "--data", "loose")
    (folder / "maps").mkdir()
    (folder / "maps" / "explain.json").write_text("{}")
    assert "is in the way" in refused("explain", biased, image, "--out", "maps")


def test_an_interrupt(invoke: Invoke, biased: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vexport.pipeline.explain.look_at", interrupt)
    result = invoke("explain", biased, data / "c3" / "0.png", "--out", "maps")
    assert result.exit_code == 130
    assert not Path("maps").exists()


def test_usage(invoke: Invoke, biased: Path) -> None:
    assert invoke("explain").exit_code == 2
    assert invoke("explain", biased, "--weights", "mine").exit_code == 2
