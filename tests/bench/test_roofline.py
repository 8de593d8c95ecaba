"""Bounds by hand, what binds, verdicts in words, and the device's peaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.graph.graphs import Draft, qdq, resnet50, two_layers, vanillanet
from vexport.bench.clock import Clock
from vexport.bench.layer_times import KernelTime, LayerTimes
from vexport.bench.peak import PeakRates, Rate, measure_peaks
from vexport.bench.peak_work import last_cache_bytes, make_products
from vexport.bench.roofline import NetworkRoofline, make_roofline, verdict
from vexport.errors import InputError
from vexport.graph.fused import count_fused

QUICK = Clock(warmup_s=0, duration_s=0.01, least_count=2, rounds=2)


def peaks(flops: float = 1e9, bandwidth: float = 1e9, **others: float) -> PeakRates:
    rates = {"fp32": flops, **others}
    return PeakRates(
        "a device", 2, {name: Rate(name, (rate,)) for name, rate in rates.items()}, Rate("copy", (bandwidth,))
    )


def times(**layers_ms: float) -> LayerTimes:
    kernels = tuple(KernelTime(f"{name}_nchwc", "Conv", ms, (name,)) for name, ms in layers_ms.items())
    return LayerTimes("a profiler", 3, kernels, sum(layers_ms.values()), sum(layers_ms.values()) + 0.1)


def test_bounds_by_hand() -> None:
    cost = count_fused(two_layers(), batch=2)
    found = make_roofline("two", cost, peaks(flops=2e9, bandwidth=0.5e9))
    for layer in found.layers:
        assert layer.compute_ms == pytest.approx(2 * layer.layer.macs / 2e9 * 1e3)
        assert layer.memory_ms == pytest.approx(layer.layer.bytes_moved / 0.5e9 * 1e3)
        assert layer.bound_ms == max(layer.compute_ms, layer.memory_ms)
    a, pool, b = found.layers
    assert (a.binds, pool.binds, b.binds) == ("compute", "memory", "memory")
    assert (a.ridge, pool.ridge) == (4.0, 0.0)
    assert a.intensity == pytest.approx(2 * 2 * 1024 * 27 / (4 * (16 * 27 + 16 + 2 * 192 + 2 * 1024)))
    assert (a.intensity > a.ridge, b.intensity > b.ridge) == (True, False)
    assert found.bound_ms == pytest.approx(a.compute_ms + pool.memory_ms + b.memory_ms)
    assert found.compute_ms == pytest.approx(a.compute_ms + b.compute_ms)
    assert found.resident_bound_ms == pytest.approx(max(found.compute_ms, cost.resident_bytes / 0.5e9 * 1e3))
    assert found.resident_bound_ms <= found.bound_ms


@pytest.mark.parametrize("model", [two_layers(), resnet50(), vanillanet((512, 1024, 2048, 4096), (2, 2, 2))])
@pytest.mark.parametrize("rate", [1e9, 1e11, 1e14])
def test_the_resident_bound_is_never_the_larger(model: onnx.ModelProto, rate: float) -> None:
    found = make_roofline("a network", count_fused(model), peaks(rate, 1e10))
    assert 0 < found.resident_bound_ms <= found.bound_ms * (1 + 1e-9)
    assert found.binds == ("compute" if rate == 1e9 else "memory" if rate == 1e14 else found.binds)
    # A device that takes exactly the bound of each layer is as efficient as can be.
    given = LayerTimes(
        "exact", 1, tuple(KernelTime(x.layer.name, "", x.bound_ms, (x.layer.name,)) for x in found.layers), 1
    )
    exact = make_roofline("a network", found.cost, found.peaks, measured_ms=found.bound_ms, times=given)
    assert exact.efficiency == pytest.approx(1)
    assert all(layer.efficiency == pytest.approx(1) and layer.lost_ms == 0 for layer in exact.layers if layer.bound_ms)


def test_batches_move_the_balance_towards_arithmetic() -> None:
    """Weights are read once, however many images there are."""
    model = vanillanet((512, 1024, 2048, 4096), (2, 2, 2))
    one, many = (make_roofline("v", count_fused(model, batch=n), peaks(1e14, 1e12)) for n in (1, 64))
    assert one.binds == "memory"
    assert many.intensity > 1.5 * one.intensity
    assert many.bound_ms < 64 * one.bound_ms


def test_times_go_to_the_layers_that_kernels_belong_to() -> None:
    cost = count_fused(two_layers())
    two_kernels = LayerTimes(
        "p",
        1,
        (
            KernelTime("a_fused", "Conv", 1.0, ("a",)),
            KernelTime("a.relu", "Relu", 0.5, ("a.relu",)),
            KernelTime("y", "Flatten", 0.25, ("y",)),
            KernelTime("Reorder", "Reorder", 9.0),
            KernelTime("else", "Conv", 7.0, ("somebody else's",)),
        ),
        17.75,
    )
    found = make_roofline("two", cost, peaks(), measured_ms=3.0, times=two_kernels)
    assert [layer.time_ms for layer in found.layers] == [1.5, None, 0.25]
    assert found.layers[1].efficiency is None
    assert found.layers[0].efficiency == pytest.approx(found.layers[0].bound_ms / 1.5)
    assert [layer.layer.name for layer in found.top(2)] == ["a", "b"]
    assert found.worst is found.layers[0]
    assert sum(kernel.ms for kernel in two_kernels.unassigned) == 9.0


def test_a_kernel_of_several_layers_needs_them_to_be_one() -> None:
    fused = LayerTimes("p", 1, (KernelTime("a + pool", "", 2.0, ("a", "pool")),), 2.0)
    found = make_roofline("two", count_fused(two_layers(), together=fused.together), peaks(), times=fused)
    assert [(layer.layer.name, layer.time_ms) for layer in found.layers] == [("a", 2.0), ("b", None)]


def test_8_bits_have_their_own_peak_and_bytes() -> None:
    slow = make_roofline("q", count_fused(qdq()), peaks(1e9, 1e12, int8=1e8))
    fast = make_roofline("q", count_fused(qdq()), peaks(1e9, 1e12, int8=4e9))
    # A layer in INT8 may be computed in FP32, where that is faster.
    assert slow.compute_ms == pytest.approx(4 * fast.compute_ms)
    with pytest.raises(InputError, match="in int8 was not measured"):
        make_roofline("q", count_fused(qdq()), peaks())
    lacking = PeakRates("d", 1, {"fp32": Rate("a", (1e9,))}, Rate("b", (1e9,)), missing={"int8": "no kernel"})
    assert make_roofline("q", count_fused(qdq()), lacking).compute_ms == pytest.approx(slow.compute_ms)


def test_fp32_may_be_multiplied_in_tf32() -> None:
    cost, device = count_fused(two_layers()), peaks(1e9, 1e12, tf32=8e9)
    plain, fast = (make_roofline("n", cost, device, tf32=tf32) for tf32 in ("nowhere", "everywhere"))
    assert plain.compute_ms == pytest.approx(8 * fast.compute_ms)
    with pytest.raises(InputError, match="in tf32 was not measured"):
        make_roofline("n", cost, peaks(), tf32="everywhere")


def test_tf32_of_convolutions_is_none_of_matrix_products() -> None:
    """PyTorch's default on a GPU."""
    cost, device = count_fused(resnet50()), peaks(1e9, 1e12, tf32=8e9)
    found = make_roofline("n", cost, device, tf32="convolutions")
    rates = {one.layer.operator: one.layer.flops / one.compute_ms * 1e3 for one in found.layers if one.layer.macs}
    assert rates == {"Conv": pytest.approx(8e9), "Gemm": pytest.approx(1e9)}
    found = make_roofline("n", cost, device, tf32="matrix products")
    rates = {one.layer.operator: one.layer.flops / one.compute_ms * 1e3 for one in found.layers if one.layer.macs}
    assert rates == {"Conv": pytest.approx(1e9), "Gemm": pytest.approx(8e9)}


