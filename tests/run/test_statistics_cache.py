"""Statistics from before: what is found again, and what never is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from colours import colour_graph, prepared

from vexport.run import statistics_cache
from vexport.run.calibrate import ImageBatch, Statistics, collect_statistics
from vexport.run.image_sets import DAMAGED_ARRAY
from vexport.run.statistics_cache import StatisticsCache, graph_digest
from vexport.run.thresholds import Histogram

TENSORS = ("input", "relu", "pooled", "second")


def same(a: Histogram, b: Histogram) -> bool:
    return (a.width, a.largest) == (b.width, b.largest) and np.array_equal(a.counts, b.counts)


@pytest.fixture
def found() -> Statistics:
    return collect_statistics(colour_graph(), TENSORS, [ImageBatch(("a",) * 8, prepared(8))])


def test_the_cache_gives_back_what_was_stored(found: Statistics, tmp_path: Path) -> None:
    cache = StatisticsCache(tmp_path)
    request = {"graph": graph_digest(colour_graph()), "images": ["a", "b"], "preprocessing": {"crop_pct": 0.875}}
    assert cache.find(request) is None
    cache.store(request, found, {"b", None})
    known = cache.find(request)
    assert known is not None
    assert known.skipped == {"b", None}
    assert list(known.statistics.histograms) == list(TENSORS)
    assert known.statistics.channels.images == found.channels.images == 8
    for name in TENSORS:
        for part in ("largest", "mean_largest"):
            values = (getattr(one.channels, part)[name] for one in (known.statistics, found))
            np.testing.assert_array_equal(*values)
    assert all(same(known.statistics.histograms[name], found.histograms[name]) for name in TENSORS)


def test_a_cache_of_another_graph_is_never_taken(found: Statistics, tmp_path: Path) -> None:
    cache = StatisticsCache(tmp_path)
    request = {"graph": graph_digest(colour_graph()), "images": ["a", "b"], "preprocessing": {}}
    cache.store(request, found, ())
    others = (
        {"graph": graph_digest(colour_graph(spread=2.0))},
        {"images": ["a", "c"]},
        {"preprocessing": {"crop_pct": 1.0}},
    )
    for other in others:
        assert cache.find(request | other) is None
    # Not even under its name.
    (stored,) = (tmp_path / "calibration").iterdir()
    other_request = request | others[0]
    stored.rename(cache._path(other_request))
    assert cache.find(other_request) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other format"])
def test_a_damaged_cache_counts_as_none(
    found: Statistics, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, request = StatisticsCache(tmp_path), {"graph": "g"}
    cache.store(request, found, ())
    (stored,) = (tmp_path / "calibration").iterdir()
    content = stored.read_bytes()
    if damage == "other format":
        monkeypatch.setattr(statistics_cache, "STATISTICS_VERSION", 99)
    else:
        stored.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no"}[damage])
    assert cache.find(request) is None


def test_one_bit_is_enough_to_count_as_none(tmp_path: Path) -> None:
    """Wherever it is, nothing else is given back and nothing is raised."""
    found = collect_statistics(colour_graph(), ["second"], [ImageBatch(("a",), prepared(1))])
    cache, request = StatisticsCache(tmp_path), {"graph": "g"}
    cache.store(request, found, ())
    (stored,) = (tmp_path / "calibration").iterdir()
    content = stored.read_bytes()
    assert cache.find(request) is not None
    rng = np.random.default_rng(0)
    for place in (0, 31, 32, *rng.integers(0, len(content), 300)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        stored.write_bytes(flipped)
        assert cache.find(request) is None, place
    stored.write_bytes(content)
    assert cache.find(request) is not None


@pytest.mark.parametrize("error", DAMAGED_ARRAY)
def test_what_only_the_archive_raises_counts_as_none(
    found: Statistics, tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, request = StatisticsCache(tmp_path), {"graph": "g"}
    cache.store(request, found, ())

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(np, "load", fail)
    assert cache.find(request) is None


def test_a_cache_that_cannot_be_written_costs_nothing(found: Statistics, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = StatisticsCache(tmp_path / "file")
    cache.store({"graph": "g"}, found, ())
    assert cache.find({"graph": "g"}) is None


def test_the_digest_is_of_the_function() -> None:
    model = colour_graph()
    other = colour_graph(named=False)
    assert graph_digest(model) == graph_digest(other), "metadata does not change activations"
    assert graph_digest(model) != graph_digest(colour_graph(spread=2.0))
