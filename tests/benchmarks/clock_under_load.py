"""What a load beside the benchmark does to times, and to ratios: they should change less.

    python tests/benchmarks/clock_under_load.py [--seconds 6] [--busy 1]

Two matrix products, one about three times the other, are timed on one thread; then again while other processes compute
on and off, so that the load changes during the run. Last, the clock's own cost and that of the watch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable

import numpy as np

from vexport.bench.clock import Clock, Ratio, Samples, ratio
from vexport.bench.environment import cpu_name
from vexport.bench.watch import Watch, summarise


def compute_on_and_off(seed: int) -> None:
    """Keep a core busy for half of the time, in stretches of up to a second."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(300, 300))
    while True:
        end = time.monotonic() + rng.uniform(0.1, 1.0)
        while time.monotonic() < end:
            matrix @ matrix
        time.sleep(rng.uniform(0.1, 1.0))


def product(size: int) -> Callable[[], object]:
    left = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    return lambda: left @ left


def measure(clock: Clock) -> tuple[dict[str, Samples], Ratio]:
    found = clock.measure({"large": product(360), "small": product(250)})
    compared = ratio(found["large"], found["small"])
    assert compared is not None
    return found, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="measured time per candidate")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="other processes")
    args = parser.parse_args()
    watch = Watch()
    clock = Clock(duration_s=args.seconds, rounds=20, warmup_most_s=3, watch=watch)
    print(f"{cpu_name()}, {os.cpu_count()} cores; {args.busy} processes computing half of the time")
    quiet, quiet_ratio = measure(clock)
    others = [multiprocessing.Process(target=compute_on_and_off, args=(index,)) for index in range(args.busy)]
    for one in others:
        one.start()
    try:
        loaded, loaded_ratio = measure(clock)
    finally:
        for one in others:
            one.terminate()
            one.join()
    for title, found, compared in (("quiet", quiet, quiet_ratio), ("loaded", loaded, loaded_ratio)):
        print(f"\n{title}: ratio {compared.value:.3f} ({compared.low:.3f} to {compared.high:.3f})")
        for name, samples in found.items():
            print(
                f"  {name:6} mean {samples.mean_ms:7.3f} ms  median {samples.median_ms:7.3f}  p99 {samples.p99_ms:7.3f}"
                f"  cv {samples.cv:.2f}  drift {samples.drift:.2f}  spikes {len(samples.spikes)} of {samples.count}"
            )
            for why in samples.unstable_because:
                print(f"         {why}")
        print(f"  other processes: {summarise(found['large'].conditions)['other_cores']} cores")
    print("\nchange by the load")
    for name in quiet:
        mean, median = (getattr(loaded[name], f) / getattr(quiet[name], f) - 1 for f in ("mean_ms", "median_ms"))
        print(f"  {name:6} mean {mean:+7.1%}  median {median:+7.1%}")
    print(f"  ratio  {loaded_ratio.value / quiet_ratio.value - 1:+7.1%}")
    inside_ns, whole_ns = clock.overhead_ns
    print(f"\nthe clock: {inside_ns:.0f} ns in each sample, {whole_ns:.0f} ns per call in all")
    print(f"the watch: {watch.cost_ms:.2f} ms per reading, two per turn, outside the samples")


if __name__ == "__main__":
    main()