def roofline(measured_ms: float | None, layers: LayerTimes | None = None, **rates: float) -> NetworkRoofline:
    return make_roofline(
        "VanillaNet-X", count_fused(two_layers()), peaks(**rates), measured_ms=measured_ms, times=layers
    )


def test_verdicts() -> None:
    bound = roofline(None).bound_ms
    assert verdict(roofline(None)).endswith(f"the bound is {bound:.3g} ms (compute); it was not timed.")
    half = verdict(roofline(2 * bound, times(a=bound * 1.5, b=bound / 2)))
    assert half.startswith(
        f"VanillaNet-X on a device: {2 * bound:.3g} ms, the bound is {bound:.3g} ms (compute): 50% of"
    )
    assert "the worst layer is a (Conv)" in half
    # Bytes through memory would take longer than it took: a cache holds what lies between the layers.
    memory: Mapping[str, float] = {"flops": 1e12, "bandwidth": 1e6}
    between = roofline(None, **memory)
    middle = (between.bound_ms + between.resident_bound_ms) / 2
    cached = verdict(roofline(middle, **memory))
    assert "caches hold what lies between them" in cached
    assert f"{between.resident_bound_ms / middle:.0%} of what the device could do" in cached
    assert "measured too low" in verdict(roofline(between.resident_bound_ms / 2, **memory))


