"""One run of an ablation: train to the last epoch, merge, export, and answer the held-out images with the graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.bench.environment import cpu_name
from vexport.engine.timing import write_atomically
from vexport.errors import VexportError
from vexport.pipeline.ablate_kept import RECIPE, STREAMED, read_figures, write_figures
from vexport.pipeline.epochs import describe_epoch
from vexport.recipe import DigitsSection, Recipe, load_recipe
from vexport.recipe.ablation import run_name
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.artifacts import Checkpoint

# Told while a run goes on: ("epoch", epochs done, epochs in all, figures) or ("step", what is going on).
Tell = Callable[[tuple[Any, ...]], None]
# How a training went, which a later call that finds it done cannot tell.
OF_TRAINING = ("train_s", "resumed_from", "damaged", "device", "cpu", "threads")


@dataclass(frozen=True)
class Job:
    """A run to do.

    Args:
        run: Its name in the ablation recipe.
        seed: Of it.
        folder: Its own.
        base: The training recipe's file.
        settings: What it sets there, as `section.field=value`.
        recipe_hash: Of the training recipe that this gives.
        threads: To compute with.
        export: Whether to merge, export and evaluate the graph.
        anew: Train anew whatever there is.
    """

    run: str
    seed: int
    folder: Path
    base: Path
    settings: tuple[str, ...]
    recipe_hash: str
    threads: int = 1
    export: bool = True
    anew: bool = False

    @property
    def name(self) -> str:
        return run_name(self.run, self.seed)


def do_run(job: Job, tell: Tell) -> dict[str, Any]:
    """Do a run; one that an interrupt stopped goes on after its last epoch.

    Standard output, a file of the run, gets a line per epoch and what training has to say.

    Args:
        job: The run.
        tell: Told how far it is.

    Returns:
        Its figures, as plain values. `top1` is that of the averaged weights after the last epoch, in per cent.

    Raises:
        VexportError: it cannot be trained. What goes wrong after the training stands in the figures.
    """
    import torch

    from vexport.pipeline.train import train_recipe

    torch.set_num_threads(job.threads)
    plan = load_recipe(job.base, job.settings)
    write_atomically(job.folder / RECIPE, (json.dumps(plan.to_json(), indent=2) + "\n").encode())
    before = read_figures(job.folder, plan.name, job.recipe_hash) or {}
    notes: list[str] = []

    def on_epoch(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        if "top1" in figures:
            print(describe_epoch(epoch, epochs, figures), flush=True)
        tell(("epoch", epoch, epochs, dict(figures)))

    def note(line: str) -> None:
        print(line, flush=True)
        notes.append(line)

    trained = train_recipe(
        job.base,
        workspace=Workspace(job.folder),
        overrides=job.settings,
        resume=not job.anew,
        force=job.anew,
        on_progress=on_epoch,
        tell=note,
    )
    assert trained is not None, "one process trains"
    last = trained.last
    logs = sorted((job.folder / f"{plan.name}.log").glob("run-*"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Any] = {
        "top1": last.facts["top1"],
        "correct": last.facts["correct"],
        "images": last.facts["total"],
        "top1_without_average": last.facts["top1_model"],
        "epochs": last.facts["epoch"],
        "checkpoint": str(last.path),
        "checkpoint_sha256": last.sha256,
        "log": str(logs[-1]) if logs else None,
        "source": last.manifest.options.get("source"),
        "train_s": round(trained.seconds, 1),
        "resumed_from": trained.resumed_from,
        "damaged": list(trained.damaged),
        "versions": last.manifest.versions,
        "device": _device(plan),
        "cpu": cpu_name(),
        "threads": job.threads,
        "notes": [line.removeprefix("note: ") for line in notes if line.startswith("note: ")],
        "deployed": None,
    }
    if trained.up_to_date:
        if not before:
            found["notes"].append("was trained before: for how long and on which device is not recorded")
        found |= {field: before.get(field) for field in OF_TRAINING}
        found["notes"] = list(dict.fromkeys([*before.get("notes", ()), *found["notes"]]))
    # Whatever becomes of the graph, and of this process.
    write_figures(job.folder, {**found, "recipe_hash": job.recipe_hash, "folder": str(job.folder)})
    if job.export:
        try:
            found["deployed"] = _deploy(job, plan, last, tell)
        except VexportError as error:
            found["deployed"] = {"error": "; ".join([error.message, *error.details])}
    return found


def _deploy(job: Job, plan: Recipe, last: Checkpoint, tell: Tell) -> dict[str, Any]:
    """The plain graph of the averaged weights after the last epoch, with how near it is and how often it is right.

    Raises:
        VexportError: it cannot be merged or exported, or disagrees; or the images cannot be read.
    """
    from vexport.pipeline.export import export_graph

    tell(("step", "merging and exporting"))
    exported = export_graph(last.path, workspace=Workspace(job.folder), weights_from="ema", force=job.anew)
    graph = exported.artifact
    merge = exported.fused.artifact.manifest.parity if exported.fused else ()
    tell(("step", "answering the held-out images"))
    answers = _count_right(graph.path, plan, job.threads)
    right, images = answers or (None, None)
    return {
        "graph": str(graph.path),
        "graph_sha256": graph.sha256,
        "size_bytes": graph.manifest.size_bytes,
        "parameters": graph.facts.get("parameters"),
        "versions": graph.manifest.versions,
        # Of the graph beside the deployed network, and of that beside the training form.
        "graph_max_rel": max((entry["max_rel"] for entry in graph.manifest.parity), default=None),
        "merge_max_rel": max((entry["stored_float32"]["error"] for entry in merge), default=None),
        "correct": right,
        "images": images,
        "top1": 100 * answers[0] / answers[1] if answers and answers[1] else None,
    }


def _count_right(graph: Path, plan: Recipe, threads: int) -> tuple[int, int] | None:
    """Right answers of a graph on the held-out images, and how many those are; None where only training reads them."""
    if isinstance(plan.data, DigitsSection):
        from vexport.run import open_runner
        from vexport.run.accuracy import measure_accuracy
        from vexport.train.digits import held_out_arrays

        with open_runner(graph, threads=threads) as runner:
            digits = measure_accuracy(runner, *held_out_arrays(plan.data))
        return digits.correct, digits.images
    from vexport.pipeline.evaluate import evaluate

    assert plan.data.source is not None, "it was trained on it"
    folder = Path(plan.data.source).expanduser() / plan.data.held_out_split
    if plan.data.source.partition("/")[0] in STREAMED or not folder.is_dir():
        return None
    score = evaluate(graph, folder, threads=threads, max_damaged=plan.data.max_damaged).subject.score
    return score.right, score.images


def _device(plan: Recipe) -> str:
    """What a recipe's network is trained on here."""
    import torch

    if plan.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name()
