"""What the processes of a run do in tests, by the run's name. Apart from the tests: a process imports this alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from vexport.errors import TrainingError
from vexport.pipeline.ablate_run import Job, Tell

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
    if job.run == "memory":
        raise MemoryError
    if job.run == "diverge":
        raise TrainingError("the loss of step 7 is not finite", details=["kept: nothing"], hint="lower the rate")
    if job.run == "bug":
        raise ZeroDivisionError("one by none")
    if job.run == "undeployed":
        return figures(job, deployed={"error": "the graph disagrees with the network"})
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
