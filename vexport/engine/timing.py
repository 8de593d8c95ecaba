"""The timing cache: which kernel was fastest, per device and version, shared by all builds of a machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any


def load_timing_cache(config: Any, path: Path | None) -> bool:
    """Give a builder configuration the cache in a file; an empty one where there is none or it is damaged.

    Returns:
        Whether the file's was taken.
    """
    data = _read(path)
    cache = _parse(config, data) if data else None
    taken = cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))
    if not taken:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return taken


def save_timing_cache(config: Any, path: Path | None) -> None:
    """Merge what a build has measured into the file.

    Under a lock, and by renaming: Polygraphy's own writes in place, and a build killed there would leave half a cache.
    A folder that cannot be written costs the cache, not the engine.
    """
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            data = _read(path)
            before = _parse(config, data) if data else None
            if before is not None:
                cache.combine(before, ignore_mismatch=False)
            write_atomically(path, bytes(cache.serialize()))
    except OSError:
        return


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path is not None else b""
    except OSError:
        return b""


def _parse(config: Any, data: bytes) -> Any:
    """The cache, or None where TensorRT refuses it."""
    try:
        return config.create_timing_cache(data)
    except (RuntimeError, TypeError, ValueError):
        return None
