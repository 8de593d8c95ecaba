"""TensorRT engines: preallocated buffers, an execution context per thread, CUDA graphs on request.

Polygraphy's runner allocates per call and knows no CUDA graphs; memory, streams and graphs are PyTorch's here, which is
installed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch

from vexport.engine.plan import open_plan
from vexport.engine.refit import refit_engine, require_parent_graph
from vexport.engine.runtime import TensorRT
from vexport.errors import EngineError, InputError
from vexport.run.cuda import DEVICE_EXCLUDES, DEVICE_INCLUDES, Lane, Lanes, mapped_gpu_errors, prepared
from vexport.run.runner import CALL_EXCLUDES, CALL_INCLUDES, Array, require_images, require_logits, times

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
)


class EngineRunner:
    """A deserialised TensorRT engine of a classifier.

    Several threads may call it at once: each gets a context, a stream and buffers of its own.

    Args:
        engine: TensorRT's ICudaEngine.
        runtime: The TensorRT that it belongs to.
        name: For reports.
        precision: `fp16` and so on, for reports.
        cuda_graph: Record the launches of a batch size once and replay them.

    Raises:
        EngineError: it is not a classifier with one input and one output, or its tensors are of another type.
    """

    def __init__(
        self, engine: Any, runtime: TensorRT, *, name: str, precision: str = "", cuda_graph: bool = False
    ) -> None:
        self.name, self.runtime, self.precision, self.cuda_graph = name, runtime, precision, cuda_graph
        self.backend = " ".join(
            part for part in (runtime.name, precision.upper(), "with CUDA graph" if cuda_graph else "") if part
        )
        self.engine: Any = engine
        trt = runtime.load()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        outputs = [one for one in names if one not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise EngineError(
                f"{name} has {len(inputs)} inputs and {len(outputs)} outputs",
                hint="only classifiers with one input (images) and one output (class scores) can be run",
            )
        self.input, self.output = inputs[0], outputs[0]
        least, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(self.input, 0))
        self.batch_range: tuple[int, int] = (least[0], most[0])
        self.input_shape: tuple[int | None, ...] = (most[0] if least[0] == most[0] else None, *most[1:])
        self.dtypes = {one: _dtype(engine, one) for one in names}
        self._lanes: Lanes[EngineLane] = Lanes(lambda _: EngineLane(self), exact=False)

    def __call__(self, images: Array) -> Array:
        """Logits float32 (N, classes) of images float32 (N, C, H, W).

        Raises:
            InputError: the images are not what the engine takes, N is outside its profile, or the runner is closed.
            EngineError: TensorRT fails.
        """
        self._require_images(images)
        with mapped_gpu_errors(self.name):
            return require_logits(self._lanes.get(len(images)).run(images), len(images), self.name)

    def prepare(self, images: Array) -> EngineLane:
        """See `vexport.run.runner.prepare`."""
        self._require_images(images)
        with mapped_gpu_errors(self.name):
            return prepared(EngineLane(self, len(images)), images)

    def _require_images(self, images: Array) -> None:
        if self.engine is None:
            raise InputError(f"{self.name} is closed", hint="open it again")
        require_images(images, self.input_shape)
        least, most = self.batch_range
        if not least <= len(images) <= most:
            raise InputError(
                f"{len(images)} images are outside the engine's profile of {least} to {most}",
                hint="split them, or build with another --min-batch and --max-batch",
            )

    def describe(self) -> dict[str, Any]:
        """Version, precision, profile and device, and what a call covers."""
        return {
            "name": self.name,
            "backend": self.backend,
            "precision": self.precision,
            "input_shape": list(self.input_shape),
            "batch_range": list(self.batch_range),
            "device": torch.cuda.get_device_name(),
            "cuda_graph": self.cuda_graph,
            "versions": {self.runtime.name: self.runtime.version},
            "includes": list(CALL_INCLUDES),
            "excludes": list(CALL_EXCLUDES),
            "device_call": {
                "input": f"{str(self.dtypes[self.input]).removeprefix('torch.')} contiguous (NCHW)",
                "includes": list(DEVICE_INCLUDES),
                "excludes": list(DEVICE_EXCLUDES),
            },
        }

    def report(self) -> str:
        """What the engine says of its layers, as JSON."""
        inspector = self.engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.runtime.load().LayerInformationFormat.JSON))

    def close(self) -> None:
        """Let go of the engine, its contexts and its memory."""
        self._lanes.clear()
        self.engine = None

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineLane(Lane):
    """What one thread needs: an execution context, and stream and buffers for the largest batch.

    Args:
        runner: Whose engine.
        most: The largest batch; None takes the profile's.
    """

    def __init__(self, runner: EngineRunner, most: int | None = None) -> None:
        self._runner = runner
        most = most or runner.batch_range[1]
        shape = (most, *(side or 0 for side in runner.input_shape[1:]))
        # TensorRT for RTX records graphs by itself, once its kernels are compiled.
        recorded = runner.cuda_graph and not runner.runtime.is_rtx
        super().__init__(runner.name, shape, runner.dtypes[runner.input], cuda_graph=recorded)
        self._context = _create_context(runner)
        if self._context is None:
            raise EngineError(f"{runner.name}: no execution context", hint="free memory on the GPU")
        self._set_shape(most)
        answer = tuple(self._context.get_tensor_shape(runner.output))
        if len(answer) != 2 or min(answer) < 1:
            raise EngineError(
                f"{runner.name} answers with {times(answer)}", hint="only classifiers (images, classes) can be run"
            )
        self._logits = torch.empty(answer, dtype=runner.dtypes[runner.output], device="cuda")
        self._context.set_tensor_address(runner.input, self._in.data_ptr())
        self._context.set_tensor_address(runner.output, self._logits.data_ptr())

    def set_count(self, count: int) -> None:
        """Take so many images from now on, at most the largest batch."""
        if count != self._count:
            self._set_shape(count)
        super().set_count(count)

    def enqueue(self) -> torch.Tensor:
        """Launch the engine in PyTorch's current stream."""
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"TensorRT failed on {self.name}", hint="run it again, then build it again")
        return self._logits

    def _set_shape(self, count: int) -> None:
        sides = [side or 0 for side in self._runner.input_shape[1:]]
        if not self._context.set_input_shape(self._runner.input, (count, *sides)):
            raise EngineError(f"{self.name} refuses a batch of {count}", hint="`vexport inspect` shows its profile")


