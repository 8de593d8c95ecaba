"""`vexport doctor`: what is there is said, what is missing comes with its remedy, and nothing is printed beside it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import vexport.pipeline.doctor as module
from tests.cli.conftest import folder, invoke  # noqa: F401
from vexport.engine.target import Device
from vexport.pipeline.doctor import diagnose


def test_it_says_what_is_here() -> None:
    found = diagnose()
    assert bool(found.devices) == torch.cuda.is_available()
    assert {finding.name for finding in found.runtimes} == {"tensorrt-rtx", "tensorrt"}
    providers = {finding.name: finding.found for finding in found.providers}
    assert providers["CPUExecutionProvider"]
    if not torch.cuda.is_available():
        assert not providers.get("CUDAExecutionProvider", False)
    assert all(finding.found for finding in found.libraries)
    json.dumps(found.to_json())


def test_a_missing_tensorrt_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = diagnose()
    assert [finding.fix for finding in found.runtimes] == ["pip install tensorrt-rtx", "pip install 'vexport[trt]'"]
    (ability,) = [one for one in found.abilities if one.name == "build engines"]
    assert not ability.found


def test_libraries_that_do_not_load_are_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("vexport.engine.runtime.import_module", broken)
    found = diagnose()
    assert not any(finding.found for finding in found.runtimes)
    assert all("cannot open shared object file" in finding.detail for finding in found.runtimes)


def test_a_gpu_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(module, "find_devices", lambda: [Device("H200", 90, 150 << 30)])
    found = diagnose()
    assert "does not name sm90" in found.runtimes[0].detail
    assert [one.found for one in found.abilities if one.name.startswith("run engines")] == [True]


def test_json_is_one_document(invoke) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["python"]
    shown = invoke("doctor")
    assert shown.exit_code == 0
    assert "This machine can" in shown.stdout
    assert "EP Error" not in shown.output
