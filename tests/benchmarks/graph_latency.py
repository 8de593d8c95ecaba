"""Our graph of VanillaNet-9 beside the plain torch.onnx.export + onnxsim of the same network, timed in turns.

python tests/benchmarks/graph_latency.py [--model vanillanet_9] [--seconds 10]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
import onnxsim
import torch

from vexport.bench.clock import Clock, ratio
from vexport.bench.environment import describe_environment
from vexport.model.checkpoint import load_network
from vexport.pipeline.export import export_graph
from vexport.run.compare import random_batches
from vexport.run.ort import OrtRunner
from vexport.workspace import Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vanillanet_9")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = export_graph(workspace=Workspace(Path(folder)), model=args.model, weights="random")
        assert ours.fused is not None
        network, _ = load_network(ours.fused.artifact.path)
        plain = Path(folder) / "plain.onnx"
        images = torch.zeros(2, 3, 224, 224)
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(network, (images,), plain, dynamo=True, dynamic_shapes=(batch,), verbose=False)
        simplified, _ = onnxsim.simplify(onnx.load(plain))
        onnx.save(simplified, plain)
        (one,) = random_batches((3, 224, 224), (1,))
        with OrtRunner(ours.artifact.path) as a, OrtRunner(plain) as b:
            clock = Clock(duration_s=args.seconds, rounds=20)
            found = clock.measure({"vexport": lambda: a(one), "torch.onnx.export + onnxsim": lambda: b(one)})
    for name, samples in found.items():
        print(f"{name:28} median {samples.median_ms:7.2f} ms  p90 {samples.p90_ms:7.2f} ms  n {samples.count}")
    compared = ratio(found["vexport"], found["torch.onnx.export + onnxsim"])
    assert compared is not None
    environment = describe_environment()
    print(f"vexport / plain {compared.value:.3f} ({compared.low:.3f} to {compared.high:.3f})")
    print(
        f"{environment['cpu']}, {environment['usable_cores']} cores, "
        f"onnxruntime {environment['versions']['onnxruntime']}"
    )


if __name__ == "__main__":
    main()