def _create_context(runner: EngineRunner) -> Any:
    if not (runner.runtime.is_rtx and runner.cuda_graph):
        return runner.engine.create_execution_context()
    config = runner.engine.create_runtime_config()
    config.cuda_graph_strategy = runner.runtime.load().CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return runner.engine.create_execution_context(config)


def _dtype(engine: Any, tensor: str) -> torch.dtype:
    kind = str(engine.get_tensor_dtype(tensor)).rpartition(".")[2]
    if kind not in _DTYPES:
        raise EngineError(f"the tensor {tensor} is {kind}", hint="only floating-point inputs and outputs can be run")
    return _DTYPES[kind]


def open_engine(
    path: Path, *, trust: bool = False, cuda_graph: bool = False, graphs: Sequence[Path] = ()
) -> EngineRunner:
    """Open a plan file. A stripped one takes its weights from its graph, which must lie beside it.

    Args:
        path: The plan; its manifest lies beside it.
        trust: The user vouches for a plan that vexport does not know.
        cuda_graph: See EngineRunner.
        graphs: Where the graph of a stripped plan may be, besides beside it.

    Raises:
        EngineError: it is not trusted, cannot run here, or is no classifier.
    """
    engine, runtime, manifest = open_plan(path, trust=trust)
    if manifest is not None and manifest.facts.get("stripped"):
        refit_engine(engine, runtime, require_parent_graph(path, manifest, graphs))
    precision = str(manifest.facts["precision"]) if manifest else ""
    return EngineRunner(engine, runtime, name=path.stem, precision=precision, cuda_graph=cuda_graph)
