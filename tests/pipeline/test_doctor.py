"""`vexport doctor`: what is there is said, what is missing comes with its remedy, and nothing is an error."""

from __future__ import annotations

import json
import sys
from typing import Any

import onnxruntime as ort
import pytest
import torch

import vexport.pipeline.doctor as module
from vexport.engine.runtime import MODULES, TensorRT
from vexport.engine.target import Device
from vexport.pipeline.doctor import Diagnosis, Finding, diagnose

H200 = Device("NVIDIA H200", 90, 150 << 30)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def named(findings: tuple[Finding, ...], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def with_devices(monkeypatch: pytest.MonkeyPatch, *devices: Device) -> None:
    monkeypatch.setattr(module, "find_devices", lambda: list(devices))


def with_runtimes(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Installed TensorRTs, `tensorrt` and `rtx`."""

    def describe(name: str) -> TensorRT:
        if name == "tensorrt":
            return TensorRT("tensorrt", versions["tensorrt"])
        return TensorRT("tensorrt-rtx", versions["rtx"], (80, 86))

    monkeypatch.setattr(module, "describe_runtime", describe)


def can(found: Diagnosis) -> dict[str, bool]:
    return {finding.name: finding.found for finding in found.abilities}


def test_it_says_what_is_here() -> None:
    found = diagnose()
    assert found.torch.version == torch.__version__
    assert found.cuda.version == torch.version.cuda
    assert found.cuda.found == bool(found.devices) == torch.cuda.is_available()
    assert [finding.name for finding in found.runtimes] == list(MODULES)
    assert [finding.name for finding in found.providers] == ort.get_available_providers()
    assert named(found.providers, CPU).found
    assert all(finding.found and finding.version for finding in found.libraries)
    assert can(found)["fuse, export, check"]
    json.dumps(found.to_json())


def test_what_is_missing_has_a_reason_and_no_version() -> None:
    found = diagnose()
    parts = (found.driver, found.torch, found.cuda, *found.runtimes, *found.providers, *found.extras)
    for part in parts:
        assert part.found or part.detail, part
        assert not (part.found and part.fix), part
    for missing in (found.driver, *found.runtimes):
        assert missing.found or (missing.version is None and missing.fix)
    fixes = [finding.fix for finding in found.missing]
    assert len(set(fixes)) == len(fixes)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(module.ctypes, "CDLL", absent)
    driver = module._driver()
    assert (driver.found, driver.version) == (False, None)
    assert "cannot open shared object file" in driver.detail


@pytest.mark.parametrize(("code", "version"), [(0, "13.2"), (34, None)])
def test_the_driver_answers(monkeypatch: pytest.MonkeyPatch, code: int, version: str | None) -> None:
    class Library:
        def __init__(self, name: str) -> None: ...

        @staticmethod
        def cuDriverGetVersion(number: Any) -> int:  # noqa: N802
            number._obj.value = 13020
            return code

    monkeypatch.setattr(module.ctypes, "CDLL", Library)
    driver = module._driver()
    assert (driver.found, driver.version) == (code == 0, version)
    assert code == 0 or str(code) in driver.detail


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Device]:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(module, "find_devices", broken)
    found = diagnose()
    assert (found.devices, found.cuda.found) == ((), False)
    assert found.cuda.detail == "CUDA error: unspecified launch failure"
    assert not can(found)["run engines"]


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch)
    with_runtimes(monkeypatch, tensorrt="10.9.0", rtx="1.7.1")
    found = diagnose()
    rtx, classic = found.runtimes
    assert rtx.detail.startswith("builds for sm80, sm86 on any machine; runs nothing here: no GPU")
    assert classic.detail.startswith("builds nothing here: no GPU")
    assert (can(found)["build engines with tensorrt-rtx"], can(found)["build engines with tensorrt"]) == (True, False)
    assert not can(found)["run engines"]
    assert not can(found)["measure on a GPU"]
    assert named(found.abilities, "run engines").detail == "no GPU with a driver"


def test_a_gpu_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, H200)
    with_runtimes(monkeypatch, tensorrt="8.6.1", rtx="1.7.1")
    found = diagnose()
    rtx, classic = found.runtimes
    assert found.devices == (H200,)
    assert "as `current` for sm90, which it does not name" in rtx.detail
    assert "runs engines for sm90 built as `current`, where it takes them" in rtx.detail
    assert classic.detail.startswith("builds for sm90, the GPU at hand; runs engines for sm90; precision by flags")
    assert classic.facts | {"timing_cache": True, "version_compatible": True, "this_gpu": 90} == classic.facts
    assert (rtx.facts["strongly_typed"], rtx.facts["timing_cache"]) == (True, False)
    assert all(can(found)[name] for name in ("build engines with tensorrt", "run engines", "measure on a GPU"))
    assert "NVIDIA H200, sm90" in named(found.abilities, "run engines").detail


def test_a_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, Device("NVIDIA A100", 80, 80 << 30))
    with_runtimes(monkeypatch, tensorrt="10.9.0", rtx="1.7.1")
    assert "does not name" not in diagnose().runtimes[0].detail


def test_a_missing_tensorrt_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with_devices(monkeypatch, H200)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = diagnose()
    assert [finding.fix for finding in found.runtimes] == ["pip install tensorrt-rtx", "pip install 'vexport[trt]'"]
    assert not can(found)["build engines"]
    assert named(found.abilities, "run engines").detail == "no TensorRT can be loaded"


@pytest.mark.parametrize("error", [OSError("libnvinfer.so.10: cannot open shared object file"), RuntimeError("no")])
def test_libraries_that_do_not_load_are_not_a_crash(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str) -> object:
        raise error

    monkeypatch.setattr("vexport.engine.runtime.import_module", broken)
    found = diagnose()
    assert not any(finding.found for finding in found.runtimes)
    assert all(str(error) in finding.detail and finding.fix for finding in found.runtimes)


def test_an_extra_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "installed_version", lambda *names: "missing")
    found = module._extra("train")
    assert not found.found
    assert found.detail.startswith("lightning missing, scikit-learn missing, ")
    assert found.fix == "pip install 'vexport[train]'"


class FallsBack:
    """A session that takes the CPU whatever it is asked for, and says why as ONNX Runtime does."""

    said = ""

    def __init__(self, model: bytes, options: Any, providers: list[str]) -> None:
        module.os.write(2, self.said.encode())
        print("*************** EP Error ***************\nEP Error f.cc:1 void f(const T&) get the libraries")

    def get_providers(self) -> list[str]:
        return [CPU]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "\x1b[1;31m2026 [E:onnxruntime] f.cc:2 FAIL : Failed to load library /a/b.so with error: c.so: no\n",
            "c.so: no",
        ),
        ("", "get the libraries"),
    ],
)
def test_a_provider_that_falls_back_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: str, reason: str
) -> None:
    monkeypatch.setattr(FallsBack, "said", said)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", FallsBack)
    found = {finding.name: finding for finding in module._providers()}
    assert found[CPU].found
    assert (found[CUDA].found, found[CUDA].detail) == (False, reason)
    assert found[CUDA].fix
    assert capfd.readouterr() == ("", ""), "what is heard is not shown"


def test_a_provider_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such device\nmore")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    (found,) = module._providers()
    assert (found.found, found.detail) == (False, "no such device")


def test_a_closed_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(descriptor: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(module.os, "dup", closed)
    assert {finding.name: finding.found for finding in module._providers()}[CPU]


def test_no_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (found,) = module._providers()
    assert (found.found, found.fix) == (False, "pip install onnxruntime-gpu")
