"""Every network of the ablations trains a step, is merged, is exported, and keeps its answers all along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vexport.errors import CheckpointError, FusionError, RecipeError
from vexport.model.ablation import AblationNetwork
from vexport.model.checkpoint import load_checkpoint, load_network
from vexport.model.vanillanet import VanillaNet
from vexport.pipeline.check import check_parity
from vexport.pipeline.export import export_graph
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.inspect import inspect_artifact
from vexport.pipeline.train import train_recipe
from vexport.recipe import load_recipe, recipe_hash
from vexport.workspace import Workspace, read_manifest

# Two epochs; the ramp is over within the first.
QUICK = ["epochs=2", "deep_training.decay_epochs=0.3", "schedule.warmup_epochs=0"]
NETWORKS = {
    "vanillanet_6": ["network.width=0.015625"],
    "alexnet": ["network.width=0.0625", "network.stem_stride=1"],
    "resnet50": ["network.width=0.0625"],
}
CASES = [
    *((name, f"network.techniques={t}") for name in NETWORKS for t in ("none", "deep", "series", "both")),
    *(("vanillanet_6", f"network.shortcut={where}") for where in ("before", "after")),
    *(("vanillanet_6", f"network.act_num={n}") for n in range(5)),
]


@pytest.mark.parametrize(("network", "setting"), CASES)
def test_it_trains_fuses_exports_and_agrees(network: str, setting: str, tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    changes = [*QUICK, f"network.model={network}", *NETWORKS[network], setting]
    trained = train_recipe(tiny, workspace=workspace, overrides=changes)
    assert trained is not None
    assert trained.best.facts["slope"] == 1.0
    assert trained.best.facts["total"] == 359
    _, loaded = load_network(trained.best.path)
    plain = setting == "network.techniques=none"
    assert loaded.form == ("deployed" if plain else "training")
    fused = fuse_checkpoint(trained.best.path, workspace=workspace)
    entries = fused.artifact.manifest.parity
    if plain:
        assert any("nothing to merge" in note for note in fused.notes)
    else:
        assert all(entry["passed"] for entry in entries)
        assert entries
        assert fused.artifact.facts["blocks"]
    exported = export_graph(fused.artifact.path, workspace=workspace)
    assert set(exported.artifact.facts["operators"]) <= {
        *("Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Add", "Gemm", "Pad", "Concat", "Reshape"),
    }, "plain operators, and no BatchNormalization left"
    for other in (fused.artifact.path, exported.artifact.path):
        assert check_parity(trained.best.path, other).parity.passed
    described = dict(inspect_artifact(trained.best.path).facts)
    assert network in str(described["network"])


def test_the_usual_network_is_the_published_class(tiny: Path, tmp_path: Path) -> None:
    """Recipes that leave nothing out train VanillaNet itself, under the hash that they always had."""
    trained = train_recipe(tiny, workspace=Workspace(tmp_path / "out"), overrides=QUICK)
    assert trained is not None
    module, _ = load_network(trained.best.path)
    assert isinstance(module, VanillaNet)
    plain = load_recipe(tiny)
    usual = load_recipe(tiny, ["network.techniques=both", "network.shortcut=none"])
    assert recipe_hash(plain) == recipe_hash(usual) != recipe_hash(load_recipe(tiny, ["network.techniques=deep"]))
    assert "techniques" not in tiny.read_text()


def test_a_run_that_stopped_goes_on_to_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    changes = [*QUICK, "epochs=3", "network.techniques=deep", "deep_training.decay_epochs=1.5"]

    def stop(done: int, _all: int, _figures: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    whole, parts = Workspace(tmp_path / "whole"), Workspace(tmp_path / "parts")
    one = train_recipe(tiny, workspace=whole, overrides=changes)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=parts, overrides=changes, on_progress=stop)
    other = train_recipe(tiny, workspace=parts, overrides=changes, resume=True)
    assert one is not None
    assert other is not None
    assert other.resumed_from == 1
    for mine, theirs in zip(
        load_checkpoint(one.last.path).tensors.items(), load_checkpoint(other.last.path).tensors.items(), strict=True
    ):
        assert mine[0] == theirs[0]
        assert np.array_equal(mine[1].numpy(), theirs[1].numpy())


def test_before_slope_1_it_is_not_merged(tiny: Path, tmp_path: Path) -> None:
    changes = [*QUICK, "network.techniques=deep", "deep_training.decay_epochs=1", "deep_training.per=epoch"]

    def stop(done: int, _all: int, _figures: object) -> None:
        if done == 1:
            raise KeyboardInterrupt

    workspace = Workspace(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(tiny, workspace=workspace, overrides=changes, on_progress=stop)
    last = workspace.root / "tiny.last.ckpt"
    module, loaded = load_network(last)
    assert isinstance(module, AblationNetwork)
    assert loaded.slope == 0.0
    assert float(module.slope) == 0.0
    with pytest.raises(FusionError, match="the activation slope is 0"):
        fuse_checkpoint(last, workspace=workspace)
    manifest = read_manifest(last)
    assert manifest is not None
    assert manifest.facts["network"]["techniques"] == "deep"


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("network.techniques=some", "network.techniques"),
        ("network.shortcut=around", "network.shortcut"),
        ("network.init_from=other", "networks of ablations start afresh"),
        ("optimizer.layer_decay=0.8", "no layer groups"),
    ],
)
def test_bad_recipes(setting: str, what: str, tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny, ["network.techniques=deep", setting])
    assert what in "\n".join(caught.value.details)


def test_shortcuts_are_for_vanillanet(tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny, ["network.model=alexnet", "network.shortcut=before"])
    assert "alexnet has no stages to go around" in "\n".join(caught.value.details)


def test_an_ablation_is_no_start_for_vanillanet(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    trained = train_recipe(tiny, workspace=workspace, overrides=[*QUICK, "network.techniques=deep", "name=part"])
    assert trained is not None
    with pytest.raises(RecipeError, match="of an ablation"):
        train_recipe(tiny, workspace=workspace, overrides=[*QUICK, f"network.init_from={trained.best.path}", "name=x"])


def test_the_slopes_within_a_file_are_held_against_what_it_tells(tiny: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    trained = train_recipe(tiny, workspace=workspace, overrides=[*QUICK, "network.techniques=deep"])
    assert trained is not None
    content = torch.load(trained.best.path, weights_only=True)
    for name in ("model", "model_ema"):
        content[name] = {k: torch.tensor(0.5) if k.endswith(".slope") else v for k, v in content[name].items()}
    altered = tmp_path / "altered.ckpt"
    torch.save(content, altered)
    with pytest.raises(CheckpointError, match=r"tells a slope of 1, and holds 0\.5"):
        load_checkpoint(altered)
    del content["vexport"]["slope"], content["vexport"]["slope_ema"]
    torch.save(content, altered)
    loaded = load_checkpoint(altered)
    assert loaded.slope == 0.5
    with pytest.raises(FusionError, match=r"the activation slope is 0\.5"):
        fuse_checkpoint(altered, workspace=workspace)
    fused = fuse_checkpoint(altered, workspace=workspace, assume_slope_1=True)
    assert "although it is 0.5" in fused.notes[0]
