"""The main job in one go, on real data that a dependency ships: train, fuse, export, quantise, build, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexport.engine.timing import write_atomically
from vexport.errors import AccuracyError, EngineError, MissingDependencyError
from vexport.pipeline.bench import BenchOutcome, measure_latency
from vexport.pipeline.build import BuildResult, build_engine
from vexport.pipeline.convert import ConvertResult, convert_graph
from vexport.pipeline.export import ExportResult, export_graph
from vexport.pipeline.fuse import FuseResult, fuse_checkpoint
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.quantize import QuantizeResult, quantize_graph
from vexport.pipeline.ready import Precision
from vexport.pipeline.train import TrainResult, train_recipe
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.run.accuracy import Accuracy

RECIPE = "quickstart"
FULL_SIZE = "vanillanet_9"
# Share of the images that a form may answer otherwise: in FP16 those that lie between two classes.
MAY_DIFFER = {"FP16": 0.01, "INT8": 1.0}


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart made and measured.

    Args:
        train, fuse, export: The small network's stages.
        half: The FP16 graph of the small network.
        int8: Its INT8 graph.
        accuracy: On the held-out images, by form: `training`, `deployed`, `ONNX`, `FP16`, `INT8`.
        engines: FP16 and INT8 engines of the small network, and an FP16 one of the full-size one; none where there is
            no TensorRT.
        no_engines: Why there are none.
        full_size: The graph of VanillaNet-9 with random weights.
        bench: Latencies.
    """

    train: TrainResult
    fuse: FuseResult
    export: ExportResult
    half: ConvertResult
    int8: QuantizeResult
    accuracy: dict[str, Accuracy]
    full_size: ExportResult
    engines: tuple[BuildResult, ...]
    no_engines: str | None
    bench: BenchOutcome

    @property
    def forms(self) -> dict[str, Path]:
        """The small network's files by form."""
        return {
            "training": self.train.best.path,
            "deployed": self.fuse.artifact.path,
            "ONNX": self.export.artifact.path,
            "FP16": self.half.artifact.path,
            "INT8": self.int8.artifact.path,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "train": self.train.to_json(),
            "fuse": self.fuse.to_json(),
            "export": self.export.to_json(),
            "half": self.half.to_json(),
            "int8": self.int8.to_json(),
            "accuracy": {form: accuracy.to_json() for form, accuracy in self.accuracy.items()},
            "full_size": self.full_size.to_json(),
            "engines": [engine.to_json() for engine in self.engines],
            "no_engines": self.no_engines,
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
    trained = train_recipe(RECIPE, workspace=workspace, resume=True, replace=True, force=force, on_progress=on_epoch)
    assert trained is not None, "one process trains"
    on_step("merging, with proof", None)
    fused = fuse_checkpoint(trained.best.path, workspace=workspace, force=force)
    on_step("exporting", None)
    exported = export_graph(fused.artifact.path, workspace=workspace, force=force)
    on_step("converting to FP16", None)
    half = convert_graph(
        find_graph(exported.artifact.path, workspace=workspace), "fp16", workspace=workspace, force=force
    )
    calibration, held_out = save_digits(workspace.root / "digits")
    int8 = quantize_graph(
        exported.artifact.path,
        workspace=workspace,
        calib=calibration,
        evaluate_on=held_out,
        force=force,
        on_progress=on_step,
    )
    on_step("answering the held-out images", None)
    accuracy = _accuracies(
        {
            "training": trained.best.path,
            "deployed": fused.artifact.path,
            "ONNX": exported.artifact.path,
            "FP16": half.artifact.path,
            "INT8": int8.artifact.path,
        }
    )
    on_step(f"exporting {FULL_SIZE} with random weights", None)
    full_size = export_graph(workspace=workspace, model=FULL_SIZE, weights="random", force=force)
    paths = [trained.best.path, fused.artifact.path, exported.artifact.path, full_size.artifact.path]
    engines, no_engines = _engines(exported.artifact.path, full_size.artifact.path, workspace, force, on_step)
    measured = measure_latency(paths, workspace=workspace, duration_s=duration_s, force=force, on_step=on_step)
    return QuickstartResult(trained, fused, exported, half, int8, accuracy, full_size, engines, no_engines, measured)


def _engines(
    small: Path,
    full_size: Path,
    workspace: Workspace,
    force: bool,
    on_step: Callable[[str, float | None], None],
) -> tuple[tuple[BuildResult, ...], str | None]:
    """Engines of both networks, for the GPU at hand or the A100; or why there are none."""
    wanted: tuple[tuple[Path, Precision], ...] = ((small, "fp16"), (small, "int8"), (full_size, "fp16"))
    try:
        return tuple(
            build_engine(graph, workspace=workspace, precision=precision, force=force, on_progress=on_step)
            for graph, precision in wanted
        ), None
    except (MissingDependencyError, EngineError) as error:  # a GPU that this TensorRT does not know, for one
        return (), f"{error.message}; {error.hint}"


def save_digits(folder: Path) -> tuple[Path, Path]:
    """The quickstart's images, prepared, with their labels: those it learns from, and those it holds out.

    Args:
        folder: Where `train.npz` and `held_out.npz` are written; files that hold the same already are left alone.

    Raises:
        MissingDependencyError: the extra `train` is not installed.
        WorkspaceError: the folder cannot be written.
    """
    from vexport.recipe import DigitsSection, load_recipe
    from vexport.train.digits import InMemory, open_digits
    from vexport.workspace import mapped_os_errors

    section = load_recipe(RECIPE).data
    assert isinstance(section, DigitsSection)
    data = open_digits(section)
    paths = folder / "train.npz", folder / "held_out.npz"
    for path, part in zip(paths, (data.train, data.held_out), strict=True):
        assert isinstance(part, InMemory)
        stream = BytesIO()
        np.savez(stream, images=part.images.numpy(), labels=part.labels.numpy())
        with mapped_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != stream.getvalue():
                write_atomically(path, stream.getvalue())
    return paths


def _accuracies(forms: Mapping[str, Path]) -> dict[str, Accuracy]:
    """Answers of the forms on the held-out images: the same image by image, in FP16 all but a few.

    How many right answers INT8 may lose has been decided when it was made.
    """
    from vexport.graph.inspect import read_graph
    from vexport.graph.precision import emulate_half
    from vexport.recipe import DigitsSection, load_recipe
    from vexport.run import open_runner
    from vexport.run.accuracy import measure_accuracy
    from vexport.run.ort import OrtRunner
    from vexport.train.digits import held_out_arrays

    section = load_recipe(RECIPE).data
    assert isinstance(section, DigitsSection)
    images, labels = held_out_arrays(section)
    found = {}
    for form, path in forms.items():
        # What a device with FP16 kernels answers, which ONNX Runtime's CPU run does not show.
        rounded = emulate_half(read_graph(path)).SerializeToString() if form == "FP16" else None
        with OrtRunner(rounded) if rounded else open_runner(path) as runner:
            found[form] = measure_accuracy(runner, images, labels)
    reference = found["training"].predictions
    for form, accuracy in found.items():
        differing = [i for i, (a, b) in enumerate(zip(reference, accuracy.predictions, strict=True)) if a != b]
        if len(differing) > MAY_DIFFER.get(form, 0.0) * len(reference):
            raise AccuracyError(
                f"the {form} form answers {len(differing)} of {len(reference)} images otherwise than the training form",
                details=[f"held-out images {', '.join(str(i) for i in differing[:10])}"],
                hint=f"compare them: vexport check {forms['training']} {forms[form]}",
            )
    return found
