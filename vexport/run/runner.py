"""What every backend offers: a callable from images to logits that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vexport.errors import InputError

Array = npt.NDArray[Any]

# What one call covers, for whoever reads a latency.
CALL_INCLUDES = ("images from host memory", "the network", "logits to host memory")
CALL_EXCLUDES = ("reading and decoding of images", "resizing and normalising", "softmax")


class Runner(Protocol):
    """A network ready to answer: arrays in, arrays out, and done when the call returns."""

    @property
    def name(self) -> str:
        """What it was opened from."""

    @property
    def backend(self) -> str:
        """Who computes, as `pytorch eager FP32` or `onnxruntime CPU`."""

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """N, C, H and W; None where any size goes."""

    def __call__(self, images: Array) -> Array:
        """Logits float32 (N, classes) of images float32 (N, C, H, W).

        Raises:
            InputError: rank, shape or dtype is not the network's.
        """

    def describe(self) -> dict[str, Any]:
        """Versions, providers in use, threads, and what a call includes and excludes."""

    def close(self) -> None:
        """Let go of the network; a closed runner answers no more."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class DeviceWork(Protocol):
    """The same images over and over, in steps that can be timed one by one. Not for several threads.

    `upload`, `launch` and `download` only enqueue work on `stream`, in order, and return before it is done.
    """

    @property
    def stream(self) -> Any:
        """The torch.cuda.Stream that all goes to, for whoever records events on it."""

    def upload(self) -> None:
        """Images from pinned host memory to the device, to the type and layout that the network takes."""

    def launch(self) -> None:
        """The network alone, on the images that lie on the device."""

    def download(self) -> None:
        """Logits to pinned host memory."""

    def synchronize(self) -> None:
        """Wait until all is done."""

    def answer(self) -> Array:
        """Logits (N, classes) of the last download; waits for it."""


def prepare(runner: Runner, images: Array) -> DeviceWork | None:
    """Images brought to the device that a runner computes on, so that steps of a call can be timed apart.

    Args:
        runner: Any; stays open as long as the result is used.
        images: float32 (N, C, H, W), one batch.

    Returns:
        Work that has been launched once already: nothing is compiled, recorded or allocated later. None where the
        runner computes in host memory, or its backend does not let one look inside a call.

    Raises:
        InputError: the images are not what the network takes, or the runner is closed.
        EngineError: the device fails.
    """
    make = getattr(runner, "prepare", None)
    work: DeviceWork | None = None if make is None else make(images)
    return work


def batch_range(runner: Runner) -> tuple[int, int | None]:
    """Least and largest batch that a runner takes; None where any goes. Only engines have a profile."""
    found: tuple[int, int | None] = getattr(runner, "batch_range", (runner.input_shape[0] or 1, runner.input_shape[0]))
    return found


def answer(runner: Runner, images: Array) -> Array:
    """Logits of any number of images, whatever batch the runner takes.

    Where the images do not fill its least batch, the last one is repeated and its further answers are dropped.

    Args:
        runner: Any.
        images: (N, C, H, W), at least one.

    Returns:
        (N, classes).
    """
    least, most = batch_range(runner)
    parts = []
    for start in range(0, len(images), most or len(images)):
        part = images[start : start + (most or len(images))]
        missing = max(0, least - len(part))
        padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append(runner(padded)[: len(part)])
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def require_images(images: Array, shape: tuple[int | None, ...], dtypes: Sequence[str] = ("float32",)) -> None:
    """Refuse images that a network does not take.

    Args:
        images: What was given.
        shape: N, C, H and W that are taken; None where any size from 1 goes.
        dtypes: Names of the dtypes that are taken.

    Raises:
        InputError: it is no array, or rank, shape or dtype differ.
    """
    if not isinstance(images, np.ndarray):
        kind = type(images).__name__
        raise InputError(f"the images are a {kind}, not an array", hint="give a numpy array, as tensor.numpy() makes")
    if images.dtype not in [np.dtype(name) for name in dtypes]:
        wanted = " or ".join(dtypes)
        raise InputError(f"the images are {images.dtype}, not {wanted}", hint=f"images.astype('{dtypes[0]}')")
    fits = images.ndim == len(shape) and all(
        side >= 1 and want in (None, side) for side, want in zip(images.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"the images are {times(images.shape)}, the network takes {times(shape)}",
            hint="the axes are images, channels, height and width; there is at least one image",
        )


def require_logits(logits: object, images: int, name: str) -> Array:
    """Refuse an output that is not one row of class scores per image.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(logits, np.ndarray):
        raise InputError(f"{name} answers with a {type(logits).__name__}, not an array", hint=_NOT_CLASSIFIER)
    if logits.ndim != 2 or logits.shape[0] != images or logits.shape[1] < 1:
        raise InputError(
            f"{name} answers {images} images with an output of {times(logits.shape)}, not {images}xclasses",
            hint=_NOT_CLASSIFIER,
        )
    return logits


_NOT_CLASSIFIER = "only classifiers with one output (images, classes) can be run"


def require_threads(threads: int | None) -> None:
    """Refuse a thread count below 1.

    Raises:
        InputError: it is.
    """
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot compute", hint="give 1 or more, or none for the backend's choice")


def times(shape: Sequence[int | None]) -> str:
    """A shape for people: `1x3x224x224`, with N for any number."""
    return "x".join("N" if side is None else str(side) for side in shape) or "a single number"
