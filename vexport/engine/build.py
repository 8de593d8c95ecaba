"""Graph to plan: parse, look at the types, configure, build."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vexport.engine.inspect import EngineLayer, NetworkLayer, network_layers, require_precision
from vexport.engine.int8 import Int8Plan, require_int8_network
from vexport.engine.messages import explain_failure, first_lines, heard
from vexport.engine.report import heard_layers, parse_table
from vexport.engine.runtime import TensorRT, use_polygraphy
from vexport.engine.strict import allow_tf32, constrain_types, precision_flags
from vexport.engine.timing import load_timing_cache, save_timing_cache
from vexport.errors import EngineError, InputError

Progress = Callable[[str, float | None], None]
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What is asked of an engine.

    Args:
        precision: Of the graph: `fp32`, `fp16`, `bf16` or `int8`.
        targets: Compute capabilities (80 for 8.0); none for the GPU at hand.
        min_batch, opt_batch, max_batch: The profile: what the engine takes, and what it is tuned for. What is None
            follows the others, see `batches`.
        size: Height and width, for a graph that leaves them open.
        memory_mb: Limit of the builder's workspace pool, in MiB; None leaves TensorRT's.
        level: Builder optimisation level, 0 to 5; None leaves TensorRT's.
        tf32: Whether FP32 layers may round to TF32.
        version_compatible: Whether newer versions of TensorRT shall run it.
        hardware_compatible: Whether GPUs from Ampere on shall run it.
        refit: Whether its weights can be replaced.
        strip: Whether the plan goes without its weights, which are refitted from the graph.
    """

    precision: str
    targets: tuple[int, ...] = ()
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    size: int | None = None
    memory_mb: int | None = None
    level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        least, tuned, most = self.batches
        if not 1 <= least <= tuned <= most:
            raise InputError(
                f"batches {least}, {tuned}, {most} are no profile",
                hint="give 1 <= --min-batch <= --opt-batch <= --max-batch",
            )
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"--opt-level {self.level} does not exist", hint="give 0 to 5")
        if self.size is not None and self.size < 1:
            raise InputError(f"--size {self.size} is no size", hint="give 1 or more")
        if self.memory_mb is not None and self.memory_mb < 1:
            raise InputError(f"--memory-mb {self.memory_mb} is no memory", hint="give 1 or more")

    @property
    def batches(self) -> tuple[int, int, int]:
        """Least, tuned and largest batch: 1, 1 and 8 where nothing is asked, else the nearest to it that holds."""
        asked = [batch for batch in (self.min_batch, self.opt_batch, self.max_batch) if batch is not None]
        least = self.min_batch if self.min_batch is not None else 1
        tuned = self.opt_batch if self.opt_batch is not None else least
        return least, tuned, self.max_batch if self.max_batch is not None else max(8, *asked, 1)

    def to_json(self) -> dict[str, Any]:
        least, tuned, most = self.batches
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return plain | {"min_batch": least, "opt_batch": tuned, "max_batch": most}


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine.

    Args:
        plan: Its bytes.
        layers: The network's layers and types, before TensorRT fused them.
        profile: Shapes by `min`, `opt` and `max`.
        build_s: Seconds that parsing and building took.
        built: The engine's layers, as the builder told them; none where it did not.
    """

    plan: bytes
    layers: tuple[NetworkLayer, ...]
    profile: dict[str, list[int]]
    build_s: float
    built: tuple[EngineLayer, ...] = ()


def require_options(options: BuildOptions, runtime: TensorRT) -> None:
    """Refuse what this TensorRT cannot do.

    Raises:
        EngineError: with what can.
    """
    what = f"{runtime.name} {runtime.version}"
    if options.version_compatible and not runtime.has_version_compatible:
        raise EngineError(
            f"{what} makes no version-compatible engines: it comes without the lean runtime",
            hint="leave --version-compatible out, or take --runtime tensorrt",
        )
    if options.strip and not runtime.has_strip:
        raise EngineError(f"{what} makes no stripped plans", hint="leave --strip out, or install TensorRT 10")
    if options.precision == "bf16" and not runtime.strongly_typed:
        raise EngineError(f"{what} takes no BF16 graphs", hint="build with --fp16")


def build_plan(
    graph: Path,
    options: BuildOptions,
    runtime: TensorRT,
    *,
    kept_fp32: Mapping[str, str] | None = None,
    int8: Int8Plan | None = None,
    timing_cache: Path | None = None,
    on_progress: Progress = lambda _text, _share: None,
) -> BuiltPlan:
    """Build a TensorRT engine.

    Args:
        graph: The .onnx file, in the precision asked for.
        options: What is asked.
        runtime: Which TensorRT.
        kept_fp32: Nodes that stay in FP32 on purpose, with the reason.
        int8: What a quantised graph says its nodes compute in; None asks only that there is INT8 in it.
        timing_cache: File of measured kernels, read before and merged after; None: none.
        on_progress: Told what the builder does and the share that is done.

    Raises:
        EngineError: the graph cannot be parsed or built; what TensorRT said is in the details.
        PrecisionError: a layer has not the precision asked for.
        KeyboardInterrupt: the build was cancelled, and has ended.
    """
    require_options(options, runtime)
    backend = use_polygraphy(runtime)
    started = time.perf_counter()
    job = _Job()
    try:
        with heard() as said, heard_layers(wanted=int8 is not None) as told:
            on_progress("parsing the graph", None)
            job.builder, job.network = _parse(backend, runtime, graph, said)
            layers = network_layers(job.network)
            require_precision(layers, options.precision, kept_fp32 or {})
            if int8 is not None:
                require_int8_network(layers, int8, kept_fp32 or {})
            # A Q/DQ graph says INT8 by its Q/DQ nodes; the types between them are not to be held.
            if not runtime.strongly_typed and options.precision != "int8":
                constrain_types(runtime, job.network)
            profile = _profile(job.network, options)
            job.config = _configure(backend, runtime, job, options, profile)
            monitor = _attach_monitor(runtime, job.config, on_progress)
            if runtime.has_timing_cache:
                load_timing_cache(job.config, timing_cache)
            plan = _build(backend, job, monitor, said, options)
            if runtime.has_timing_cache:
                save_timing_cache(job.config, timing_cache)
    finally:
        job.release()
    built = parse_table(told[-1]) if told else ()
    return BuiltPlan(plan, layers, profile, time.perf_counter() - started, built)


@dataclass
class _Job:
    """TensorRT's objects, in one place that lets go of them.

    The frames of an exception would keep them until the interpreter ends, and their destructors call back into Python,
    which is a crash by then.
    """

    builder: Any = None
    network: Any = None
    config: Any = None

    def release(self) -> None:
        # What was made last goes first.
        self.config = None
        self.network = None
        self.builder = None


def _parse(backend: Any, runtime: TensorRT, graph: Path, said: list[str]) -> tuple[Any, Any]:
    """The builder and the network. The parser is ours, so that its errors keep the node that they belong to."""
    from polygraphy.exception import PolygraphyException

    trt = runtime.load()
    try:
        builder, network = backend.create_network(strongly_typed=runtime.strongly_typed)
    except (PolygraphyException, TypeError, RuntimeError) as error:
        raise EngineError(
            f"{runtime.name} {runtime.version} cannot start a builder here",
            details=first_lines(said) or [str(error).splitlines()[0]],
            hint="`vexport doctor` says what this machine can do; --target with --runtime tensorrt-rtx needs no GPU",
        ) from error
    parser = trt.OnnxParser(network, backend.get_trt_logger())
    parsed = parser.parse_from_file(str(graph))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if errors or not parsed:
        details = [_describe(error) for error in errors] or first_lines(said)
        raise EngineError(
            f"{runtime.name} {runtime.version} cannot take {graph.name}",
            details=list(dict.fromkeys(details))[:8],
            hint="write the graph without this operator, or run it with ONNX Runtime",
        )
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise EngineError(
            f"{graph.name} has {network.num_inputs} inputs and {network.num_outputs} outputs",
            hint="only classifiers with one input (images) and one output (class scores) can be built",
        )
    for tensor in (network.get_input(0), network.get_output(0)):
        if str(tensor.dtype).rpartition(".")[2] != "FLOAT":
            raise EngineError(
                f"{graph.name}: {tensor.name} is {str(tensor.dtype).rpartition('.')[2].lower()}, not float32",
                hint="give a graph with FP32 input and output, as vexport writes them",
            )
    return builder, network


def _describe(error: Any) -> str:
    """One parser error: operator, node and reason."""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    where = f"node {name}" + (f" ({operator})" if operator else "")
    return f"{where}: {' '.join(error.desc().split())[:200]}" if operator or name else " ".join(error.desc().split())


def _profile(network: Any, options: BuildOptions) -> dict[str, list[int]]:
    """The shapes of the input; what the graph fixes must agree with what is asked.

    Raises:
        InputError: it does not.
    """
    shape = list(network.get_input(0).shape)
    batch, sides = shape[0], shape[2:]
    if len(shape) != 4 or shape[1] < 1:
        raise InputError(f"the graph's input {shape} is no batch of images", hint="it has 4 axes, channels fixed")
    least, tuned, most = options.batches
    if batch > 0 and (least, most) != (batch, batch):
        raise InputError(
            f"the graph's batch is fixed to {batch}",
            hint=f"give --min-batch {batch} --opt-batch {batch} --max-batch {batch}, or export it with an open batch",
        )
    if min(sides) < 1 and options.size is None:
        raise InputError("the graph leaves height and width open", hint="give --size")
    if options.size is not None and any(side > 0 and side != options.size for side in sides):
        raise InputError(f"the graph's input is fixed to {sides[0]}x{sides[1]}", hint="leave --size out")
    rest = [shape[1], *(side if side > 0 else options.size or 0 for side in sides)]
    return {name: [count, *rest] for name, count in (("min", least), ("opt", tuned), ("max", most))}


def _configure(backend: Any, runtime: TensorRT, job: _Job, options: BuildOptions, profile: dict[str, list[int]]) -> Any:
    """The builder's configuration, by Polygraphy."""
    from polygraphy.exception import PolygraphyException

    trt = runtime.load()
    shapes = backend.Profile().add(job.network.get_input(0).name, profile["min"], profile["opt"], profile["max"])
    common: dict[str, Any] = {
        "profiles": [shapes],
        "refittable": options.refit or options.strip,
        "strip_plan": options.strip,
        "version_compatible": options.version_compatible,
        "builder_optimization_level": options.level,
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
    }
    # Polygraphy tests these for truth but sets no default of its own for them.
    if options.memory_mb is not None:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.memory_mb * MEGABYTE}
    if options.hardware_compatible:
        common["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    try:
        if runtime.is_rtx:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            where: dict[str, Any] = (
                {"compute_capabilities": [divmod(target, 10) for target in options.targets]}
                if options.targets
                else {"use_gpu": True}
            )
            config = CreateConfigRTX(**where, **common)(job.builder, job.network)
        else:
            config = backend.CreateConfig(**precision_flags(runtime, options.precision), **common)(
                job.builder, job.network
            )
    except PolygraphyException as error:
        raise EngineError(
            f"{runtime.name} {runtime.version} refuses these options",
            details=[line.strip() for line in str(error).splitlines()[:2]],
            hint="leave out what it names",
        ) from error
    if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
        # 8.6: several contexts, one per thread, use one profile; later versions always allow it.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    allow_tf32(runtime, config, options.tf32)
    return config


class _Monitor:
    """How far the builder is, and whether it shall stop."""

    def __init__(self, on_progress: Progress) -> None:
        self.cancelled = False
        self._on_progress = on_progress
        self._steps: dict[str, int] = {}

    def start(self, phase: str, steps: int) -> None:
        self._steps[phase] = steps

    def step(self, phase: str, step: int) -> bool:
        total = self._steps.get(phase, 0)
        if total > 1:
            self._on_progress(f"building: {phase[:1].lower()}{phase[1:]}", min(1.0, (step + 1) / total))
        return not self.cancelled


def _attach_monitor(runtime: TensorRT, config: Any, on_progress: Progress) -> _Monitor:
    monitor = _Monitor(on_progress)
    trt = runtime.load()
    if not runtime.has_progress or not hasattr(trt, "IProgressMonitor"):
        return monitor

    base: Any = trt.IProgressMonitor

    class Bridge(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, _parent: str, steps: int) -> None:
            monitor.start(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return monitor.step(phase, step)

        def phase_finish(self, _phase: str) -> None:
            pass

    config.progress_monitor = Bridge()
    return monitor


def _build(backend: Any, job: _Job, monitor: _Monitor, said: list[str], options: BuildOptions) -> bytes:
    """Run the builder in a thread, so that an interrupt reaches us and is passed on to it."""
    from polygraphy.exception import PolygraphyException

    result: list[Any] = []
    # Not Thread.join: interrupted, it takes a running thread for a stopped one (CPython 3.11).
    done = threading.Event()

    def work() -> None:
        # None is how TensorRT says no, and Polygraphy's exception only repeats it; the reason is in what was said.
        with contextlib.ExitStack() as stack:
            stack.callback(done.set)
            stack.enter_context(contextlib.suppress(PolygraphyException))
            result.append(bytes(backend.engine_bytes_from_network((job.builder, job.network), config=job.config)))

    thread = threading.Thread(target=work, name="TensorRT builder", daemon=True)
    try:
        thread.start()
        while not done.wait(0.1):
            pass
    except KeyboardInterrupt:
        monitor.cancelled = True
        _wait_for(done)
        raise
    if not result:
        raise explain_failure(said, refittable=options.refit or options.strip)
    plan: bytes = result[0]
    return plan


def _wait_for(done: threading.Event) -> None:
    """Until the builder has stopped, however often the user interrupts: it must not outlive the interpreter."""
    while not done.is_set():
        with contextlib.suppress(KeyboardInterrupt):
            done.wait(0.1)
