"""Depthwise convolutions in INT8 or in FP16: both engines timed on the GPU at hand, or the documented default."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.engine.target import find_devices
from vexport.errors import EngineError
from vexport.pipeline.half_rest import DEFAULT, Depthwise
from vexport.workspace import read_manifest

if TYPE_CHECKING:
    from vexport.bench.clock import Clock
    from vexport.pipeline.build import BuildResult

DepthwiseOption = Literal["on", "off", "auto"]
MODES: tuple[Depthwise, Depthwise] = ("on", "off")
WHY_DEFAULT = "TensorRT pads depthwise INT8 to four channels per group"


def asked_and_chosen(asked: DepthwiseOption, chosen: Depthwise, **more: Any) -> dict[str, Any]:
    """What a manifest says of the choice."""
    return {"asked": asked, "chosen": chosen, "measured": False} | more


def recorded_choice(engine: Path, of: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured on this GPU for the engine that is there, so that an up-to-date one is not timed again.

    Args:
        engine: The engine's file.
        of: What was timed: the graph, the builder's options and TensorRT. Figures of anything else say nothing.
    """
    manifest = read_manifest(engine)
    told = manifest.facts.get("int8_depthwise") if manifest else None
    if not isinstance(told, dict) or not told.get("measured") or told.get("device") != _device():
        return None
    return told if told.get("of") == json.loads(json.dumps(of)) else None


def _device() -> str | None:
    """The name of the GPU at hand."""
    devices = find_devices()
    return devices[0].name if devices else None


def not_measured(reason: str) -> dict[str, Any]:
    """The documented default, and that it is only that."""
    return asked_and_chosen("auto", DEFAULT, reason=reason)


def choose_by_time(
    build: Callable[[Depthwise, Path], BuildResult],
    *,
    clock: Clock | None = None,
    on_progress: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> dict[str, Any]:
    """Build both, time them in turns, and take the faster.

    Args:
        build: Builds one of them into a file; both are in the engine cache afterwards.
        clock: How long to measure.
        on_progress: Told what is timed, and the share that is done.

    Returns:
        What a manifest says of it: `chosen`, and the medians `on_ms` and `off_ms` of a call at `batch` images, copies
        included.

    Raises:
        EngineError: one of them failed while it was timed.
    """
    from vexport.bench.clock import Clock
    from vexport.run import open_runner
    from vexport.run.compare import random_batches

    clock = clock or Clock(warmup_s=0.5, duration_s=2.0, rounds=10)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vexport-")))
        calls: dict[str, Callable[[], object]] = {}
        batch = 1
        for mode in MODES:
            engine = build(mode, folder / f"{mode}.engine").artifact
            batch, *sides = engine.facts["profile"]["opt"]
            runner = stack.enter_context(open_runner(engine.path))
            images = random_batches((sides[0], sides[1], sides[2]), (batch,))[0]
            calls[mode] = _call(runner, images)
        found = clock.measure(
            calls, progress=lambda name, done, total: on_progress(f"timing depthwise INT8 {name}", done / total)
        )
    failed = [f"{mode}: {samples.error}" for mode, samples in found.items() if samples.error]
    if failed:
        raise EngineError(
            "an engine failed while it was timed", details=failed, hint="choose with --int8-depthwise on or off"
        )
    chosen: Depthwise = "on" if found["on"].median_ms < found["off"].median_ms else "off"
    return asked_and_chosen(
        "auto",
        chosen,
        measured=True,
        device=_device(),
        batch=batch,
        on_ms=found["on"].median_ms,
        off_ms=found["off"].median_ms,
        unstable=any(samples.unstable for samples in found.values()),
        clock=clock.settings(),
    )


def _call(runner: Callable[[Any], Any], images: Any) -> Callable[[], object]:
    return lambda: runner(images)
