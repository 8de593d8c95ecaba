"""Tiny benchmarks: graphs of two convolutions in place of networks, and a clock in a hurry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vexport.bench.peak import PeakRates, Rate
from vexport.recipe.bench import BenchRecipe, ClockSection
from vexport.workspace import Workspace

SIZE = 32
QUICK = ClockSection(warmup_s=0.0, warmup_most_s=0.0, duration_s=0.05, least_count=5, rounds=5)


def tiny_graph(path: Path, channels: int = 4) -> Path:
    """Two convolutions, a pool and a row of scores; batch, height and width are open."""
    rng = np.random.default_rng(channels)
    shapes = {"w1": (channels, 3, 3, 3), "w2": (10, channels, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s, dtype=np.float32), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], "conv1"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@dataclass(frozen=True)
class FixedPeaks:
    """In place of measuring, which takes a while."""

    precisions: tuple[str, ...]
    threads: int | None = None
    device: str = "cpu"

    def __call__(self) -> PeakRates:
        return PeakRates("Example", 1, {name: Rate(name, (1e11,)) for name in self.precisions}, Rate("copy", (1e10,)))


def recipe(**changes: Any) -> BenchRecipe:
    plain = {"name": "tiny", "networks": ("vanillanet_9", "resnet50"), "sizes": (SIZE,), "clock": QUICK}
    return BenchRecipe(**{**plain, "roofline": False, **changes})


def read(out: Workspace, name: str = "tiny", *, partial: bool = False) -> dict[str, Any]:
    file = out.root / "bench" / name / ("bench.partial.json" if partial else "bench.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def groups_of(out: Workspace) -> list[Path]:
    return sorted((out.root / "bench" / "tiny").glob("group-*.json"))


def folder_of_images(root: Path) -> Path:
    """One image of each of ten classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(10):
        folder = root / str(label)
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / "a.png")
    return root
