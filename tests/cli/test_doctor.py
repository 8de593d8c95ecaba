"""`vexport doctor` on the command line: always exit code 0, standard error empty, one JSON document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vexport.pipeline.doctor as module
from vexport.engine.target import Device

from .conftest import Invoke, files_of


def test_it_ends_with_what_the_machine_can_do(invoke: Invoke, folder: Path) -> None:
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    headings = [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert headings[0].startswith("vexport ")
    assert [line.split()[0] for line in headings[1:7]] == ["GPU", "TensorRT", "ONNX", "Libraries", "Optional", "This"]
    assert files_of(folder) == {}, "nothing is changed"


def test_a_gpu_is_shown(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_devices", lambda: [Device("NVIDIA H200", 90, 150_000_000_000)])
    assert "  yes  NVIDIA H200, sm90, 150.00 GB" in invoke("doctor").stdout


def test_nothing_there_is_no_error(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_devices", list)
    for name in ("tensorrt_rtx", "tensorrt", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "tensorrt-rtx: pip install tensorrt-rtx" in result.stdout
    assert json.loads(invoke("doctor", "--json").stdout)["providers"][0]["found"] is False


def test_json_is_one_document_and_nothing_else() -> None:
    """In a process of its own, so that what native code writes counts."""
    command = [sys.executable, "-m", "vexport", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert done.stderr == ""
    assert {"vexport", "python", "driver", "torch", "cuda", "devices", "runtimes", "providers", "abilities"} <= set(
        said
    )
    assert said["cuda"]["found"] is bool(said["devices"])
    run = next(ability for ability in said["abilities"] if ability["name"] == "run engines")
    assert run["found"] == bool(said["devices"] and any(runtime["found"] for runtime in said["runtimes"]))


def test_help(invoke: Invoke) -> None:
    result = invoke("doctor", "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
