"""What each step of quantisation gives: as it is, and on the same networks made hostile.

    python tests/benchmarks/int8_steps.py --digits 0 1 2
    python tests/benchmarks/int8_steps.py --calib cifar10/train --eval cifar10/val run0.onnx run1.onnx run2.onnx

Digits are trained here by the recipe `quickstart`, one network per seed; others are given as FP32 graphs. Hostile is
the same function with the channels between neighbouring convolutions rescaled at random, so that they spread over 1e4.
Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vexport.errors import AccuracyError
from vexport.graph.blocks import find_pairs
from vexport.graph.equalize import equalize
from vexport.graph.precision import lift_constants
from vexport.pipeline.calibration import QuantizeOptions
from vexport.pipeline.quantize import quantize_graph
from vexport.workspace import Workspace

SPREAD = 1e4
# Steps by what they begin with, so that networks that chose different thresholds stand in one row.
ROWS = (
    ("FP32", "FP32"),
    ("FP16", "FP16"),
    ("INT8, per-tensor, min-max", "INT8, one scale per weight, min-max"),
    ("INT8, per-channel, min-max", "INT8, one scale per channel, min-max"),
    ("+ equalisation", "+ equalisation, best thresholds"),
    ("+ bias correction", "+ bias correction"),
    ("written", "what is written"),
)


def train_digits(seed: int, folder: Path) -> tuple[Path, Path, Path]:
    """The quickstart's network of a seed, as an FP32 graph, with its images to calibrate on and to count on."""
    from vexport.pipeline.export import export_graph
    from vexport.pipeline.train import train_recipe
    from vexport.recipe import DigitsSection, load_recipe
    from vexport.train.digits import InMemory, held_out_arrays, open_digits

    workspace = Workspace(folder)
    trained = train_recipe("quickstart", workspace=workspace, overrides=[f"seed={seed}"])
    assert trained is not None
    graph = export_graph(trained.best.path, workspace=workspace).artifact.path
    section = load_recipe("quickstart").data
    assert isinstance(section, DigitsSection)
    images, labels = held_out_arrays(section)
    np.savez(folder / "held_out.npz", images=images, labels=labels)
    training = open_digits(section).train
    assert isinstance(training, InMemory)
    np.save(folder / "calibration.npy", training.images.numpy())
    return graph, folder / "calibration.npy", folder / "held_out.npz"


def make_hostile(graph: Path, seed: int) -> Path:
    """The same function, its channels spread over `SPREAD`."""
    model = lift_constants(onnx.load(graph))
    rng = np.random.default_rng(seed)
    half = np.log(SPREAD) / 2
    scales = {pair.key: np.exp(rng.uniform(-half, half, pair.channels)) for pair in find_pairs(model)}
    hostile = graph.with_name(f"{graph.stem}.hostile.onnx")
    onnx.save(equalize(model, scales), hostile)
    return hostile


def measure(graph: Path, calib: Path, evaluate_on: Path, folder: Path) -> list[dict[str, Any]]:
    made = quantize_graph(
        graph,
        workspace=Workspace(folder),
        calib=calib,
        options=QuantizeOptions(steps=True, max_drop=100),
        evaluate_on=evaluate_on,
        output=folder / f"{graph.stem}.int8.onnx",
    )
    steps: list[dict[str, Any]] = made.artifact.facts["steps"]
    return steps


def measure_mixed(graph: Path, calib: Path, evaluate_on: Path, folder: Path) -> str:
    """What is left out, and the accuracy, where channels may not be rescaled and half a point may be lost."""
    try:
        facts = quantize_graph(
            graph,
            workspace=Workspace(folder),
            calib=calib,
            options=QuantizeOptions(equalize=False),
            evaluate_on=evaluate_on,
            output=folder / f"{graph.stem}.mixed.onnx",
        ).artifact.facts
    except AccuracyError:
        return "refused"
    quantised = sum(layer["quantised"] for layer in facts["layers"])
    gate = facts["gate"]
    return (
        f"{gate['top1_percent_int8']:.2f} ({gate['drop_points']:.2f}), {quantised} of {len(facts['layers'])} layers, "
        f"{facts['int8_share_of_macs']:.0%} of the work"
    )


def show(title: str, runs: list[list[dict[str, Any]]]) -> None:
    """A table: a row per step, and for each network its accuracy and what that is below FP32's."""
    first = runs[0][1]["gate"]
    print(f"\n**{title}**, top-1 % of {first['images']} images (drop in points)\n")
    print(f"| step | {' | '.join(f'network {index}' for index in range(len(runs)))} | size |")
    print(f"|---|{'---:|' * (len(runs) + 1)}")
    for start, label in ROWS:
        cells = []
        for steps in runs:
            step = next((one for one in reversed(steps) if one["step"].startswith(start)), None)
            if step is None:
                cells.append("-")
            elif step["gate"] is None:
                cells.append(f"{steps[1]['gate']['top1_percent_fp32']:.2f}")
            else:
                cells.append(f"{step['gate']['top1_percent_int8']:.2f} ({step['gate']['drop_points']:.2f})")
        size = next((one["size_bytes"] for one in reversed(runs[0]) if one["step"].startswith(start)), 0)
        print(f"| {label} | {' | '.join(cells)} | {size / 1000:.0f} kB |")
    for index, steps in enumerate(runs):
        print(f"\nnetwork {index} {steps[-1]['step']}", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="*", type=Path)
    parser.add_argument("--digits", nargs="*", type=int, default=[], metavar="SEED")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--eval", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        networks = [(graph, given.calib, given.eval) for graph in given.graphs]
        for seed in given.digits:
            folder = Path(scratch) / f"digits-{seed}"
            folder.mkdir()
            networks.append(train_digits(seed, folder))
        plain, hostile, mixed = [], [], []
        for index, (graph, calib, evaluate_on) in enumerate(networks):
            folder = Path(scratch) / f"int8-{index}"
            folder.mkdir()
            own = folder / "network.onnx"
            onnx.save(onnx.load(graph), own)
            plain.append(measure(own, calib, evaluate_on, folder))
            spread = make_hostile(own, index)
            hostile.append(measure(spread, calib, evaluate_on, folder))
            mixed.append(measure_mixed(spread, calib, evaluate_on, folder))
        show("As it is", plain)
        show("Channels spread over 1e4", hostile)
        print("\n**Spread, not equalised, the fewest layers left in floating point**\n")
        for index, words in enumerate(mixed):
            print(f"- network {index}: {words} in INT8")


if __name__ == "__main__":
    main()
