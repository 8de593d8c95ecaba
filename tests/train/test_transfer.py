"""Starting from another network: which blocks are taken, and that what is taken stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vexport.artifacts import Preprocessing
from vexport.errors import CheckpointError, InputError, RecipeError
from vexport.model.build import build_network
from vexport.model.checkpoint import LoadedCheckpoint
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import VARIANTS, NetworkSpec, make_spec
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.train import train_recipe
from vexport.train.transfer import CarriedBlock, carry_over, match_stages
from vexport.workspace import Workspace

Fill = Callable[..., dict[str, Tensor]]
SMALL = 1 / 64


def shapes(name: str, factor: int = 1) -> list[tuple[int, int, int]]:
    dims, strides = VARIANTS[name].dims, VARIANTS[name].strides
    return [(dims[i] * factor, dims[i + 1] * factor, stride) for i, stride in enumerate(strides)]


def loaded(spec: NetworkSpec, tensors: dict[str, Tensor], form: str = "training") -> LoadedCheckpoint:
    return LoadedCheckpoint(
        Path("old.ckpt"),
        spec,
        form,
        tensors,
        "model",
        1.0,
        "said",
        Preprocessing(),
        None,
        None,  # type: ignore[arg-type]
    )


def fresh(spec: NetworkSpec) -> VanillaNet:
    torch.manual_seed(0)
    return build_network(spec)


def by_block(carried: list[CarriedBlock]) -> dict[str, str | None]:
    return {block.block: block.source for block in carried}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("vanillanet_10", "vanillanet_11", [0, 1, 2, 3, 4, 5, None, 6, 7]),
        ("vanillanet_11", "vanillanet_12", [0, 1, 2, 3, 4, 5, 6, None, 7, 8]),
        ("vanillanet_12", "vanillanet_13", [0, 1, 2, 3, 4, 5, 6, 7, None, 8, 9]),
        ("vanillanet_10", "vanillanet_13", [0, 1, 2, 3, 4, 5, None, None, None, 6, 7]),
        ("vanillanet_13", "vanillanet_10", [0, 1, 2, 3, 4, 5, 9, 10]),
        ("vanillanet_6", "vanillanet_7", [None, 0, 1, 2, 3]),
        ("vanillanet_9", "vanillanet_9", [0, 1, 2, 3, 4, 5, 6]),
        ("vanillanet_5", "vanillanet_11", [None] * 9),
        ("vanillanet_13", "vanillanet_13_x1_5", [None] * 11),
    ],
)
def test_stages_are_matched_from_both_ends(old: str, new: str, expected: list[int | None]) -> None:
    assert match_stages(shapes(old), shapes(new)) == expected


def test_a_stage_of_another_stride_is_another_stage() -> None:
    assert match_stages([(8, 8, 1), (8, 8, 2)], [(8, 8, 1), (8, 8, 1), (8, 8, 2)]) == [0, None, 1]
    assert match_stages([(8, 8, 1)], [(8, 8, 2)]) == [None]
    assert match_stages(shapes("vanillanet_5"), shapes("vanillanet_5", 2)) == [None] * 3


def test_11_starts_from_10(fill: Fill) -> None:
    """Every tensor of what is taken equals the old one's; the seventh stage is as it was made."""
    old, new = make_spec("vanillanet_10", width=SMALL), make_spec("vanillanet_11", width=SMALL)
    taken, network = fill(old), fresh(new)
    made = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    carried = carry_over(network, new, loaded(old, taken))
    stages = [0, 1, 2, 3, 4, 5, None, 6, 7]
    sources = {f"stages.{i}": f"stages.{s}" if s is not None else None for i, s in enumerate(stages)}
    assert by_block(carried) == {"stem": "stem", **sources, "head": "head"}
    assert [str(block) for block in carried[7:9]] == ["stages.6: new", "stages.7: from stages.6"]
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] != "stages":
            expected = taken[name]
        elif stages[int(parts[1])] is None:
            expected = made[name]
        else:
            expected = taken[".".join(["stages", str(stages[int(parts[1])]), *parts[2:]])]
        assert torch.equal(tensor, expected), name


def test_a_larger_n_changes_nothing(fill: Fill) -> None:
    """The kernels of the series activation get a rim of zeros: the network computes what it did."""
    old, new = make_spec("vanillanet_6", width=SMALL, act_num=3), make_spec("vanillanet_6", width=SMALL, act_num=4)
    before, network = build_network(old), fresh(new).double()
    before.load_state_dict(fill(old))
    carried = carry_over(network, new, loaded(old, before.state_dict()))
    assert {block.note for block in carried if block.block != "head"} == {"kernel 7x7 to 9x9, with zeros around"}
    assert all(block.source == block.block for block in carried)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = before.double()(images), network(images)
    assert expected.std() > 1e-3, "the answers depend on something"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_smaller_n_takes_the_middle(fill: Fill) -> None:
    old, new = make_spec("vanillanet_5", width=SMALL, act_num=4), make_spec("vanillanet_5", width=SMALL, act_num=3)
    taken, network = fill(old), fresh(new)
    carried = carry_over(network, new, loaded(old, taken))
    assert str(carried[1]) == "stages.0: from stages.0 (kernel 9x9 to 7x7, its middle)"
    for name in ("stem2.2.weight", "stages.2.act.weight"):
        assert torch.equal(network.state_dict()[name], taken[name][:, :, 1:-1, 1:-1])


def test_another_class_count_has_a_new_head(fill: Fill) -> None:
    old, new = make_spec("vanillanet_5", width=SMALL), make_spec("vanillanet_5", width=SMALL, num_classes=7)
    taken, network = fill(old), fresh(new)
    head = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith("cls")}
    carried = carry_over(network, new, loaded(old, taken))
    assert str(carried[-1]) == "head: new (cls1.2.weight was 1000x64x1x1, shall be 7x64x1x1)"
    assert all(block.source == block.block for block in carried[:-1])
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in head.items())
    assert torch.equal(state["stages.2.conv2.0.weight"], taken["stages.2.conv2.0.weight"])


