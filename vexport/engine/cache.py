"""Engines built before, by what was asked: the same request is answered without building.

The key is a hash of the graph's hash, the options, the versions and the device. Plans lie in the user's cache folder,
hard-linked from the workspace where the file system allows it, so that they take no room twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexport.engine.timing import write_atomically
from vexport.workspace import hash_file

LIMIT_BYTES = 8 << 30


def default_folder() -> Path:
    """`$VEXPORT_CACHE`, else `vexport` in the user's cache folder."""
    named = os.environ.get("VEXPORT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vexport"


@dataclass(frozen=True)
class CachedPlan:
    """A plan built before.

    Args:
        path: Its file in the cache.
        facts: What was recorded of its build.
    """

    path: Path
    facts: dict[str, Any]


class EngineCache:
    """Plans by key; the least recently used go when there are too many bytes.

    Args:
        folder: Where they lie; made when something is first stored.
        limit_bytes: Of all plans together.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder / "engines"
        self._limit_bytes = limit_bytes

    @contextmanager
    def locked(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let one process at a time build what has this key: the second then finds it built.

        A cache folder that cannot be written costs the lock, not the engine. The lock's file stays: whoever deletes it
        takes it from under a process that waits.

        Args:
            key: Of the request.
            on_wait: Called once where another process builds it.
        """
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._folder / f"{key}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    on_wait()
                    lock.acquire()
                stack.callback(lock.release)
            yield

    def find(self, key: str) -> CachedPlan | None:
        """The plan with this key, if it is there and unchanged."""
        plan, record = self._paths(key)
        try:
            told = json.loads(record.read_text(encoding="utf-8"))
            if hash_file(plan) != told["sha256"]:
                return None
            with contextlib.suppress(OSError):  # a shared cache that may only be read
                os.utime(plan)
            return CachedPlan(plan, dict(told["facts"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def store(self, key: str, plan: Path, sha256: str, facts: Mapping[str, Any]) -> None:
        """Keep a plan. The record is written last, so a plan without one does not count.

        A full disk or a folder that cannot be written costs the copy, not the engine.
        """
        target, record = self._paths(key)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            record.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(plan)
            except OSError:  # another file system
                try:
                    shutil.copyfile(plan, target)
                except OSError:
                    target.unlink(missing_ok=True)
                    raise
            write_atomically(record, json.dumps({"sha256": sha256, "facts": dict(facts)}).encode())
            self._prune(keep=target)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self._folder / f"{key}.plan", self._folder / f"{key}.json"

    def _prune(self, keep: Path) -> None:
        plans = sorted(self._folder.glob("*.plan"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for plan in plans:
            total += plan.stat().st_size
            if total > self._limit_bytes and plan != keep:
                plan.with_suffix(".json").unlink(missing_ok=True)
                plan.unlink(missing_ok=True)


def cache_key(**request: Any) -> str:
    """The key of a request: everything that decides what is built."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]
