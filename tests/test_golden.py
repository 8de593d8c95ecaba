"""The merge against the reference network's outputs, and over all variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import weights_by_name

from vexport.errors import ParityError
from vexport.model import prove
from vexport.model.build import build_network
from vexport.model.fuse import merge_blocks
from vexport.model.prove import merge_and_prove
from vexport.model.variants import VARIANTS, NetworkSpec, make_spec

Tensors = dict[str, torch.Tensor]
Fill = Callable[..., Tensors]
GOLDEN = Path(__file__).with_name("golden")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def run(spec: NetworkSpec, form: str, tensors: Tensors, image: torch.Tensor) -> torch.Tensor:
    network = build_network(spec, form=form).double()  # type: ignore[arg-type]
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network(image.double())


@pytest.mark.parametrize(
    ("name", "classes", "file"),
    [
        ("vanillanet_6", 1000, "vanillanet_6"),
        ("vanillanet_6", 10, "vanillanet_6_c10"),
        ("vanillanet_9", 1000, "vanillanet_9"),
    ],
)
def test_golden_before_and_after_the_merge(fill: Fill, name: str, classes: int, file: str) -> None:
    spec = make_spec(name, num_classes=classes)
    tensors, image = fill(spec), torch.from_numpy(weights_by_name.image())
    golden = torch.from_numpy(np.load(GOLDEN / f"{file}.npy")).reshape(1, -1)
    assert relative(golden, run(spec, "training", tensors, image)) < 1e-9
    merged = {key: value for _, part in merge_blocks(tensors, spec) for key, value in part.items()}
    assert relative(golden, run(spec, "deployed", merged, image)) < 1e-9
    stored = {key: value.float() for key, value in merged.items()}
    assert relative(golden, run(spec, "deployed", stored, image)) < 1e-6
    single = build_network(spec, form="deployed")
    single.load_state_dict(stored)
    with torch.no_grad():
        assert relative(golden, single(image).double()) < 1e-5


@pytest.mark.parametrize("act_num", [3, 4])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_merges_exactly(fill: Fill, name: str, act_num: int) -> None:
    """The proof's own figures, and an evaluation by the network's modules beside it."""
    spec = make_spec(name, width=1 / 64, act_num=act_num, num_classes=10)
    tensors = fill(spec)
    image = torch.from_numpy(weights_by_name.image(size=224 if VARIANTS[name].pool_sizes else 64))
    proven = merge_and_prove(tensors, spec, {"random": image})
    assert max(block.error for block in proven.blocks) < 1e-9
    reference = run(spec, "training", tensors, image)
    merged = {key: value for _, part in merge_blocks(tensors, spec) for key, value in part.items()}
    assert relative(reference, run(spec, "deployed", merged, image)) < 1e-9
    assert relative(reference, run(spec, "deployed", proven.tensors, image)) < 1e-6
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in proven.tensors.values())


def test_a_wrong_merge_is_found_and_named(fill: Fill, small_spec: NetworkSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = prove.merge_block

    def wrong(tensors: Tensors, block: prove.Block) -> Tensors:
        merged = honest(tensors, block)
        if block.name == "stages.1":
            merged["stages.1.conv.bias"] += 1e-6
        return merged

    monkeypatch.setattr(prove, "merge_block", wrong)
    image = torch.from_numpy(weights_by_name.image(size=64))
    with pytest.raises(ParityError, match=r"stages\.1") as caught:
        merge_and_prove(fill(small_spec), small_spec, {"random": image})
    assert caught.value.exit_code == 3
    assert any("tolerance" in line for line in caught.value.details)


def test_not_a_number_never_passes(fill: Fill, small_spec: NetworkSpec) -> None:
    image = torch.full((1, 3, 64, 64), float("nan"))
    with pytest.raises(ParityError):
        merge_and_prove(fill(small_spec), small_spec, {"random": image})
