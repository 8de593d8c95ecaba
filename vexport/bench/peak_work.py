"""The work that shows what a device can do: large matrix products, a convolution, a large copy, a large read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Device = Literal["cpu", "cuda"]
Array = npt.NDArray[Any]
Call = Callable[[], object]
Product = tuple[str, float, Call]  # its name, operations, the call

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
BYTES = "bytes"
_MB = 2**20
_PRODUCT_S: Mapping[Device, float] = MappingProxyType({"cpu": 0.01, "cuda": 0.002})
_LEAST_SIDE: Mapping[Device, int] = MappingProxyType({"cpu": 1024, "cuda": 1024})
LARGEST_SIDE: Mapping[Device, int] = MappingProxyType({"cpu": 4096, "cuda": 16384})
# A small product that is this slow is emulated: it is no peak of anything, and would take minutes.
_EMULATED_S = 2.0

Work = dict[str, tuple[str, float, Call]]  # name to what is counted, how much of it per call, the call


def make_products(precisions: Sequence[str], device: Device, threads: int, largest: int) -> tuple[Work, dict[str, str]]:
    """Matrix products of every precision by every library, each of a size that takes long enough.

    Args:
        precisions: Which.
        device: Where.
        threads: On a CPU; PyTorch's number is the caller's to set.
        largest: Side of the matrices at most.

    Returns:
        The calls by name, and the precisions that no library has, with what they say.
    """
    makers: list[Callable[[str, int], Product]] = [partial(_torch_product, device=device)]
    if device == "cpu":
        makers += [partial(_ort_product, threads=threads), partial(_ort_convolution, threads=threads)]
    work: Work = {}
    missing: dict[str, str] = {}
    for precision in precisions:
        reasons = []
        for make in makers:
            try:
                name, operations, call = _grow(partial(make, precision), device, largest)
            except Exception as error:  # whatever a library says of a type that it does not have
                reasons.append((str(error).strip().splitlines() or [type(error).__name__])[0][:120])
                continue
            work[name] = (precision, operations * _calls(device), call)
        if len(reasons) == len(makers):
            missing[precision] = "; ".join(dict.fromkeys(reasons))
    return work, missing


def _calls(device: Device) -> int:
    """Products per call: on a GPU several, so that waiting for it weighs little."""
    return 1 if device == "cpu" else 8


def _grow(make: Callable[[int], Product], device: Device, largest: int) -> Product:
    """Double the side until a call takes long enough that its start weighs little."""
    side = min(_LEAST_SIDE[device], largest)
    while True:
        name, operations, call = make(side)
        first = _time(call)
        if first > _EMULATED_S and device == "cuda":
            first = _time(call)  # the first of all loads the GPU's libraries
        if first > _EMULATED_S and side == _LEAST_SIDE[device]:
            raise ValueError(f"it is emulated: {first:.1f} s for a product of {side} x {side}")
        seconds = min(_time(call) for _ in range(3))
        if seconds >= _PRODUCT_S[device] * _calls(device) or side * 2 > largest:
            return name, operations, call
        side *= 2


def _time(call: Call) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _torch_product(precision: str, side: int, *, device: Device) -> Product:
    import torch

    name, operations = f"PyTorch {precision} product of {side} x {side}", 2.0 * side**3
    generator = torch.Generator().manual_seed(0)
    if precision == "int8":
        a, b = (
            torch.randint(-127, 128, (side, side), dtype=torch.int8, generator=generator).to(device) for _ in range(2)
        )
        b = b.t().contiguous().t()  # the layout that GPUs have kernels for
        return name, operations, _waiting(lambda: torch._int_mm(a, b), device)
    kinds = {"fp32": torch.float32, "tf32": torch.float32, "fp64": torch.float64}
    kind = kinds.get(precision) or {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    x, y = (torch.randn(side, side, generator=generator).to(device=device, dtype=kind) for _ in range(2))
    out = torch.empty_like(x)
    if device == "cpu":
        return name, operations, lambda: torch.mm(x, y, out=out)

    def multiply() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            torch.mm(x, y, out=out)
        finally:
            torch.set_float32_matmul_precision(before)

    return name, operations, _waiting(multiply, device)


def _waiting(call: Call, device: Device) -> Call:
    """A call that has finished its work when it returns."""
    if device == "cpu":
        return call
    import torch

    def run() -> None:
        for _ in range(_calls(device)):
            call()
        torch.cuda.synchronize()

    return run


def _ort_product(precision: str, side: int, *, threads: int) -> Product:
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    kinds = {"fp32": (TensorProto.FLOAT, np.float32), "fp64": (TensorProto.DOUBLE, np.float64)}
    if precision == "int8":
        # Unsigned by signed is what the instructions of x86 multiply.
        kind, given, operator = TensorProto.UINT8, TensorProto.INT32, "MatMulInteger"
        a: Array = rng.integers(0, 255, (side, side), dtype=np.uint8)
        b: Array = rng.integers(-127, 127, (side, side), dtype=np.int8)
    elif precision in kinds:
        kind, operator = kinds[precision][0], "MatMul"
        given = kind
        a, b = (rng.standard_normal((side, side)).astype(kinds[precision][1]) for _ in range(2))
    else:
        raise ValueError("no kernel of its own on a CPU")  # it casts to float32
    call = _session_call(helper.make_node(operator, ["a", "b"], ["y"]), (kind, a), b, given, threads)
    return f"ONNX Runtime {precision} product of {side} x {side}", 2.0 * side**3, call


def _ort_convolution(precision: str, side: int, *, threads: int) -> Product:
    """A 3x3 convolution about as large as a product: on a CPU its kernels are the faster ones, and a backend has them.

    Without padding, since kernels skip what lies outside an image.
    """
    from onnx import TensorProto, helper

    if precision != "fp32":
        raise ValueError("no kernel of its own on a CPU")
    channels = max(16, side // 4 // 16 * 16)  # whole blocks of 16
    given = max(1, round((side**3 / 9) ** 0.5 / channels))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1, channels, given + 2, given + 2)).astype(np.float32)
    weight = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    node, kind = helper.make_node("Conv", ["a", "b"], ["y"]), TensorProto.FLOAT
    name = f"ONNX Runtime fp32 convolution 3 x 3 of {channels} channels, {given} x {given}"
    return name, 2.0 * 9 * channels**2 * given**2, _session_call(node, (kind, images), weight, kind, threads)


def _session_call(node: Any, taken: tuple[int, Array], constant: Array, given: int, threads: int) -> Call:
    """One node of `a` and the constant `b`, in ONNX Runtime."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    kind, images = taken
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", kind, list(images.shape))],
        [helper.make_tensor_value_info("y", given, None)],
        [numpy_helper.from_array(constant, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": images})


def make_transfers(device: Device, size: int) -> Work:
    """A copy, which reads and writes; and a sum, which only reads, as layers do with their weights.

    Args:
        device: Where.
        size: Bytes of what is copied.
    """
    import torch

    source = torch.ones(max(size // 4, 1), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    amount, calls = source.nbytes, _calls(device)
    return {
        f"copy of {amount / 1e6:.0f} MB": (
            "bytes",
            2.0 * amount * calls,
            _waiting(lambda: target.copy_(source), device),
        ),
        f"read of {amount / 1e6:.0f} MB": (BYTES, 1.0 * amount * calls, _waiting(lambda: source.sum(), device)),
    }


def default_copy_bytes(device: Device) -> int:
    """Four times the last cache, so that little of it is there still; 64 MB at least, 1 GB on a GPU."""
    return max(4 * last_cache_bytes(device), 64 * _MB if device == "cpu" else 1024 * _MB)


def last_cache_bytes(device: Device = "cpu") -> int:
    """Size of the cache next to memory; 32 MB where the system does not tell."""
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = [32 * _MB] if not CACHES.is_dir() else []
    for entry in CACHES.glob("index*/size"):
        text = entry.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1:] in units:
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found, default=32 * _MB)
