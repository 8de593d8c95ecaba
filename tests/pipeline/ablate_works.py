"""What the processes of a run do in tests, by the run's name. Apart from the tests: a process imports this alone."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vexport.artifacts import Manifest
from vexport.errors import InputError, TrainingError
from vexport.pipeline.ablate_kept import source_of, write_figures
from vexport.pipeline.ablate_run import Job, Tell
from vexport.recipe import load_recipe
from vexport.workspace import manifest_path

TOP1 = {"n0": 50.0, "n1": 60.0}


def figures(job: Job, **more: Any) -> dict[str, Any]:
    top1 = TOP1.get(job.run, 40.0) + job.seed
    deployed = {"graph": "x.onnx", "top1": top1 - 0.5, "graph_max_rel": 1e-7} if job.export else None
    return {
        "top1": top1,
        "deployed": deployed,
        "device": "cpu",
        "threads": job.threads,
        "omp": os.environ["OMP_NUM_THREADS"],
        "anew": job.anew,
        "settings": list(job.settings),
        **more,
    }


def by_name(job: Job, tell: Tell) -> dict[str, Any]:
    tell(("epoch", 0, 2, {"step": 1.0, "steps": 2.0, "eta_s": 1.0}))
    print("about to begin", flush=True)
    if job.run == "exit":
        os._exit(3)
    if job.run == "abort":
        os.abort()
    if job.run == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.run == "hang":
        time.sleep(600)
    if job.run.startswith("same"):
        raise InputError("the images are odd", details=["all of them"], hint="even them out")
    if job.run == "memory":
        raise MemoryError
    if job.run == "diverge":
        raise TrainingError("the loss of step 7 is not finite", details=["kept: nothing"], hint="lower the rate")
    if job.run == "bug":
        raise ZeroDivisionError("one by none")
    if job.run == "undeployed":
        return figures(job, deployed={"error": "the graph disagrees with the network"})
    return figures(job)


def with_checkpoint(job: Job, tell: Tell) -> dict[str, Any]:
    """Trains where there is no checkpoint of the recipe, or where it should be anew, and keeps the figures as `do_run`.

    `during.txt` beside the folders of the runs names a run that is killed, and when: in training or after it.
    """
    during = job.folder.parent / "during.txt"
    named = during.read_text().split() if during.exists() else []
    when = named[1] if named[:1] == [job.name] else ""
    last, count = job.folder / f"{job.name}.last.ckpt", job.folder / "trained.txt"
    tell(("epoch", 0, 2, {}))
    if when == "training":
        os.kill(os.getpid(), signal.SIGKILL)
    plan = load_recipe(job.base, job.settings)
    if job.anew or not last.exists():
        times = int(count.read_text()) + 1 if count.exists() else 1
        count.write_text(str(times))
        last.write_text(job.name)
        options = {"recipe_hash": job.recipe_hash, "source": source_of(plan)}
        manifest = Manifest("checkpoint", f"{job.name} {times}", 1, None, options, {"epoch": 2})
        manifest_path(last).write_text(json.dumps(manifest.to_json()))
    sha256 = json.loads(manifest_path(last).read_text())["sha256"]
    found = figures(job, checkpoint_sha256=sha256, source=source_of(plan))
    write_figures(job.folder, {**found, "deployed": None, "recipe_hash": job.recipe_hash})
    tell(("step", "merging and exporting"))
    if when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def with_threads(job: Job, tell: Tell) -> dict[str, Any]:
    """Computes with torch, imported by now at the earliest."""
    early = [name for name in ("numpy", "torch") if name in sys.modules]
    import torch

    return figures(job, early=early, torch_threads=torch.get_num_threads())


def busy(job: Job, tell: Tell) -> dict[str, Any]:
    """Tells nothing for seven seconds, and computes all the while: after its epochs, after them in a step, or in one.

    In an epoch it goes on for longer than any test waits, as what hangs on a GPU does.
    """
    tell(("epoch", 2 if job.run == "trained" else 0, 2, {}))
    if job.run == "exporting":
        tell(("step", "merging and exporting"))
    until = time.monotonic() + (600 if job.run == "in an epoch" else 7)
    while time.monotonic() < until:
        sum(range(10_000))
    return figures(job)


def validating(job: Job, tell: Tell) -> dict[str, Any]:
    """Tells for seven seconds that an epoch goes on, and never anything new."""
    until = time.monotonic() + 7
    while time.monotonic() < until:
        tell(("epoch", 0, 2, {"step": 2.0, "steps": 2.0, "eta_s": 1.0}))
        time.sleep(0.5)
    return figures(job)


def by_epochs(job: Job, tell: Tell) -> dict[str, Any]:
    """Tells how its epochs ended, and gives time to look."""
    for epoch in (1, 2):
        tell(("epoch", epoch, 2, {"top1": 30.0 + epoch, "eta_s": 2.0 - epoch}))
        time.sleep(1.5)
    return figures(job)


def stubborn(job: Job, tell: Tell) -> dict[str, Any]:
    """Does not stop when it is asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(("step", str(os.getpid())))
    time.sleep(600)
    return figures(job)


def obedient(job: Job, tell: Tell) -> dict[str, Any]:
    """Leaves a trace of how it stopped."""
    try:
        tell(("step", str(os.getpid())))
        time.sleep(600)
    except KeyboardInterrupt:
        Path(job.folder / "stopped.json").write_text(json.dumps("stopped"))
        raise
    return figures(job)
