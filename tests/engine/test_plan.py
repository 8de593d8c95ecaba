"""Plans that are opened, and those that are not; without a GPU, up to what the driver refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vexport.engine.plan as plan_module
from vexport.artifacts import Manifest, Parent
from vexport.engine.plan import open_plan, require_trusted, why_not_here
from vexport.engine.target import Device
from vexport.errors import EngineError, InputError
from vexport.workspace import manifest_path, write_manifest

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")

A100 = Device("A100", 80, 40 << 30)
FACTS = {"precision": "fp16", "targets": [80], "runtime": {"name": "tensorrt-rtx", "version": "1.7"}}


def manifest_of(data: bytes, **facts: object) -> Manifest:
    digest = hashlib.sha256(data).hexdigest()
    return Manifest("engine", digest, len(data), Parent("a.onnx", "0" * 64), {}, {**FACTS, **facts})


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A file with a manifest that knows it."""
    path = tmp_path / "a.engine"
    path.write_bytes(b"vtrt and so on")
    manifest_path(path).write_text("{}")
    write_manifest(path, manifest_of(path.read_bytes()))
    return path


def test_a_known_plan_is_trusted(plan: Path) -> None:
    manifest = require_trusted(plan)
    assert manifest is not None
    assert manifest.facts["targets"] == [80]


def test_altered_truncated_and_unknown_plans_are_not(plan: Path) -> None:
    plan.write_bytes(b"vtrt and so off")
    with pytest.raises(EngineError, match="is altered"):
        require_trusted(plan)
    plan.write_bytes(b"vtrt and")
    with pytest.raises(EngineError, match="is truncated"):
        require_trusted(plan)
    assert require_trusted(plan, trust=True) is not None
    manifest_path(plan).unlink()
    with pytest.raises(EngineError, match="is unknown") as caught:
        require_trusted(plan)
    assert "--trust" in caught.value.hint
    assert require_trusted(plan, trust=True) is None
    plan.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        require_trusted(plan, trust=True)
    with pytest.raises(InputError, match="is a folder"):
        require_trusted(plan.parent)


@pytest.mark.parametrize(
    ("facts", "version", "devices", "says"),
    [
        ({}, "1.7", [A100], None),
        ({}, "1.7", [], "no GPU with a driver here; built for sm80"),
        ({}, "1.7", [Device("H200", 90, 1)], "built for sm80; H200 is sm90"),
        ({"hardware_compatible": True}, "1.7", [Device("H200", 90, 1)], None),
        ({"hardware_compatible": True}, "1.7", [Device("T4", 75, 1)], "built for sm80; T4 is sm75"),
        ({}, "1.8", [A100], "built with tensorrt-rtx 1.7; 1.8 is installed"),
        ({"version_compatible": True}, "1.8", [A100], None),
    ],
)
def test_why_an_engine_does_not_run_here(
    facts: dict[str, object], version: str, devices: list[Device], says: str | None
) -> None:
    assert why_not_here(manifest_of(b"", **facts), version, devices) == says


def test_a_plan_that_changes_while_it_is_opened(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_then_change(path: Path, *, trust: bool) -> Manifest:
        manifest = require_trusted(path, trust=trust)
        assert manifest is not None
        path.write_bytes(b"something else")
        return replace(manifest, facts={**manifest.facts, "version_compatible": True})

    monkeypatch.setattr(plan_module, "find_devices", lambda: [A100])
    monkeypatch.setattr(plan_module, "require_trusted", look_then_change)
    monkeypatch.setattr(plan_module, "deserialize", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(EngineError, match="changed while it was opened"):
        open_plan(plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_driver_refuses_is_an_error_not_a_crash(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "find_devices", lambda: [A100])
    write_manifest(plan, manifest_of(plan.read_bytes(), version_compatible=True))
    with pytest.raises(EngineError, match=r"refuses a\.engine") as caught:
        open_plan(plan)
    assert caught.value.details


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_the_plan_is_for(plan: Path) -> None:
    with pytest.raises(EngineError, match="cannot run here: no GPU with a driver here; built for sm80"):
        open_plan(plan)
    plan.write_bytes(b"no plan at all")
    manifest_path(plan).unlink()
    with pytest.raises(InputError, match="is not a TensorRT plan"):
        open_plan(plan, trust=True)
