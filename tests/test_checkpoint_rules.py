"""What a checkpoint file is taken for: containers, prefixes, which network, which slope."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vexport.errors import CheckpointError
from vexport.model.build import expected_shapes
from vexport.model.checkpoint import infer_spec, load_checkpoint
from vexport.model.fuse import BatchNormStats, ConvWeights, compose, fold_batchnorm
from vexport.model.variants import VARIANTS, NetworkSpec, make_spec
from vexport.model.weights_file import WeightsFile, strip_prefixes

Tensors = dict[str, torch.Tensor]
Fill = Callable[..., Tensors]


def published(state: Tensors, **args: Any) -> dict[str, Any]:
    return {"model": state, "epoch": args.pop("epoch", 299), "args": argparse.Namespace(**args)}


@pytest.mark.parametrize("container", ["bare", "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_and_formats(
    container: str, legacy: bool, fill: Fill, small_spec: NetworkSpec, tmp_path: Path
) -> None:
    state = fill(small_spec)
    torch.save(
        state if container == "bare" else {container: state},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert (loaded.spec, loaded.form, loaded.slope) == (small_spec, "training", None)
    assert loaded.source == ("ema" if container == "model_ema" else "model")
    assert all(torch.equal(loaded.tensors[name], state[name]) for name in state)


def test_safetensors(fill: Fill, small_spec: NetworkSpec, tmp_path: Path) -> None:
    save_file(fill(small_spec, "deployed"), tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert (loaded.spec, loaded.form, loaded.slope) == (small_spec, "deployed", 1.0)


def test_the_ema_is_preferred_and_from_chooses(fill: Fill, small_spec: NetworkSpec, tmp_path: Path) -> None:
    model = fill(small_spec)
    ema = {name: tensor + 1 if name == "cls2.0.bias" else tensor for name, tensor in model.items()}
    torch.save({"model": model, "model_ema": ema}, tmp_path / "a.pth")
    assert torch.equal(load_checkpoint(tmp_path / "a.pth").tensors["cls2.0.bias"], ema["cls2.0.bias"])
    chosen = load_checkpoint(tmp_path / "a.pth", weights_from="model")
    assert torch.equal(chosen.tensors["cls2.0.bias"], model["cls2.0.bias"])


def test_prefixes(fill: Fill, small_spec: NetworkSpec, tmp_path: Path) -> None:
    assert strip_prefixes("module._orig_mod.stem1.0.weight") == "stem1.0.weight"
    state = fill(small_spec)
    openmixup = {("head." if name.startswith("cls") else "backbone.") + name: t for name, t in state.items()}
    torch.save({"state_dict": openmixup, "meta": {}}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").spec == small_spec


@pytest.mark.parametrize("form", ["training", "deployed"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.startswith("vanillanet_13_x")])
def test_the_network_is_worked_out_from_the_tensors(name: str, form: Any) -> None:
    spec = make_spec(name, act_num=4, num_classes=7, in_chans=1)
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in expected_shapes(spec, form).items()}
    assert infer_spec(Path("a.pth"), WeightsFile(tensors, "model"), form) == spec


@pytest.mark.parametrize("width", [1.0, 1 / 16])
def test_twins_ask_unless_something_decides(width: float) -> None:
    spec = make_spec("vanillanet_13_x1_5_ada_pool", width=width)
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in expected_shapes(spec, "training").items()}
    with pytest.raises(CheckpointError, match="proportions") as caught:
        infer_spec(Path("a.pth"), WeightsFile(tensors, "model"), "training")
    assert f"--model {spec.variant}" in caught.value.hint
    assert infer_spec(Path("a.pth"), WeightsFile(tensors, "model"), "training", spec.variant) == spec
    said = WeightsFile(tensors, "model", args={"model": spec.variant})
    assert infer_spec(Path("a.pth"), said, "training") == spec


@pytest.mark.parametrize(
    ("args", "slope"),
    [
        ({"decay_epochs": 100, "epoch": 299}, 1.0),
        ({"decay_epochs": 100, "epoch": 50, "decay_linear": True}, 0.5),
        ({"decay_epochs": 100, "epoch": 25, "decay_linear": False}, 0.1464466),
        ({"decay_epochs": 0, "epoch": 0}, 1.0),
        ({"decay_epochs": 90, "decay_rate": 0.1, "epoch": 50}, None),  # the learning rate's, in timm's trainer
        ({}, None),
    ],
)
def test_slope_rule(
    args: dict[str, Any], slope: float | None, fill: Fill, small_spec: NetworkSpec, tmp_path: Path
) -> None:
    torch.save(published(fill(small_spec), **args), tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth").slope
    assert found == (None if slope is None else pytest.approx(slope))


def test_a_state_dict_of_ours_carries_its_slope(fill: Fill, small_spec: NetworkSpec, tmp_path: Path) -> None:
    from vexport.model.build import build_network

    network = build_network(small_spec)
    assert "slope" not in network.state_dict()
    network.set_slope(0.25)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").slope == 0.25
    other = build_network(small_spec)
    other.load_state_dict(network.state_dict())
    assert float(other.slope) == 0.25
    other.load_state_dict(fill(small_spec))
    assert float(other.slope) == 1.0


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (4, 4, 0), (4, 3, 1)])
def test_fold_and_compose_against_torch(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    first, bn, second = nn.Conv2d(3, 8, kernel, stride, padding), nn.BatchNorm2d(8, eps=1e-6), nn.Conv2d(8, 5, 1)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    nn.init.normal_(bn.running_mean)
    nn.init.uniform_(bn.running_var, 0.1, 2)
    chain = nn.Sequential(first, bn, second).double().eval()
    before = first.weight.clone()
    with torch.no_grad():
        stats = BatchNormStats(bn.weight, bn.bias, bn.running_mean, bn.running_var)
        merged = compose(
            fold_batchnorm(ConvWeights(first.weight, first.bias), stats), ConvWeights(second.weight, second.bias)
        )
        x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        y = nn.functional.conv2d(x, merged.weight, merged.bias, stride, padding)
        assert float((y - chain(x)).abs().max() / chain(x).abs().max()) < 1e-13
    assert merged.weight.is_contiguous()
    assert torch.equal(first.weight, before)