def test_a_verdict_says_what_it_rests_on() -> None:
    draft = Draft(["n", 3, 8, 8])
    odd = draft.add("Odd", [draft.conv("x", "a", 3, 4)], "y", domain="mine")
    unsteady = PeakRates("d", 1, {"fp32": Rate("a", (1e9, 2e9, 1.5e9))}, Rate("b", (1e9, 1e9, 1e9)))
    found = make_roofline("n", count_fused(draft.model(odd)), unsteady, measured_ms=1.0)
    assert "of 1 layers only the bytes are counted" in verdict(found)
    assert "peaks varied by 67%" in verdict(found)
    assert found.to_json()["memory_only"] == ["y (Odd)"]
    assert found.compute_ms == pytest.approx(2 * 4 * 64 * 3 / 2e9 * 1e3)  # the fastest round is the peak


def test_everything_is_plain_json() -> None:
    found = json.loads(json.dumps(roofline(1.0, times(a=0.5, b=0.1)).to_json(), allow_nan=False))
    assert found["efficiency"] == pytest.approx(found["bound_ms"] / 1.0)
    assert found["profile"]["run_ms"] == pytest.approx(0.7)
    assert [layer["name"] for layer in found["layers"]] == ["a", "pool", "b"]
    assert found["peaks"]["operations"]["fp32"]["per_s"] == 1e9
    assert found["flops"] == sum(layer["flops"] for layer in found["layers"])
    assert found["layer_bytes"] == sum(layer["bytes_moved"] for layer in found["layers"])


def test_peaks_of_this_machine() -> None:
    before = torch.get_num_threads()
    found = measure_peaks(("fp32",), threads=1, clock=QUICK, copy_bytes=2**20, largest_side=128)
    rate = found.operations["fp32"]
    assert found.threads == 1
    assert found.device
    assert 1e6 < rate.per_s < 1e14
    assert 1e6 < found.bandwidth.per_s < 1e13
    assert rate.per_s == max(rate.values) >= rate.median_per_s
    assert len(rate.values) == QUICK.rounds
    # Of every kind the fastest way is the peak, and the others are told.
    ways = [rate.how, *(one.how for one in found.slower if "fp32" in one.how)]
    assert sorted(ways) == [
        "ONNX Runtime fp32 convolution 3 x 3 of 32 channels, 15 x 15",
        "ONNX Runtime fp32 product of 128 x 128",
        "PyTorch fp32 product of 128 x 128",
    ]
    assert all(one.per_s <= rate.per_s for one in found.slower if "fp32" in one.how)
    assert found.ridge("fp32") == pytest.approx(rate.per_s / found.bandwidth.per_s)
    assert torch.get_num_threads() == before
    json.dumps(found.to_json(), allow_nan=False)


