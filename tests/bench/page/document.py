"""A benchmark document that looks like a real one. Every figure in it is invented, and it says so."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from vexport.bench.clock import Samples, ratio

# name, label, family, depth, top-1, published A100 ms, invented ms at FP32 and INT8, parameters, GMACs
NETWORKS = (
    ("resnet50", "ResNet-50", "ResNet", 54, 79.8, 7.64, 31.0, 16.5, 25.6e6, 4.1),
    ("vanillanet_5", "VanillaNet-5", "VanillaNet", 6, 72.49, 1.61, 38.2, 20.1, 15.5e6, 5.2),
    ("vanillanet_6", "VanillaNet-6", "VanillaNet", 7, 76.36, 2.01, 44.9, 23.0, 32.5e6, 6.0),
    ("vanillanet_9", "VanillaNet-9", "VanillaNet", 10, 79.87, 2.91, 62.1, 15.1, 41.4e6, 8.6),
    ("vanillanet_13", "VanillaNet-13", "VanillaNet", 14, 82.05, 4.26, 84.7, 43.2, 58.6e6, 11.9),
    ("swin_tiny", "Swin-T", "Swin", 55, 81.18, 10.51, 84.1, 71.0, 28.3e6, 4.5),
    ("swin_small", "Swin-S", "Swin", 103, 83.21, 20.25, 158.0, 131.0, 49.6e6, 8.7),
)
# As in the paper: A100 at batch 1, TensorRT FP32 and FP16.
TENSORRT_MS = {
    "resnet50": (0.80, 0.54), "vanillanet_5": (0.33, 0.27), "vanillanet_6": (0.40, 0.33), "vanillanet_9": (0.58, 0.49),
    "vanillanet_13": (0.82, 0.67), "swin_tiny": (1.41, 0.98),
}  # fmt: skip
PEAK = {"fp32": 310e9, "int8": 900e9}
BANDWIDTH = 21e9


def invented_samples(ms: float, *, seed: int, rounds: int = 12, calls: int = 40, noise: float = 0.02) -> Samples:
    """Rounds of calls around a duration, skewed to the slow side, with a few spikes."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(rounds):
        base = ms * (1 + rng.normal(0, 0.004)) * (1 + rng.gamma(1.5, noise / 2, calls))
        base[rng.random(calls) < 0.01] *= 1 + rng.random() * 0.8
        parts.append(tuple(int(value * 1e6) for value in base))
    return Samples("", tuple(parts))


def invented_roofline(ms: float, depth: int, gmacs: float, precision: str, seed: int) -> dict[str, Any]:
    """Layers that share the network's work and time unevenly."""
    rng = np.random.default_rng(seed)
    shares, lasts = rng.dirichlet(np.full(depth, 2.0)), rng.dirichlet(np.full(depth, 2.0))
    layers, peak, size = [], PEAK[precision], 4 if precision == "fp32" else 1
    for index, (share, last) in enumerate(zip(shares, lasts, strict=True)):
        flops, moved = float(2e9 * gmacs * share), float(size * 2e6 * (0.2 + 3 * rng.random()))
        compute, memory = flops / peak * 1e3, moved / BANDWIDTH * 1e3
        time_ms = max(compute, memory) * 1.15 + ms * float(last) * 0.3
        layers.append(
            {
                "name": f"stages.{index}.conv", "operator": "Conv", "precision": precision, "flops": flops,
                "bytes_moved": moved, "intensity": flops / moved, "ridge": peak / BANDWIDTH, "compute_ms": compute,
                "memory_ms": memory, "bound_ms": max(compute, memory), "time_ms": time_ms,
                "binds": "compute" if compute >= memory else "memory", "efficiency": max(compute, memory) / time_ms,
            }
        )  # fmt: skip
    flops, moved = sum(one["flops"] for one in layers), sum(one["bytes_moved"] for one in layers)
    bound, compute = sum(one["bound_ms"] for one in layers), sum(one["compute_ms"] for one in layers)
    return {
        "flops": flops, "layer_bytes": moved, "intensity": flops / moved, "compute_ms": compute, "bound_ms": bound,
        "resident_bound_ms": compute * 1.02, "binds": "compute", "measured_ms": ms, "efficiency": bound / ms,
        "resident_efficiency": compute * 1.02 / ms, "layers": layers, "peaks": invented_peaks(),
    }  # fmt: skip


def invented_peaks() -> dict[str, Any]:
    return {
        "device": "Invented CPU, synthetic figures",
        "threads": 2,
        "operations": {name: {"how": "matrix product", "per_s": rate} for name, rate in PEAK.items()},
        "bandwidth": {"how": "copy", "per_s": BANDWIDTH},
        "unsteady": None,
    }


