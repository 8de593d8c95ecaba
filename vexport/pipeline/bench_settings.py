"""What a benchmark is asked to do."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vexport.bench.clock import Clock
from vexport.bench.worker import Timeouts
from vexport.pipeline.bench_make import MAKE_S
from vexport.pipeline.bench_run import OnStep
from vexport.workspace import Workspace


@dataclass(frozen=True)
class Session:
    """A benchmark to do.

    Args:
        name: Of its folder in the workspace.
        target: The document's file.
        workspace: Where artifacts are found and made.
        clock: How each cell is measured.
        baseline: The network that ratios refer to.
        timeouts: When a cell's process counts as hung.
        make_s: When making an artifact does.
        threads: Of each cell; None leaves the backend's choice.
        own_processes: Whether each cell runs in a process of its own.
        resume: Take the groups that an interrupted benchmark of that name left.
        max_open: Cells that are held open at once at the most.
        roofline: Whether to hold what was measured against what the device could do.
        tf32: Whether FP32 cells on a GPU may round to TF32.
        engine_tf32: Whether FP32 engines that are made may.
        cuda_graph: Let engines that are made replay their launches as CUDA graphs.
        data: Images by class, for the accuracy.
        limit: How many of them.
        recipe: As resolved, for the document.
        published: Networks that are shown by their published figures alone.
        command: That was given.
        report: Folder for the report; None writes none.
        force: Overwrite files that vexport did not write.
        on_step: Told what is going on, and the share that is done where it is known.
        tell: Told what is worth a line.
    """

    name: str
    target: Path
    workspace: Workspace
    clock: Clock
    baseline: str = "resnet50"
    timeouts: Timeouts = field(default_factory=Timeouts)
    make_s: float = MAKE_S
    threads: int | None = None
    own_processes: bool = True
    resume: bool = False
    max_open: int = 64
    roofline: bool = False
    tf32: bool = True
    engine_tf32: bool = True
    cuda_graph: bool = False
    data: Path | None = None
    limit: int | None = None
    recipe: Mapping[str, Any] | None = None
    published: Sequence[str] = ()
    command: str = "vexport bench"
    report: Path | None = None
    force: bool = False
    on_step: OnStep = lambda _text, _share: None
    tell: Callable[[str], None] = lambda _line: None

    @property
    def partial(self) -> Path:
        """Where a document goes that is not complete: it takes no complete one's place."""
        return self.target.with_name(f"{self.target.stem}.partial.json")

    @property
    def again(self) -> str:
        """The command that goes on where this one stopped."""
        return self.command if "--resume" in shlex.split(self.command) else f"{self.command} --resume"
