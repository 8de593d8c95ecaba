"""`vexport trt`: real engines for an A100 on any machine, what is told of them, and when one is not built again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Invoke
from vexport.workspace import hash_file, read_manifest

from .conftest import A100, ENGINE, GRAPH


def test_bare_after_onnx(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", *A100)
    assert result.exit_code == 0, result.output
    assert f"graph: {GRAPH}, the newest" in result.stderr
    assert "against FP32 on 16 random images" in result.stdout
    assert "convolution 9 FP16" in result.stdout
    manifest = read_manifest(ENGINE)
    assert manifest is not None
    assert manifest.parent is not None
    assert manifest.parent.sha256 == hash_file(Path("vexport-out/ckpt.fp16.onnx"))
    assert (manifest.sha256, manifest.facts["targets"]) == (hash_file(ENGINE), [80])
    assert manifest.facts["profile"] == {"min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [8, 3, 64, 64]}
    if not torch.cuda.is_available():
        assert manifest.parity[0]["result"] == "not run"
        assert "built, not run here" in result.stdout
        assert "parity: not run" in result.stdout


def test_again_is_up_to_date(invoke: Invoke, engine: Path) -> None:
    before = engine.stat().st_mtime_ns
    result = invoke("trt", *A100)
    assert "up to date: vexport-out/ckpt.fp16.sm80.engine" in result.stdout
    assert engine.stat().st_mtime_ns == before


def test_the_same_request_elsewhere_comes_from_the_cache(invoke: Invoke, engine: Path) -> None:
    first = hash_file(engine)
    assert invoke("trt", *A100, "--max-batch", "4").exit_code == 0  # writes over it
    assert hash_file(engine) != first
    result = invoke("trt", *A100)
    assert "from the cache: " in result.stdout
    assert hash_file(engine) == first
    told = json.loads(invoke("trt", *A100, "-o", "other.engine", "--json").stdout)
    assert (told["from_cache"], told["manifest"]["sha256"]) == (True, first)
    assert json.loads(invoke("trt", *A100, "-o", "third.engine", "--no-cache", "--json").stdout)["from_cache"] is False


def test_an_altered_cache_is_not_taken(invoke: Invoke, engine: Path) -> None:
    (plan,) = Path(os.environ["VEXPORT_CACHE"]).rglob("*.plan")
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.unlink()  # it is the same file as the engine: only the cache's copy changes
    plan.write_bytes(data)
    engine.unlink()
    assert "built in" in invoke("trt", *A100).stdout


@pytest.mark.parametrize(("flag", "layers"), [("--fp32", "9 FP32"), ("--bf16", "9 BF16")])
def test_other_precisions(invoke: Invoke, graph: Path, flag: str, layers: str) -> None:
    result = invoke("trt", flag, *A100)
    assert result.exit_code == 0, result.output
    assert f"convolution {layers}" in result.stdout


def test_several_targets(invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", "--target", "sm86,a100").exit_code == 0
    assert Path("vexport-out/ckpt.fp16.sm80-sm86.engine").is_file()


def test_a_checkpoint_is_exported_first(invoke: Invoke, ckpt: Path) -> None:
    assert invoke("trt", ckpt, *A100).exit_code == 0
    assert ENGINE.is_file()
    assert GRAPH.is_file()


def test_a_batch_to_tune_for_is_enough(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", "--opt-batch", "16", *A100)
    assert result.exit_code == 0, result.output
    assert [side[0] for side in read_manifest(ENGINE).facts["profile"].values()] == [1, 16, 16]


def test_inspect_shows_the_engine(invoke: Invoke, engine: Path) -> None:
    told = json.loads(invoke("inspect", engine, "--json").stdout)
    assert (told["kind"], told["known"], told["facts"]["precision"]) == ("engine", True, "fp16")
    if not torch.cuda.is_available():
        kinds = {row["layer"]: row for row in told["layers"]}
        assert kinds["stem.0"]["gives"] == "fp16"
        assert any("cannot be read" in note for note in told["notes"])


def test_triton(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", *A100, "--triton", "models")
    assert result.exit_code == 0, result.output
    assert "opens no plans of TensorRT for RTX" in result.stderr
    model = Path("models/ckpt")
    assert hash_file(model / "1" / "model.onnx") == hash_file(Path("vexport-out/ckpt.fp16.onnx"))
    assert "max_batch_size: 8" in (model / "config.pbtxt").read_text()
    assert json.loads((model / "vexport.json").read_text())["engine"]["sha256"] == hash_file(ENGINE)
