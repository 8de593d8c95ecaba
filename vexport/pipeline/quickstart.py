"""The main job in one go, on real data that a dependency ships: train, fuse, export, check, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.errors import AccuracyError
from vexport.pipeline.bench import BenchOutcome, measure_latency
from vexport.pipeline.export import ExportResult, export_graph
from vexport.pipeline.fuse import FuseResult, fuse_checkpoint
from vexport.pipeline.train import TrainResult, train_recipe
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.run.accuracy import Accuracy

RECIPE = "quickstart"
FULL_SIZE = "vanillanet_9"


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart made and measured.

    Args:
        train, fuse, export: The small network's stages.
        accuracy: On the held-out images, by form: `training`, `deployed`, `ONNX`.
        full_size: The graph of VanillaNet-9 with random weights.
        bench: Latencies.
    """

    train: TrainResult
    fuse: FuseResult
    export: ExportResult
    accuracy: dict[str, Accuracy]
    full_size: ExportResult
    bench: BenchOutcome

    @property
    def forms(self) -> dict[str, Path]:
        """The small network's files by form."""
        return {
            "training": self.train.best.path,
            "deployed": self.fuse.artifact.path,
            "ONNX": self.export.artifact.path,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "train": self.train.to_json(),
            "fuse": self.fuse.to_json(),
            "export": self.export.to_json(),
            "accuracy": {form: accuracy.to_json() for form, accuracy in self.accuracy.items()},
            "full_size": self.full_size.to_json(),
            "bench": self.bench.to_json(),
        }


def quickstart(
    *,
    workspace: Workspace,
    duration_s: float = 3.0,
    force: bool = False,
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
    on_epoch: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> QuickstartResult:
    """Train a small VanillaNet on handwritten digits, deploy it, and measure it and full-size networks.

    Args:
        workspace: Where everything goes.
        duration_s: Measured time per candidate.
        force: Overwrite files that vexport did not write.
        on_step: Told what is going on, and the share that is done where it is known.
        on_epoch: Told epochs done, epochs in all, and figures.

    Raises:
        MissingDependencyError: the extra `train` is not installed.
        AccuracyError: a form answers an image otherwise than the training form.
        VexportError: see the tree in errors.py.
    """
    on_step("training on scikit-learn's digits", None)
    trained = train_recipe(RECIPE, workspace=workspace, force=force, on_progress=on_epoch)
    on_step("merging, with proof", None)
    fused = fuse_checkpoint(trained.best.path, workspace=workspace, force=force)
    on_step("exporting", None)
    exported = export_graph(fused.artifact.path, workspace=workspace, force=force)
    on_step("answering the held-out images", None)
    accuracy = _accuracies(trained.best.path, fused.artifact.path, exported.artifact.path)
    on_step(f"exporting {FULL_SIZE} with random weights", None)
    full_size = export_graph(workspace=workspace, model=FULL_SIZE, weights="random", force=force)
    paths = [trained.best.path, fused.artifact.path, exported.artifact.path, full_size.artifact.path]
    measured = measure_latency(paths, workspace=workspace, duration_s=duration_s, force=force, on_step=on_step)
    return QuickstartResult(trained, fused, exported, accuracy, full_size, measured)


def _accuracies(training: Path, deployed: Path, graph: Path) -> dict[str, Accuracy]:
    """Answers of the three forms on the held-out images, which must be the same image by image."""
    from vexport.recipe import load_recipe
    from vexport.run import open_runner
    from vexport.run.accuracy import measure_accuracy
    from vexport.train.data import held_out_arrays

    images, labels = held_out_arrays(load_recipe(RECIPE))
    found = {}
    for form, path in (("training", training), ("deployed", deployed), ("ONNX", graph)):
        with open_runner(path) as runner:
            found[form] = measure_accuracy(runner, images, labels)
    reference = found["training"].predictions
    for form, accuracy in found.items():
        differing = [i for i, (a, b) in enumerate(zip(reference, accuracy.predictions, strict=True)) if a != b]
        if differing:
            raise AccuracyError(
                f"the {form} form answers {len(differing)} of {len(reference)} images otherwise than the training form",
                details=[f"held-out images {', '.join(str(i) for i in differing[:10])}"],
                hint=f"compare them: vexport check {training} {graph}",
            )
    return found
