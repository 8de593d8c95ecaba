"""What a worker opens: an artifact with a backend, on images of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexport.bench.worker_process import Opened
from vexport.errors import InputError

if TYPE_CHECKING:
    from vexport.run.runner import Runner

IMAGE_SEED = 0


@dataclass(frozen=True)
class OpenArtifact:
    """Opens an artifact and brings a candidate for the clock. Images are seeded noise: latency follows their shape.

    Args:
        path: A graph, an engine or a checkpoint; None for a baseline in PyTorch.
        backend: A name from `BACKENDS`; None takes the usual one of the artifact.
        batch: Images per call.
        input_size: C, H and W.
        threads: To compute with; None leaves the backend's choice.
        trust: Open an engine that vexport did not write.
        cuda_graph: Let an engine replay its launches as a CUDA graph.
        baseline: A network of `BASELINES`, with the random weights of `seed`, in place of a file.
        seed: Of those.
    """

    path: Path | None
    backend: str | None
    batch: int
    input_size: tuple[int, int, int]
    threads: int | None = None
    trust: bool = False
    cuda_graph: bool = False
    baseline: str | None = None
    seed: int = 0

    def __call__(self) -> Opened:
        """Open it.

        Raises:
            VexportError: it cannot be opened, or takes other images.
        """
        from vexport.bench.device import as_candidate

        runner = self._runner()
        self._require_shape(runner)
        images = noise(self.batch, self.input_size)
        runner(
            images
        )  # what a backend builds or compiles in its first call belongs to opening, with its longer timeout
        candidate = as_candidate(runner, images)
        return Opened(candidate, {"backend": runner.backend, "runner": runner.describe()}, runner.close)

    def _runner(self) -> Runner:
        from vexport.run import open_module, open_runner

        if self.path is not None:
            return open_runner(
                self.path,
                backend=self.backend,
                threads=self.threads,
                input_size=self.input_size,
                trust=self.trust,
                cuda_graph=self.cuda_graph,
            )
        assert self.baseline is not None, "a file or a baseline"
        from vexport.model.baselines import create_baseline
        from vexport.model.randomize import randomize_

        module = randomize_(create_baseline(self.baseline), self.input_size, self.seed)
        return open_module(
            module, self.input_size, name=self.baseline, backend=self.backend or "pytorch", threads=self.threads
        )

    def _require_shape(self, runner: Runner) -> None:
        wanted = (self.batch, *self.input_size)
        if any(side not in (None, want) for side, want in zip(runner.input_shape, wanted, strict=True)):
            from vexport.run.runner import times

            raise InputError(
                f"it takes {times(runner.input_shape)}, not {times(wanted)}", hint="measure it at the size that it has"
            )


def noise(batch: int, input_size: tuple[int, int, int]) -> Any:
    """Seeded images float32 (batch, C, H, W); by numpy, so that a worker without PyTorch stays without."""
    return np.random.default_rng(IMAGE_SEED).standard_normal((batch, *input_size), dtype=np.float32)
