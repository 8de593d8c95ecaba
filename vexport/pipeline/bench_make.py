"""Artifacts and questions that a benchmark must not die of: made and asked in a process beside it.

The process is kept as long as it finds what is there already, and is ended once it has made something: its memory, and
its context on the GPU, are then free for what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vexport.errors import VexportError
from vexport.pipeline.bench_alone import Apart
from vexport.pipeline.bench_artifacts import Artifacts, Made, OnStep
from vexport.pipeline.bench_count import count_network
from vexport.workspace import Workspace

if TYPE_CHECKING:
    from vexport.engine.runtime import RuntimeName
    from vexport.run.backends import Kind

MAKE_S, ASK_S = 3600.0, 180.0  # until they count as hung


@dataclass(frozen=True)
class Done:
    """What was made.

    Args:
        made: What a cell opens.
        counted: Parameters, GMACs and depth.
        anew: Whether anything was not there already.
    """

    made: Made
    counted: Mapping[str, Any]
    anew: bool


@dataclass(frozen=True)
class MakeArtifact:
    """Finds or makes what a cell opens, in whatever process it is called.

    Args:
        root: Of the workspace.
        kind: What it is.
        network: Variant or baseline.
        precision: Of the artifact; a checkpoint is FP32.
        input_size: C, H and W.
        batch: Of an engine.
        runtime: Of an engine.
        tf32: Whether an engine's FP32 layers may round to TF32.
    """

    root: Path
    kind: Kind
    network: str
    precision: str
    input_size: tuple[int, int, int]
    batch: int | None = None
    runtime: str | None = None
    tf32: bool = True

    def __call__(self, on_step: OnStep = lambda _text, _share: None) -> Done:
        """Do it.

        Raises:
            VexportError: it cannot be made.
        """
        artifacts, size = Artifacts(Workspace(self.root), on_step), self.input_size[1]
        if self.kind == "engine":
            assert self.batch is not None, "an engine is built for a batch"
            runtime = cast("RuntimeName", self.runtime)
            made = artifacts.engine(self.network, self.precision, size, self.batch, runtime=runtime, tf32=self.tf32)
        elif self.kind == "graph":
            made = artifacts.graph(self.network, self.precision, size)
        else:
            made = artifacts.module(self.network, size)
        return Done(made, count_network(self.network, self.input_size), artifacts.made_anew)

    def before(self) -> MakeArtifact | None:
        """What it is made from, where that is an artifact too."""
        if self.kind == "checkpoint" or (self.kind == "graph" and self.precision == "fp32"):
            return None
        precision = "int8" if self.kind == "engine" and self.precision == "int8" else "fp32"
        return MakeArtifact(self.root, "graph", self.network, precision, self.input_size)


@dataclass(frozen=True)
class AskBackend:
    """Tries what a backend needs: libraries of providers, the GPU. None where all is there."""

    name: str

    def __call__(self) -> str | None:
        from vexport.run.backends import BACKENDS

        return BACKENDS[self.name].why_not_here()


@dataclass(frozen=True)
class AskGpu:
    """Computes a little on the GPU; the reason where that fails."""

    def __call__(self) -> str | None:
        from vexport.run.cuda import why_gpu_fails

        return why_gpu_fails()


class Maker:
    """Makes each artifact once, and asks.

    Args:
        workspace: Where trained artifacts are looked for, and below which others are made.
        on_step: Told what is going on; of what is made in a process of its own only that it is being made.
        own_process: Whether to do it in a process beside this one.
        timeout_s: When making something counts as hung.
        tf32: Whether FP32 engines may round to TF32.
    """

    def __init__(
        self,
        workspace: Workspace,
        on_step: OnStep = lambda _text, _share: None,
        *,
        own_process: bool = True,
        timeout_s: float = MAKE_S,
        tf32: bool = True,
    ) -> None:
        self.root, self.on_step, self.timeout_s, self.tf32 = workspace.root, on_step, timeout_s, tf32
        self.progress = ""  # how many are made, for `on_step`
        self._apart = Apart("artifacts", own_process=own_process)
        self._known: dict[MakeArtifact, Done | VexportError] = {}

    def make(self, request: MakeArtifact, what: str) -> Done:
        """Make something.

        Args:
            request: What.
            what: For people: `resnet50, tensorrt FP16`.

        Raises:
            VexportError: it cannot be made, or its process crashed or hung.
        """
        if request not in self._known:
            self._known[request] = self._make(request, what)
        known = self._known[request]
        if isinstance(known, VexportError):
            raise known
        return known

    def _make(self, request: MakeArtifact, what: str) -> Done | VexportError:
        try:
            before = request.before()
            if before is not None:
                self.make(before, what)  # what fails or hangs there is not tried again for each that needs it
            self.on_step(f"making {what}{self.progress}", None)
            done: Done = self._apart.call(f"making {what}", self._work(request), self.timeout_s)
        except VexportError as error:
            return error
        if done.anew:
            self._apart.close()
        return done

    def ask(self, question: AskBackend | AskGpu, what: str) -> str | None:
        """An answer, or why there is none; its process ends with it, since libraries hold on to the GPU.

        Args:
            question: What to ask.
            what: For people.
        """
        with Apart("a question", own_process=self._apart.own_process) as apart:
            try:
                reason: str | None = apart.call(what, question, ASK_S)
            except VexportError as error:
                return error.message
        return reason

    def close(self) -> None:
        """End the process."""
        self._apart.close()

    def _work(self, request: MakeArtifact) -> Callable[[], Done]:
        """Here it tells its steps; from another process there is no way to."""
        return request if self._apart.own_process else lambda: request(self.on_step)
