"""Fixtures that the tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vexport.model.build import Form, expected_shapes
from vexport.model.variants import NetworkSpec, make_spec

GOLDEN = Path(__file__).with_name("golden")
sys.path.insert(0, str(GOLDEN))

import weights_by_name  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, with the reason, where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


Fill = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def fill() -> Fill:
    """The state dict of a spec, every tensor filled from its name and shape."""

    def filled(spec: NetworkSpec, form: Form = "training") -> dict[str, torch.Tensor]:
        shapes = expected_shapes(spec, form)
        return {name: torch.from_numpy(np.asarray(weights_by_name.tensor_for(name, s))) for name, s in shapes.items()}

    return filled


@pytest.fixture(scope="session")
def small_spec() -> NetworkSpec:
    """A VanillaNet-5 with few channels: quick, and with every part of a large one."""
    return make_spec("vanillanet_5", width=1 / 32, num_classes=10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds an engine that another built, nor leaves one in the user's cache."""
    monkeypatch.setenv("VEXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_checkpoint(tmp_path: Path, fill: Fill, small_spec: NetworkSpec) -> Path:
    """A published-style training checkpoint of the small network, from the end of its training."""
    import argparse

    state = fill(small_spec)
    path = tmp_path / "ckpt.pth"
    args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, nb_classes=10, input_size=64)
    torch.save({"model": state, "model_ema": state, "epoch": 299, "args": args}, path)
    return path
