"""Names of GPUs, and which TensorRT can do what."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import vexport.engine.runtime as runtime_module
from vexport.engine.runtime import TensorRT, choose_runtime, describe_runtime, use_polygraphy
from vexport.engine.target import name_targets, parse_targets, require_targets
from vexport.errors import EngineError, InputError, MissingDependencyError

RTX = TensorRT("tensorrt-rtx", "1.7.1.116", (75, 80, 86))


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("a100", (80,)),
        ("A100", (80,)),
        ("sm80", (80,)),
        ("8.0", (80,)),
        ("sm_120", (120,)),
        ("12.0", (120,)),
        ("sm86, a100,sm80", (80, 86)),
        ("current", ()),
    ],
)
def test_targets(text: str, targets: tuple[int, ...]) -> None:
    assert parse_targets(text) == targets


@pytest.mark.parametrize("text", ["", "gpu", "sm8", "a100,", "sm80;sm86", "80.0.1"])
def test_no_targets(text: str) -> None:
    with pytest.raises(InputError, match="names no GPU"):
        parse_targets(text)


def test_a_target_that_is_not_built_for() -> None:
    require_targets((80, 86), RTX)
    with pytest.raises(EngineError, match="does not build for sm90") as caught:
        require_targets((80, 90), RTX)
    assert caught.value.details == ("it builds for sm75, sm80, sm86",)
    assert name_targets((80, 86)) == "sm80-sm86"


@pytest.mark.parametrize(
    ("runtime", "typed", "timing", "compatible", "strip"),
    [
        (RTX, True, False, False, True),
        (TensorRT("tensorrt", "8.6.0"), False, True, True, False),
        (TensorRT("tensorrt", "8.5.3"), False, True, False, False),
        (TensorRT("tensorrt", "10.13.2.6"), True, True, True, True),
        (TensorRT("tensorrt", "11.1.0"), True, True, True, True),
    ],
)
def test_what_versions_can_do(runtime: TensorRT, typed: bool, timing: bool, compatible: bool, strip: bool) -> None:
    found = (runtime.strongly_typed, runtime.has_timing_cache, runtime.has_version_compatible, runtime.has_strip)
    assert found == (typed, timing, compatible, strip)


def test_missing_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError) as caught:
        describe_runtime("tensorrt")
    assert caught.value.hint == "pip install 'vexport[trt]'"

    def broken(name: str) -> ModuleType:
        raise OSError("libnvinfer.so.8: cannot open shared object file")

    monkeypatch.setattr(runtime_module, "import_module", broken)
    with pytest.raises(MissingDependencyError) as caught:
        describe_runtime("tensorrt-rtx")
    assert "libnvinfer.so.8" in caught.value.details[0]


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    classic = ModuleType("tensorrt")
    classic.__version__ = "10.13.0"  # type: ignore[attr-defined]
    rtx = ModuleType("tensorrt_rtx")
    rtx.__version__ = "1.7.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", classic)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: object())
    assert choose_runtime("auto", by_name=False).name == "tensorrt"
    assert choose_runtime("auto", by_name=True).name == "tensorrt-rtx"
    assert choose_runtime("tensorrt-rtx", by_name=False).name == "tensorrt-rtx"
    with pytest.raises(EngineError, match="for the GPU at hand only"):
        choose_runtime("tensorrt", by_name=True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # there, but it does not load
    assert choose_runtime("auto", by_name=False).name == "tensorrt-rtx"
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: None)
    assert choose_runtime("auto", by_name=False).name == "tensorrt-rtx"


def test_one_process_has_one_tensorrt() -> None:
    pytest.importorskip("tensorrt_rtx")
    use_polygraphy(describe_runtime("tensorrt-rtx"))
    with pytest.raises(EngineError, match="already uses the other TensorRT"):
        use_polygraphy(TensorRT("tensorrt", "10.13.0"))