def test_rates_are_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two libraries and a copy of known amounts and durations."""
    now = [0]

    def takes(ms: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + int(ms * 1e6))

    def fails() -> None:
        raise RuntimeError("no such kernel")

    products = {"fast": ("fp32", 4e6, takes(1)), "slow": ("fp32", 4e6, takes(4)), "broken": ("int8", 1.0, fails)}
    monkeypatch.setattr("vexport.bench.peak.make_products", lambda *_: (products, {}))
    monkeypatch.setattr("vexport.bench.peak.make_transfers", lambda *_: {"copy": ("bytes", 6e6, takes(2))})
    clock = Clock(warmup_s=0.01, duration_s=0.1, least_count=2, rounds=2, now_ns=lambda: now[0])
    found = measure_peaks(("int8",), clock=clock)
    assert (found.operations["fp32"].how, found.operations["fp32"].per_s) == ("fast", pytest.approx(4e9))
    assert found.bandwidth.per_s == pytest.approx(3e9)
    assert [(one.how, one.per_s) for one in found.slower] == [("slow", pytest.approx(1e9))]
    assert found.missing == {"int8": "it failed while it was timed"}
    assert found.rate("int8").how == "fast"
    assert found.unsteady is None


def test_8_bit_and_16_bit_products_are_of_the_right_size() -> None:
    work, missing = make_products(["int8", "bf16"], "cpu", 1, 64)
    assert missing == {}
    assert {amount for _, amount, _ in work.values()} == {2.0 * 64**3}
    product = work["ONNX Runtime int8 product of 64 x 64"][2]
    (answer,) = product()  # type: ignore[misc]
    assert (answer.shape, answer.dtype) == ((64, 64), np.int32)


def test_the_convolution_is_of_the_size_that_is_counted() -> None:
    work, _ = make_products(["fp32"], "cpu", 1, 128)
    name = "ONNX Runtime fp32 convolution 3 x 3 of 32 channels, 15 x 15"
    (answer,) = work[name][2]()  # type: ignore[misc]
    assert answer.shape == (1, 32, 15, 15)
    assert work[name][1] == 2 * answer.size * 32 * 9
    assert work[name][1] == pytest.approx(2 * 128**3, rel=0.02)


def test_the_first_product_on_a_gpu_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads libraries; a product that stays slow is emulated."""
    from vexport.bench import peak_work

    def grown(*taken_s: float) -> str:
        left = list(taken_s)
        monkeypatch.setattr(peak_work, "_time", lambda _: left.pop(0) if len(left) > 1 else left[0])
        return peak_work._grow(lambda side: (f"{side}", 1.0, lambda: None), "cuda", 1024)[0]

    assert grown(5.0, 0.02) == "1024"
    with pytest.raises(ValueError, match="it is emulated: 3\\.0 s"):
        grown(5.0, 3.0)


def test_a_roofline_of_the_whole_network_leaves_its_layers_out() -> None:
    from dataclasses import replace

    whole = roofline(1.0)
    brief = replace(whole, detailed=False).to_json()
    assert brief.pop("layers") == []
    assert brief == {key: value for key, value in whole.to_json().items() if key != "layers"}


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no peak is known in int3"):
        measure_peaks(("int3",))
    with pytest.raises(InputError, match="no peak is known in tf32"):
        measure_peaks(("tf32",), device="cpu")
    with pytest.raises(InputError, match="0 threads"):
        measure_peaks(threads=0)


def test_the_last_cache_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, size in enumerate(["32K", "1024K", "36M", "junk"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr("vexport.bench.peak_work.CACHES", tmp_path)
    assert last_cache_bytes() == 36 * 2**20
    monkeypatch.setattr("vexport.bench.peak_work.CACHES", tmp_path / "nothing")
    assert last_cache_bytes() == 32 * 2**20


def test_a_disturbed_loser_makes_the_peaks_doubtful() -> None:
    """Another program may be why it lost."""
    steady, shaken = Rate("one library", (1e9, 1e9)), Rate("another", (0.2e9, 0.9e9))
    at_rest = PeakRates("a device", 2, {"fp32": steady}, steady)
    assert at_rest.unsteady is None
    disturbed = PeakRates("a device", 2, {"fp32": steady}, steady, (shaken,))
    assert disturbed.unsteady == pytest.approx(0.7 / 0.55)


@pytest.mark.gpu
def test_peaks_of_the_gpu() -> None:
    found = measure_peaks(("fp32", "tf32", "fp16", "bf16", "int8"), device="cuda")
    assert found.threads is None
    assert found.operations["fp16"].per_s > 2 * found.operations["fp32"].per_s
    assert found.operations["tf32"].per_s > found.operations["fp32"].per_s
    assert found.bandwidth.per_s > 1e11
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("resnet50", 4.1), ("swin_tiny", 4.5)])
def test_exported_baselines_cost_what_is_published(name: str, published: float) -> None:
    import onnx_ir

    from vexport.graph.export import export_module
    from vexport.model.baselines import create_baseline
    from vexport.model.build import count_cost

    model = onnx_ir.to_proto(export_module(create_baseline(name), (3, 224, 224), batch=1))
    cost = count_fused(model)
    assert cost.macs / 1e9 == pytest.approx(published, abs=0.05)
    assert cost.unknown == ()
    with torch.device("meta"):
        meta = create_baseline(name)
    assert cost.macs / 1e9 == pytest.approx(count_cost(meta, (3, 224, 224)).gmacs, rel=1e-3)
