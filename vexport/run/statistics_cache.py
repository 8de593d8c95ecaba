"""Statistics of activations from before, in a folder of files."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vexport.engine.timing import write_atomically
from vexport.run.calibrate import BINS, Statistics
from vexport.run.channel_ranges import ChannelRanges
from vexport.run.thresholds import Histogram

# What is written to the cache; another number is another format.
STATISTICS_VERSION = 2
PARTS = ("largest", "mean_largest")


def graph_digest(model: onnx.ModelProto) -> str:
    """A hash of a graph with its weights, whatever its metadata says."""
    plain = onnx.ModelProto()
    plain.graph.CopyFrom(model.graph)
    plain.opset_import.extend(model.opset_import)
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True)
class Known:
    """Statistics from before.

    Args:
        statistics: By tensor.
        skipped: Images that could not be read, each with the reason.
    """

    statistics: Statistics
    skipped: dict[str, str]


class StatisticsCache:
    """Statistics by graph, images and preprocessing. They serve every method, so the method is no part of the key.

    Args:
        folder: Where they lie; made when something is first stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "calibration"

    def find(self, request: Mapping[str, Any]) -> Known | None:
        """What was stored for exactly this request, if anything; a damaged file counts as none."""
        try:
            with np.load(self._path(request), allow_pickle=False) as stored:
                told = json.loads(str(stored["request"]))
                if told != _canonical(request):
                    return None
                rows = json.loads(str(stored["tensors"]))
                histograms = {
                    name: Histogram(stored[f"counts.{index}"], float(width), float(largest))
                    for index, (name, width, largest) in enumerate(rows)
                }
                largest, means = (
                    {name: stored[f"{part}.{index}"] for index, (name, *_) in enumerate(rows)} for part in PARTS
                )
                channels = ChannelRanges(largest, means, int(stored["images"]))
                return Known(Statistics(histograms, channels), dict(json.loads(str(stored["skipped"]))))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def store(self, request: Mapping[str, Any], statistics: Statistics, skipped: Mapping[str, str]) -> None:
        """Keep statistics; a folder that cannot be written costs the copy only."""
        histograms, channels = statistics.histograms, statistics.channels
        tensors = [[name, one.width, one.largest] for name, one in histograms.items()]
        arrays = {"images": np.array(channels.images)}
        for index, (name, one) in enumerate(histograms.items()):
            arrays |= {f"counts.{index}": one.counts}
            arrays |= {f"{part}.{index}": getattr(channels, part)[name] for part in PARTS}
        told = {"request": _canonical(request), "tensors": tensors, "skipped": dict(skipped)}
        texts = {key: np.array(json.dumps(value)) for key, value in told.items()}
        buffer = BytesIO()
        np.savez_compressed(buffer, **texts, **arrays)  # type: ignore[arg-type]
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(request), buffer.getvalue())

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(_canonical(request), sort_keys=True).encode()).hexdigest()[:32]
        return self._folder / f"{key}.npz"


def _canonical(request: Mapping[str, Any]) -> Any:
    """As it reads back from JSON."""
    return json.loads(json.dumps({"version": STATISTICS_VERSION, "bins": BINS, **request}))
