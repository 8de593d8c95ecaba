"""A recipe that trains in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

TINY = """\
epochs: 4
batch_size: 512
device: cpu
network: {model: vanillanet_5, width: 0.015625, act_num: 1, drop_rate: 0.1}
deep_training: {decay_epochs: 2, per: step}
data: {name: digits, augment: {rotate_deg: 5, scale: 0.1, shift: 0.05}}
optimizer: {name: adamw, lr: 3.0e-3, weight_decay: 0.05}
schedule: {warmup_epochs: 1}
ema: {decay: 0.9}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and much slower where others compute too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
