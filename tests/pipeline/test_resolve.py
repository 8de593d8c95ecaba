"""Which weights a command takes: a path, `--weights`, the workspace's newest (best before last), the published ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vexport.artifacts import Checkpoint, Manifest, Parent
from vexport.errors import InputError
from vexport.model import published
from vexport.pipeline.resolve import WeightSource, find_weights, random_parent, require_model, stem_of
from vexport.workspace import Workspace, hash_file, manifest_path, stage


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published weights as they stand in the hub cache."""
    path = tmp_path / "vanillanet_9.pth"
    path.write_text("published")
    monkeypatch.setattr(published, "fetch_published", lambda name: path.with_name(f"{name}.pth"))
    return path


def put(workspace: Workspace, name: str, created: str, *, form: str = "training", model: str = "vanillanet_9") -> Path:
    """A checkpoint of a date."""
    facts = {"form": form, "model": model}
    with stage(workspace.root / name) as staging:
        staging.path.write_text(name)
        made = staging.publish(
            Checkpoint, lambda sha256, size: Manifest("checkpoint", sha256, size, Parent("a", "b"), {}, facts)
        )
    dated = replace(made.manifest, created=created)
    manifest_path(made.path).write_text(json.dumps(dated.to_json()))
    when = datetime.fromisoformat(created if "-" in created else f"{created}-01-01").timestamp()
    os.utime(manifest_path(made.path), (when, when))
    return made.path


def find(workspace: Workspace, path: Path | None = None, *, deployed: bool = False, **asked: Any) -> WeightSource:
    asked = {"weights": None, "model": None} | asked
    return find_weights(path, workspace=workspace, accept_deployed=deployed, **asked)


def test_a_path_comes_first(workspace: Workspace, tmp_path: Path) -> None:
    put(workspace, "new.ckpt", "2026")
    named = tmp_path / "my.net.pth"
    named.write_text("named")
    found = find(workspace, named, model="vanillanet_9")
    assert found == WeightSource(named, "my.net", Parent("my.net.pth", hash_file(named)), str(named))


def test_a_path_excludes_weights(workspace: Workspace, cache: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        find(workspace, cache, weights="random", model="vanillanet_9")


def test_weights_come_before_the_workspace(workspace: Workspace, cache: Path) -> None:
    put(workspace, "new.ckpt", "2026")
    random = find(workspace, weights="random", model="vanillanet_9")
    assert (random.path, random.stem, random.parent) == (None, "vanillanet_9.random", random_parent("vanillanet_9"))
    assert "seed" in random.parent.name
    pretrained = find(workspace, weights="pretrained", model="vanillanet_9")
    assert (pretrained.path, pretrained.stem) == (cache, "vanillanet_9")
    assert pretrained.parent.sha256 == hash_file(cache)


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_weights_need_a_network(workspace: Workspace, weights: str) -> None:
    with pytest.raises(InputError, match="needs a network"):
        find(workspace, weights=weights)


def test_random_parents_differ() -> None:
    assert random_parent("vanillanet_9") == random_parent("vanillanet_9")
    assert random_parent("vanillanet_9").sha256 != random_parent("vanillanet_8").sha256


def test_the_newest_of_the_workspace(workspace: Workspace) -> None:
    put(workspace, "a.ckpt", "2026-01-02")
    newest = put(workspace, "b.ckpt", "2026-01-03")
    put(workspace, "c.ckpt", "2026-01-01")
    found = find(workspace)
    assert (found.path, found.stem, found.parent.sha256) == (newest, "b", hash_file(newest))
    assert "newest" in found.how


def test_best_before_last(workspace: Workspace) -> None:
    best = put(workspace, "run.best.ckpt", "2026-01-01")
    put(workspace, "run.last.ckpt", "2026-01-02")
    assert find(workspace).path == best


def test_last_where_there_is_no_best(workspace: Workspace) -> None:
    last = put(workspace, "run.last.ckpt", "2026-01-02")
    assert find(workspace).path == last


def test_form_and_model_must_fit(workspace: Workspace) -> None:
    training = put(workspace, "a.ckpt", "2026-01-01")
    deployed = put(workspace, "a.deploy.safetensors", "2026-01-02", form="deployed")
    other = put(workspace, "b.ckpt", "2026-01-03", model="vanillanet_5")
    assert find(workspace).path == other
    assert find(workspace, model="vanillanet_9").path == training
    assert find(workspace, model="vanillanet_9", deployed=True).path == deployed
    assert find(workspace, model="vanillanet_5", deployed=True).path == other


def test_what_was_changed_is_passed_over(workspace: Workspace) -> None:
    put(workspace, "a.ckpt", "2026-01-02").write_text("changed")
    sound = put(workspace, "b.ckpt", "2026-01-01")
    assert find(workspace).path == sound


def test_the_published_ones_at_last(workspace: Workspace, cache: Path) -> None:
    put(workspace, "b.ckpt", "2026-01-03", model="vanillanet_5")
    found = find(workspace, model="vanillanet_9")
    assert (found.path, found.stem) == (cache, "vanillanet_9")
    assert "published" in found.how


def test_nothing_to_take(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        find(workspace)
    assert not workspace.root.exists(), "asking makes no folder"


def test_a_missing_path(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find(workspace, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ckpt.pth", "ckpt"),
        ("run.best.ckpt", "run.best"),
        ("a.deploy.safetensors", "a"),
        ("v1.5.pt", "v1.5"),
        ("weights", "weights"),
        (".pth", ".pth"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert stem_of(Path("folder") / name) == stem


def test_require_model() -> None:
    for name in (None, "vanillanet_5", "resnet50", "swin_tiny"):
        require_model(name)
    with pytest.raises(InputError, match="unknown model 'vanillanet9'") as caught:
        require_model("vanillanet9")
    assert "vanillanet_9" in caught.value.hint
