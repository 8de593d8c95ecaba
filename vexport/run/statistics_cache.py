"""Statistics of activations from before, in a folder of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
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
from vexport.run.image_sets import DAMAGED_ARRAY
from vexport.run.thresholds import Histogram

# What is written to the cache; another number is another format.
STATISTICS_VERSION = 3
PARTS = ("largest", "mean_largest")
_DIGEST_BYTES = 32


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
        skipped: Hashes of the images that are not in them because they could not be read; None stands for those whose
            contents could not be hashed either. Their names may have changed since.
    """

    statistics: Statistics
    skipped: frozenset[str | None]


class StatisticsCache:
    """Statistics by graph, images and preprocessing. They serve every method, so the method is no part of the key.

    A file is the SHA-256 of an .npz archive, and the archive.

    Args:
        folder: Where they lie; made when something is first stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "calibration"

    def find(self, request: Mapping[str, Any]) -> Known | None:
        """What was stored for exactly this request, if anything; a damaged file counts as none."""
        try:
            content = self._path(request).read_bytes()
            told, archive = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(archive).digest() != told:
                return None
            with np.load(BytesIO(archive), allow_pickle=False) as stored:
                if json.loads(str(stored["request"])) != _canonical(request):
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
                return Known(Statistics(histograms, channels), frozenset(json.loads(str(stored["skipped"]))))
        except DAMAGED_ARRAY:
            return None

    def store(self, request: Mapping[str, Any], statistics: Statistics, skipped: Collection[str | None]) -> None:
        """Keep statistics; a folder that cannot be written costs the copy only.

        Args:
            request: What they were measured for.
            statistics: By tensor.
            skipped: See `Known`.
        """
        histograms, channels = statistics.histograms, statistics.channels
        tensors = [[name, one.width, one.largest] for name, one in histograms.items()]
        arrays = {"images": np.array(channels.images)}
        for index, (name, one) in enumerate(histograms.items()):
            arrays |= {f"counts.{index}": one.counts}
            arrays |= {f"{part}.{index}": getattr(channels, part)[name] for part in PARTS}
        told = {"request": _canonical(request), "tensors": tensors, "skipped": list(skipped)}
        texts = {key: np.array(json.dumps(value)) for key, value in told.items()}
        buffer = BytesIO()
        np.savez_compressed(buffer, **texts, **arrays)  # type: ignore[arg-type]
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            archive = buffer.getvalue()
            write_atomically(self._path(request), hashlib.sha256(archive).digest() + archive)

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(_canonical(request), sort_keys=True).encode()).hexdigest()[:32]
        return self._folder / f"{key}.statistics"


def _canonical(request: Mapping[str, Any]) -> Any:
    """As it reads back from JSON."""
    return json.loads(json.dumps({"version": STATISTICS_VERSION, "bins": BINS, **request}))