def test_other_channels_have_a_new_stem(fill: Fill) -> None:
    """A block is taken whole or not at all: the second half of the stem would fit."""
    old = make_spec("vanillanet_5", width=SMALL, in_chans=1)
    new = make_spec("vanillanet_5", width=SMALL)
    network = fresh(new)
    made = network.state_dict()["stem2.0.weight"].clone()
    carried = carry_over(network, new, loaded(old, fill(old)))
    assert str(carried[0]) == "stem: new (stem1.0.weight was 8x1x4x4, shall be 8x3x4x4)"
    assert torch.equal(network.state_dict()["stem2.0.weight"], made)


def test_a_deployed_checkpoint_is_refused(fill: Fill) -> None:
    spec = make_spec("vanillanet_5", width=SMALL)
    with pytest.raises(RecipeError, match=r"old.ckpt is in deployed form") as caught:
        carry_over(fresh(spec), spec, loaded(spec, fill(spec, "deployed"), "deployed"))
    assert "training checkpoint" in caught.value.hint


def test_where_nothing_fits_nothing_is_changed(fill: Fill) -> None:
    old = make_spec("vanillanet_5", width=SMALL)
    new = make_spec("vanillanet_6", width=2 * SMALL, num_classes=10)
    network = fresh(new)
    made = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RecipeError) as caught:
        carry_over(network, new, loaded(old, fill(old)))
    assert caught.value.message == "nothing of network.init_from old.ckpt fits a vanillanet_6"
    assert caught.value.details == (
        "it is a vanillanet_5 of widths 8 16 32 64",
        "the recipe's has widths 16 32 64 128 128",
    )
    assert all(torch.equal(tensor, made[name]) for name, tensor in network.state_dict().items())


# Through a recipe


@pytest.mark.parametrize("by", ["path", "name"])
def test_a_recipe_starts_where_another_ended(by: str, tiny: Path, tmp_path: Path) -> None:
    """A sixth layer on top of five, at a learning rate that moves nothing: the weights are the best averaged ones."""
    workspace = Workspace(tmp_path / "out")
    first = train_recipe(tiny, workspace=workspace, overrides=["deep_training.decay_epochs=1", "epochs=2"])
    assert first is not None
    told: list[str] = []
    second = train_recipe(
        tiny,
        workspace=workspace,
        overrides=[
            "name=six",
            "network.model=vanillanet_6",
            "network.act_num=2",
            f"network.init_from={first.best.path if by == 'path' else 'tiny'}",
            "epochs=1",
            "deep_training.decay_epochs=0",
            "schedule.warmup_epochs=0",
            "optimizer.lr=1.0e-9",
        ],
        tell=told.append,
    )
    assert told == [
        f"starting from {first.best.path}",
        "  stem: from stem (kernel 3x3 to 5x5, with zeros around)",
        "  stages.0: from stages.0 (kernel 3x3 to 5x5, with zeros around)",
        "  stages.1: from stages.1 (kernel 3x3 to 5x5, with zeros around)",
        "  stages.2: from stages.2 (kernel 3x3 to 5x5, with zeros around)",
        "  stages.3: new",
        "  head: from head",
    ]
    assert second is not None
    start = torch.load(first.best.path, weights_only=True)["model_ema"]
    end = torch.load(second.last.path, weights_only=True)["model"]
    for name in ("stem1.0.weight", "stages.2.conv2.0.weight", "cls2.0.weight"):
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-7)
    torch.testing.assert_close(
        end["stages.1.act.weight"][:, :, 1:-1, 1:-1], start["stages.1.act.weight"], rtol=0, atol=1e-7
    )

    again = ["name=six", "network.model=vanillanet_6", "network.act_num=2", "epochs=1", "deep_training.decay_epochs=0"]
    again += ["schedule.warmup_epochs=0", "optimizer.lr=1.0e-9"]
    again += [f"network.init_from={first.best.path if by == 'path' else 'tiny'}"]
    unchanged = train_recipe(tiny, workspace=workspace, overrides=again)
    assert unchanged is not None
    assert unchanged.up_to_date
    other = train_recipe(
        tiny, workspace=workspace, overrides=["deep_training.decay_epochs=1", "epochs=2", "seed=3"], force=True
    )
    assert other is not None
    told.clear()
    stands = train_recipe(tiny, workspace=workspace, overrides=again, tell=told.append)
    assert stands is not None
    assert stands.up_to_date
    assert told == ["note: finished with another init_from; --force trains it anew"]
    first = other

    fused = fuse_checkpoint(first.best.path, workspace=workspace)
    with pytest.raises(RecipeError, match="is in deployed form"):
        train_recipe(tiny, workspace=workspace, overrides=["name=seven", f"network.init_from={fused.artifact.path}"])


def test_a_start_that_is_not_there_says_how_to_get_it(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    with pytest.raises(InputError) as caught:
        train_recipe(tiny, workspace=workspace, overrides=["network.init_from=vanillanet_10"])
    missing = workspace.root / "vanillanet_10.best.ckpt"
    assert caught.value.message == f"network.init_from vanillanet_10: there is neither this file nor {missing}"
    assert "vexport train vanillanet_10" in caught.value.hint
    assert "network.init_from=null" in caught.value.hint
    (tmp_path / "text.ckpt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"text.ckpt is not a checkpoint"):
        train_recipe(tiny, workspace=workspace, overrides=[f"network.init_from={tmp_path / 'text.ckpt'}"])
