"""The caches: whole or not there, one builder at a time, and never in the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vexport.engine.cache import EngineCache, cache_key
from vexport.engine.timing import load_timing_cache, save_timing_cache, write_atomically
from vexport.workspace import hash_file


def plan(folder: Path, content: bytes, name: str = "a.engine") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_what_was_stored_is_found(tmp_path: Path) -> None:
    cache, path = EngineCache(tmp_path / "cache"), plan(tmp_path, b"plan")
    assert cache.find("key") is None
    cache.store("key", path, hash_file(path), {"build_s": 1})
    found = cache.find("key")
    assert found is not None
    assert (found.path.read_bytes(), found.facts) == (b"plan", {"build_s": 1})
    path.unlink()
    assert cache.find("key") is not None


def test_altered_and_halves_are_not_found(tmp_path: Path) -> None:
    cache, path = EngineCache(tmp_path / "cache"), plan(tmp_path, b"plan")
    cache.store("key", path, hash_file(path), {})
    path.write_bytes(b"nalp")  # the same file, where it could be linked
    (tmp_path / "cache" / "engines" / "key.plan").write_bytes(b"nalp")
    assert cache.find("key") is None
    cache.store("key", path, hash_file(path), {})
    (tmp_path / "cache" / "engines" / "key.json").write_text("{")
    assert cache.find("key") is None


def test_the_oldest_go(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache", limit_bytes=25)
    for index in range(4):
        path = plan(tmp_path, bytes([index]) * 10, f"{index}.engine")
        cache.store(str(index), path, hash_file(path), {})
        time.sleep(0.02)
    assert [cache.find(str(index)) is not None for index in range(4)] == [False, False, True, True]


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    cache, path = EngineCache(tmp_path / "cache"), plan(tmp_path, b"plan")
    with cache.locked("key"):
        cache.store("key", path, hash_file(path), {})
    assert cache.find("key") is None


def test_a_store_that_fails_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    cache, path = EngineCache(tmp_path / "cache"), plan(tmp_path, b"plan")
    monkeypatch.setattr("vexport.engine.cache.write_atomically", full)
    cache.store("key", path, hash_file(path), {})
    assert cache.find("key") is None


def test_one_builds_while_the_other_waits(tmp_path: Path) -> None:
    cache, events = EngineCache(tmp_path / "cache"), []

    def build(name: str) -> None:
        with cache.locked("key"):
            events.append(f"{name} begins")
            time.sleep(0.1)
            events.append(f"{name} ends")

    threads = [threading.Thread(target=build, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event[0] for event in events] in (list("aabb"), list("bbaa"))


def test_the_key_depends_on_everything() -> None:
    request = {"parent": "a", "options": {"level": 3}, "versions": {"polygraphy": "1"}}
    others = [{**request, name: "other"} for name in request]
    assert len({cache_key(**one) for one in (request, *others)}) == 4
    assert cache_key(**request) == cache_key(**dict(reversed(request.items())))


class Timings:
    """What a TensorRT timing cache does, with sets of numbers."""

    def __init__(self, values: set[int]) -> None:
        self.values = values

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        self.values |= other.values
        return True

    def serialize(self) -> bytes:
        return b"timings:" + bytes(sorted(self.values))


class Config:
    def __init__(self, *measured: int) -> None:
        self.cache = Timings(set(measured))

    def create_timing_cache(self, data: bytes) -> Timings | None:
        if data and not data.startswith(b"timings:"):
            return None
        return Timings(set(data.removeprefix(b"timings:")))

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Timings:
        return self.cache


def test_timings_are_merged_by_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "timing" / "x.cache"
    threads = [threading.Thread(target=save_timing_cache, args=(Config(n), path)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    config = Config()
    assert load_timing_cache(config, path)
    assert config.cache.values == set(range(1, 9))


def test_damaged_timings_are_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    path.write_bytes(b"half a ca")
    config = Config(3)
    assert not load_timing_cache(config, path)
    assert config.cache.values == set()
    save_timing_cache(Config(4), path)
    assert path.read_bytes() == b"timings:\x04"


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plan(tmp_path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vexport.engine.timing.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert (path.read_bytes(), sorted(p.name for p in tmp_path.iterdir())) == (b"old", ["a.engine"])


def test_who_waits_is_told(tmp_path: Path) -> None:
    waited: list[str] = []
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with EngineCache(tmp_path).locked("key"):
            held.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)

    def told() -> None:
        waited.append("waiting")
        go.set()

    with EngineCache(tmp_path).locked("key", told):
        assert waited == ["waiting"]
    thread.join()
    with EngineCache(tmp_path).locked("key", lambda: waited.append("again")):
        pass
    assert waited == ["waiting"]
