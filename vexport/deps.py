"""Optional packages: a missing one becomes the pip command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from vexport.errors import MissingDependencyError

# The top-level modules that each extra of pyproject.toml brings.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("lightning", "sklearn", "torchvision", "matplotlib", "tensorboard"),
    "trt": ("tensorrt",),
    "openvino": ("openvino",),
    "gpu": ("pynvml",),
    "explain": ("pytorch_grad_cam", "cv2", "ttach", "matplotlib"),
}


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import optional packages inside this block.

    Raises:
        MissingDependencyError: a package of `extra` is not installed. Any other ImportError passes through.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS[extra]:
            raise
        raise MissingDependencyError(
            f"the package '{missing}' is not installed",
            hint=f"pip install 'vexport[{extra}]'  (from a clone: pip install '.[{extra}]')",
        ) from error


def installed_version(*distributions: str) -> str:
    """Version of the first installed distribution, without importing it; `missing` when there is none."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "missing"


def tool_versions(*names: str) -> dict[str, str]:
    """Versions of vexport and of the named distributions, as manifests record them."""
    aliases = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
    return {name: installed_version(*aliases.get(name, (name,))) for name in ("vexport", *names)}
