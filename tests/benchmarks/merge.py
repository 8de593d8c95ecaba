"""What the merge costs beside the matrix products that it cannot do without.

    python tests/benchmarks/merge.py [--model vanillanet_13_x1_5] [--rounds 3]

In one run, in turns: the bare float64 products of the merge's shapes, our merge, and the composition as the published
code does it (batched products over transposed 4-d kernels, float32). Then the whole `vexport fuse` process on a file,
with its peak memory beside that of a process that only imports torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vexport.model.build import build_network
from vexport.model.fuse import blocks_of, merge_blocks
from vexport.model.variants import NetworkSpec, make_spec

Tensors = dict[str, torch.Tensor]


def bare_products(tensors: Tensors, spec: NetworkSpec) -> Callable[[], None]:
    """The products alone, on operands that are float64 already."""
    pairs = [
        (tensors[f"{b.second}.weight"].flatten(1), tensors[f"{b.first}.weight"].flatten(1)) for b in blocks_of(spec)
    ]

    def run() -> None:
        for second, first in pairs:
            left, right = torch.ones(second.shape, dtype=torch.float64), torch.ones(first.shape, dtype=torch.float64)
            started = time.perf_counter()
            left @ right
            run.seconds += time.perf_counter() - started  # type: ignore[attr-defined]

    return run


def our_merge(tensors: Tensors, spec: NetworkSpec) -> None:
    """Folding and composing, each block dropped before the next."""
    for _block, _merged in merge_blocks(tensors, spec):
        pass


def published_way(tensors: Tensors, spec: NetworkSpec) -> None:
    """The composition alone, float32: a product per kernel position over views with transposed strides."""
    for block in blocks_of(spec):
        first, second = tensors[f"{block.first}.weight"], tensors[f"{block.second}.weight"]
        torch.einsum("om,mihw->oihw", second[:, :, 0, 0], first) if first.shape[-1] > 1 else torch.matmul(
            second.transpose(1, 3), first.squeeze(3).squeeze(2)
        ).transpose(1, 3)


# A child's peak memory counts that of the process it was forked from, so the fork is left to a small one.
MEASURE = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def process(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = (float(word) for word in done.stdout.split())
    return seconds, peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vanillanet_13_x1_5")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    spec = make_spec(args.model)
    torch.manual_seed(0)
    network = build_network(spec)
    for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    for conv in (m for m in network.modules() if isinstance(m, torch.nn.Conv2d)):
        torch.nn.init.kaiming_normal_(conv.weight)  # activations of order 1, so that the proof means something
    tensors: Tensors = dict(network.state_dict())
    times: dict[str, list[float]] = {"bare float64 products": [], "our merge": [], "published way, float32": []}
    products = bare_products(tensors, spec)
    for _ in range(args.rounds):
        products.seconds = 0.0  # type: ignore[attr-defined]
        products()
        times["bare float64 products"].append(products.seconds)  # type: ignore[attr-defined]
        for name, call in (("our merge", our_merge), ("published way, float32", published_way)):
            started = time.perf_counter()
            call(tensors, spec)
            times[name].append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt.pth"
        torch.save(
            {"model": tensors, "epoch": 299, "args": argparse.Namespace(model=args.model, decay_epochs=100)}, path
        )
        weights_mb = path.stat().st_size / 1e6
        del network, tensors, products
        fuse = [sys.executable, "-m", "vexport", "fuse", str(path), "--workspace", str(Path(folder) / "out")]
        whole_s, whole_mb = process(fuse)
    _, torch_mb = process([sys.executable, "-c", "import torch"])
    bare = statistics.median(times["bare float64 products"])
    print(f"{args.model}, torch {torch.__version__}, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {name:24} {median:7.2f} s   {median / bare:5.2f}x")
    print(
        f"  {'whole `vexport fuse`':24} {whole_s:7.2f} s   {whole_s / bare:5.2f}x  (import, hash, load, proof, write)"
    )
    excess = (whole_mb - torch_mb) / weights_mb
    print(
        f"  peak memory {whole_mb:.0f} MB: importing torch {torch_mb:.0f} MB "
        f"+ {excess:.2f}x the file's {weights_mb:.0f} MB"
    )


if __name__ == "__main__":
    main()
