"""torch.compile: the module as one graph of generated kernels, or a refusal; never quietly eager."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from vexport.errors import InputError
from vexport.run.pytorch import TorchRunner
from vexport.run.runner import times


class CompiledRunner(TorchRunner):
    """A module through torch.compile's Inductor, compiled anew for each batch size.

    The whole network must become one graph (`fullgraph`): where a part of it would stay eager, it is refused. Shapes
    are constants (`dynamic=False`). It is compiled in the first call of a batch size; `describe` says how long that
    took. Inductor keeps kernels on disk, so that a second process compiles faster.

    Args:
        module: Images (N, C, H, W) to logits (N, classes).
        input_size: C, H and W.
        name: For reports.
        mode: Of torch.compile: `default`, or `max-autotune-no-cudagraphs`, which tries kernels out for minutes.
        options: Of TorchRunner.

    Raises:
        InputError: as TorchRunner's.
        EngineError: the GPU fails.
    """

    how = "compiled"

    def __init__(
        self, module: nn.Module, input_size: tuple[int, int, int], *, name: str, mode: str = "default", **options: Any
    ) -> None:
        super().__init__(module, input_size, name=name, **options)
        self.mode = mode
        self.compile_s: dict[int, float] = {}
        assert self._module is not None
        self._compiled: Any = torch.compile(self._module, fullgraph=True, dynamic=False, mode=mode)

    def forward(self, images: Tensor) -> Any:
        """What the network gives; compiles it where the batch size is new.

        Raises:
            InputError: torch.compile cannot compile it here.
        """
        if len(images) in self.compile_s:
            return self._compiled(images)
        start = time.perf_counter()
        try:
            # In this process: Inductor's own would stay, one per core for each network that is held open, and in the
            # background of whatever is timed.
            with inductor_config.patch(compile_threads=1):
                logits = self._compiled(images)
        except Exception as error:
            if not _is_theirs(error):
                raise
            raise _refused(error, f"torch.compile cannot compile {self.name} for {times(images.shape)}") from error
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        self.compile_s[len(images)] = round(time.perf_counter() - start, 3)
        return logits

    def describe(self) -> dict[str, Any]:
        """As TorchRunner's, and how it was compiled."""
        compiled = {
            "mode": self.mode,
            "fullgraph": True,
            "dynamic": False,
            # By batch size: the first call, with what Inductor found on disk.
            "compile_s": {str(count): seconds for count, seconds in self.compile_s.items()},
        }
        said = super().describe()
        return said | {"compiled": compiled, "excludes": [*said["excludes"], "compilation"]}

    def close(self) -> None:
        """Let go of the module and what was compiled."""
        super().close()
        self._compiled = None


def why_no_compiler(device: str) -> str | None:
    """The reason why Inductor cannot generate kernels here; None where what it needs is there.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package 'triton', which comes with PyTorch's CUDA builds for Linux, is not installed"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler}"


def _is_theirs(error: Exception) -> bool:
    """Whether torch.compile refuses: its errors have several roots."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def _refused(error: Exception, message: str) -> InputError:
    lines = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "FailOnRecompileLimitHit":
        hint = "one process compiles only so many networks of a class: measure in several processes"
    else:
        missing = why_no_compiler("cpu")
        hint = f"install a C++ compiler: {missing}" if missing else "measure it with the backend pytorch instead"
    return InputError(message, details=[f"{type(error).__name__}: {lines[0] if lines else ''}", *lines[1:3]], hint=hint)
