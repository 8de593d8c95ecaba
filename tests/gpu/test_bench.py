"""The matrix on a GPU: cells in their own processes, device time beside the host's, the shipped recipe's backends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vexport.bench.page import validate
from vexport.pipeline.bench import load_recipe, measure_latency, measure_recipe
from vexport.pipeline.export import export_graph
from vexport.recipe.bench import BenchRecipe, ClockSection
from vexport.run.backends import BACKENDS, engine_backend
from vexport.workspace import Workspace

pytestmark = pytest.mark.gpu

QUICK = ClockSection(warmup_s=0.1, warmup_most_s=0.5, duration_s=0.3, least_count=10, rounds=5)


def recipe(**changes: Any) -> BenchRecipe:
    plain = {"name": "gpu", "networks": ("vanillanet_5", "resnet18"), "clock": QUICK, "roofline": False}
    return BenchRecipe(**{**plain, **changes})


@pytest.mark.parametrize("backend", ["pytorch-cuda", "pytorch-fp16"])
def test_pytorch_on_the_gpu(backend: str, tmp_path: Path) -> None:
    precision = "fp16" if backend.endswith("fp16") else "fp32"
    outcome = measure_recipe(recipe(backends=(backend,), precisions=(precision,)), workspace=Workspace(tmp_path))
    validate(outcome.document)
    (group,) = outcome.document["groups"]
    assert group["device"] == torch.cuda.get_device_name()
    for row in group["rows"]:
        assert row["error"] is None
        assert 0 < row["device_ms"]["median"] <= row["median_ms"], "a call includes copies and launches"
        assert row["published_a100_ms"] == row["published_latencies_ms"]["PyTorch"]
        assert not any("processes use the GPU" in why for why in row["unstable_because"])


def test_every_backend_of_the_paper_s_recipe_is_measured_or_says_why_not(tmp_path: Path) -> None:
    shipped = load_recipe("paper_gpu")
    outcome = measure_recipe(
        recipe(backends=shipped.backends, precisions=shipped.precisions, networks=("vanillanet_5",)),
        workspace=Workspace(tmp_path),
    )
    validate(outcome.document)
    for group in outcome.document["groups"]:
        (row,) = group["rows"]
        if BACKENDS[row["backend_name"]].why_not_here():
            assert row["error"].startswith("not run: ")
        else:
            assert row["error"] is None, row["error"]
            assert row["artifact_sha256"]


def test_out_of_memory_costs_one_cell(tmp_path: Path) -> None:
    """A batch that no GPU holds, beside one process that goes on."""
    outcome = measure_recipe(
        recipe(backends=("pytorch-cuda",), batches=(200_000, 1), networks=("resnet18",)), workspace=Workspace(tmp_path)
    )
    large, small = (group["rows"][0] for group in outcome.document["groups"])
    assert large["failure"]["kind"] == "out of memory", large["failure"]
    assert small["error"] is None


def test_an_engine_that_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    from vexport.pipeline.build import build_engine

    workspace = Workspace(tmp_path)
    graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
    engine = build_engine(graph, workspace=workspace).artifact.path
    outcome = measure_latency([engine], workspace=workspace, duration_s=0.3, own_processes=True)
    (row,) = (row for group in outcome.document["groups"] for row in group["rows"])
    assert (row["precision"], row["backend_name"], row["error"]) == ("FP16", engine_backend(engine), None)
    assert row["device_ms"]["median"] > 0


def test_rooflines_of_engines_and_of_what_has_no_layers_to_time(tmp_path: Path) -> None:
    backends = tuple(name for name in ("tensorrt", "tensorrt-rtx") if BACKENDS[name].why_not_here() is None)
    if not backends:
        pytest.skip("no TensorRT is installed")
    outcome = measure_recipe(
        recipe(backends=("pytorch-cuda", *backends), precisions=("fp32", "fp16"), roofline=True),
        workspace=Workspace(tmp_path),
    )
    validate(outcome.document)
    peaks = outcome.document["peaks"]
    assert peaks["device"] == torch.cuda.get_device_name()
    assert peaks["operations"]["tf32"]["per_s"] > 0
    for group in outcome.document["groups"]:
        for row in group["rows"]:
            found = row["roofline"]
            assert found["measured_ms"] == pytest.approx(row["device_ms"]["median"])
            assert 0 < found["efficiency"] < 1.5
            timed = [layer for layer in found["layers"] if layer["time_ms"]]
            assert bool(timed) == group["backend"].startswith("tensorrt")
            if timed:
                assert sum(layer["time_ms"] for layer in timed) > 0.5 * found["profile"]["sum_ms"]
            if group["precision"] == "FP32":
                assert any("TF32" in note for note in row["notes"])


def test_without_tf32_eager_pytorch_says_so(tmp_path: Path) -> None:
    outcome = measure_recipe(recipe(backends=("pytorch-cuda",), tf32=False), workspace=Workspace(tmp_path))
    notes = [note for group in outcome.document["groups"] for row in group["rows"] for note in row["notes"]]
    assert "pytorch-cuda: FP32 throughout, no TF32" in notes


def test_this_process_holds_nothing_on_the_gpu(tmp_path: Path) -> None:
    """Artifacts are made and questions asked elsewhere, so that what is measured has the GPU alone."""
    script = tmp_path / "bench.py"
    script.write_text(ALONE.format(out=tmp_path / "out"))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["0"], done.stderr


ALONE = """
if __name__ == "__main__":
    from pathlib import Path
    from vexport.pipeline.bench import measure_recipe
    from vexport.recipe.bench import BenchRecipe, ClockSection
    from vexport.workspace import Workspace

    clock = ClockSection(warmup_s=0.1, warmup_most_s=0.2, duration_s=0.1, least_count=5, rounds=2)
    recipe = BenchRecipe(name="gpu", networks=("resnet18",), backends=("pytorch-cuda", "tensorrt-rtx"), clock=clock,
                         precisions=("fp32", "fp16"), roofline=False)
    measure_recipe(recipe, workspace=Workspace(Path("{out}")))
    import torch
    print(torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0)
"""
