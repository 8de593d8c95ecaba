"""Randomness that follows from the seed, the epoch and the place alone.

Every image and every micro-batch starts from a random state of its own. So nothing depends on how many worker
processes read or on how many devices compute, and a resumed run draws what an uninterrupted one draws: there is no
state to restore.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A seed of 64 bits that depends on every part."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_cpu(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators, in a process that reads images."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, those of GPUs too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def callers_random_state() -> Iterator[None]:
    """Give the caller its random state back, whatever is drawn within."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