def row(network: tuple[Any, ...], samples: Samples, baseline: Samples | None, precision: str) -> dict[str, Any]:
    """One row as the measurement writes it."""
    name, label, family, depth, top1, a100_ms, *_, parameters, gmacs = network
    found, middle = ratio(samples, baseline) if baseline else None, samples.median_interval_ms()
    measured = precision == "int8"
    accuracy = {
        "top1_percent": round(top1 - 0.4, 2) if measured else top1,
        "source": "measured" if measured else "published",
        "images": 50000 if measured else None,
        "data": "ImageNet-1k validation" if measured else None,
    }
    return {
        "network": name, "label": label, "family": family, "depth": depth, "parameters": int(parameters),
        "gmacs": gmacs, "size_bytes": int(parameters * (1 if measured else 4)), "artifact": f"{name}.onnx",
        "artifact_sha256": hashlib.sha256(f"{name} {precision}".encode()).hexdigest(), "backend": "onnxruntime CPU",
        "precision": precision.upper(), "batch": 1, "input_size": [3, 224, 224], "accuracy": accuracy,
        "published_top1": top1, "published_a100_ms": a100_ms,
        "published_latencies_ms": {"PyTorch": a100_ms, **dict(zip(("TensorRT FP32", "TensorRT FP16"),
                                                                  TENSORRT_MS.get(name, ()), strict=False))},
        "backend_name": "onnxruntime", "weights": "trained", "notes": [], "median_ms": samples.median_ms,
        "p90_ms": samples.p90_ms, "p99_ms": samples.p99_ms, "cv": samples.cv,
        "images_per_s": 1000 / samples.median_ms, "ratio": found.to_json() if found else None,
        "unstable": samples.unstable, "unstable_because": list(samples.unstable_because), "count": samples.count,
        "error": None, "samples_ns": [list(part) for part in samples.rounds_ns], "device_ms": None,
        "run": {
            "median_interval_ms": middle.to_json() if middle else None, "drift": samples.drift,
            "spikes": [list(place) for place in samples.spikes], "warm_up": None, "parts_ns": {}, "conditions": None,
        },
        "roofline": invented_roofline(samples.median_ms, depth, gmacs, precision, len(name) + depth),
    }  # fmt: skip


def failed(found: dict[str, Any], error: str) -> dict[str, Any]:
    """The same cell, failed."""
    nothing = ("median_ms", "p90_ms", "p99_ms", "cv", "images_per_s", "ratio", "roofline", "artifact_sha256")
    return {**found, **dict.fromkeys(nothing), "error": error, "samples_ns": [], "unstable": True, "count": 0,
            "unstable_because": [f"error: {error}"], "run": {}}  # fmt: skip


def synthetic_document(*, rounds: int = 12, calls: int = 40) -> dict[str, Any]:
    """Seven networks in FP32 and INT8; one cell failed, one is unstable, one accuracy is not known."""
    groups = []
    for precision, column in (("fp32", 6), ("int8", 7)):
        samples = {
            network[0]: invented_samples(
                network[column], seed=index + column, rounds=rounds, calls=calls,
                noise=0.25 if (network[0], precision) == ("vanillanet_13", "int8") else 0.02,
            )
            for index, network in enumerate(NETWORKS)
        }  # fmt: skip
        rows = [row(network, samples[network[0]], samples["resnet50"], precision) for network in NETWORKS]
        if precision == "int8":
            rows[-1] = failed(rows[-1], "crashed: signal 9 (out of memory?)")
            rows[1]["accuracy"] = None
        groups.append(
            {
                "backend": "onnxruntime CPU", "precision": precision.upper(), "batch": 1, "input_size": [3, 224, 224],
                "mode": "latency", "rows": rows, "conditions": {"turns": rounds, "other_cores": 0.03, "cores": 2},
                "verdicts": [f"{rows[3]['label']} stands beside {rows[0]['label']} here (an invented sentence)"],
            }
        )  # fmt: skip
    return {
        "schema": 2, "tool": "vexport", "version": "0.1.0", "created": "2025-01-01T12:00:00+00:00",
        "command": "vexport bench paper_cpu --rounds 12", "recipe": {"name": "synthetic", "threads": 2},
        "baseline": "resnet50", "complete": True,
        "environment": {
            "cpu": "Invented CPU, synthetic figures", "logical_cores": 2, "usable_cores": 2, "cpu_quota_cores": None,
            "virtual_machine": True, "variables": {"OMP_NUM_THREADS": "2"}, "os": "Linux-6.1-x86_64", "gpus": [],
            "versions": {"torch": "2.9.0", "onnxruntime": "1.23.0"}, "load_average": [0.1, 0.2, 0.3], "gpu": None,
        },
        "settings": {
            "warmup_s": 0.5, "warmup_most_s": 5.0, "warmup_bound": 0.02, "duration_s": 5.0, "least_count": 50,
            "rounds": rounds, "order": "drawn for each round", "seed": 0, "overhead_ns": 71.0,
            "overhead_per_call_ns": 160.0, "threads": 2,
            "runners": {
                "resnet50, onnxruntime CPU": {
                    "backend": "onnxruntime CPU",
                    "includes": ["images from host memory", "the network", "logits to host memory"],
                    "excludes": ["reading and decoding of images", "resizing and normalising", "softmax"],
                }
            },
        },
        "peaks": invented_peaks(), "groups": groups,
        "advice": ["On this device take ResNet-50: no VanillaNet of its accuracy is faster in FP32 (invented)."],
    }  # fmt: skip
