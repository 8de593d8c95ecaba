"""`vexport trt`, and `check` and `inspect` on engines: what they refuse, each with a hint and nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Invoke

from .conftest import A100, Refused


def test_two_flags_exclude_each_other(invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", "--fp16", "--fp32").exit_code == 2


def test_random_weights_in_an_empty_folder(refused: Refused) -> None:
    assert "there is no checkpoint in vexport-out to take" in refused("trt", *A100)


def test_no_tensorrt(refused: Refused, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    said = refused("trt", "--fp16", *A100)
    assert "tensorrt-rtx" in said
    assert "hint: pip install tensorrt-rtx" in said


def test_no_classic_tensorrt(refused: Refused, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "hint: pip install 'vexport[trt]'" in refused("trt", "--runtime", "tensorrt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "voodoo2"), "names no GPU"),
        (("--target", "h100"), "does not build for sm90"),
        (("--target", "a100", "--version-compatible"), "no version-compatible engines"),
        (("--target", "a100", "--opt-level", "9"), "does not exist"),
        (("--target", "a100", "--size", "32"), "fixed to 64x64"),
        (("--target", "a100", "--size", "0"), "is no size"),
        (("--target", "a100", "-o", "engine.bin"), "neither .engine nor .plan"),
        (("--target", "a100", "--model", "vanillanet_55"), "vanillanet_5"),
    ],
)
def test_options_that_cannot_be(
    refused: Refused, graph: Path, invoke: Invoke, options: tuple[str, ...], says: str
) -> None:
    if "--size" in options:
        assert invoke("trt", *A100).exit_code == 0  # the FP16 graph that it would write on the way
    assert says in refused("trt", "--fp16", *options, *(("--no-cache",) if "--size" in options else ()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver(refused: Refused, engine: Path, graph: Path) -> None:
    assert "there is no GPU with a driver here" in refused("trt", "--target", "current")
    assert "compiled while they are built" in refused("trt", *A100, "--strip", "--no-cache")
    said = refused("check", graph, engine)
    assert "cannot run here: no GPU with a driver here; built for sm80" in said


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_an_altered_plan_is_not_opened(refused: Refused, engine: Path, graph: Path, command: str) -> None:
    before = (graph,) if command == "check" else ()
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    assert f"{engine} is altered" in refused(command, *before, engine)
    engine.write_bytes(data[:-100])
    assert f"{engine} is truncated" in refused(command, *before, engine)
    engine.with_name(engine.name + ".json").unlink()
    said = refused(command, *before, engine)
    assert f"{engine} is unknown" in said
    assert "--trust" in said


def test_a_foreign_file_is_not_opened_even_when_trusted(refused: Refused, graph: Path, folder: Path) -> None:
    (folder / "notes.engine").write_text("no plan at all")
    assert "is not a TensorRT plan" in refused("check", graph, "notes.engine", "--trust")


def test_a_file_in_the_way(refused: Refused, invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", *A100, "-o", "made.engine").exit_code == 0  # the FP16 graph
    Path("mine.engine").write_text("mine")
    assert "was not written by vexport" in refused("trt", *A100, "-o", "mine.engine")
