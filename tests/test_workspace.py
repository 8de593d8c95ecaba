"""The workspace: atomic writes, ownership, "up to date", the newest artifact, what the operating system refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vexport.artifacts import Artifact, Checkpoint, Graph, Manifest, Parent, Preprocessing
from vexport.errors import WorkspaceError
from vexport.workspace import (
    Workspace,
    external_data_path,
    hash_file,
    load_artifact,
    manifest_path,
    mapped_os_errors,
    read_manifest,
    require_clear,
    size_bytes,
    stage,
    up_to_date,
)

PARENT = Parent("ckpt.pth", "ab12")
OPTIONS, VERSIONS = {"batch": None}, {"torch": "2"}
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def describe(kind: str = "graph", **facts: Any) -> Callable[[str, int], Manifest]:
    return lambda sha256, size: Manifest(kind, sha256, size, PARENT, dict(OPTIONS), facts, versions=dict(VERSIONS))


def write(target: Path, text: str, *, data: str | None = None, force: bool = False, **facts: Any) -> Graph:
    with stage(target, force=force) as staging:
        staging.path.write_text(text)
        if data is not None:
            external_data_path(staging.path).write_text(data)
        return staging.publish(Graph, describe(**facts))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "net.onnx"


def test_publish(target: Path) -> None:
    graph = write(target, "hello", model="resnet50")
    assert names(target.parent) == {"net.onnx", "net.onnx.json"}
    assert target.read_text() == "hello"
    manifest = read_manifest(target)
    assert manifest == graph.manifest
    assert manifest is not None
    assert (manifest.sha256, manifest.size_bytes, manifest.replaces) == (HELLO, 5, None)
    assert manifest.created.endswith("+00:00")
    assert graph.model == "resnet50"
    assert graph.as_parent() == Parent("net.onnx", HELLO)
    assert load_artifact(target) == graph


def test_nothing_stands_under_the_final_name_before(target: Path) -> None:
    with stage(target) as staging:
        staging.path.write_text("half")
        assert staging.path.parent.parent == target.parent, "a rename must not cross file systems"
        assert not target.exists()
    assert names(target.parent) == set()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(target: Path, error: type[BaseException]) -> None:
    before = write(target, "old")

    def fail() -> None:
        with stage(target) as staging:
            staging.path.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(target.parent) == {"net.onnx", "net.onnx.json"}
    assert load_artifact(target) == before


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_crash_between_the_renames_loses_no_ownership(
    target: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    write(target, "old")
    moves, rename = iter(range(survived)), Path.replace

    def crashing(self: Path, to: Path) -> Path:
        if next(moves, None) is None:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", crashing)
    if survived < 2:
        with pytest.raises(KeyboardInterrupt):
            write(target, "new")
    else:
        write(target, "new")
    monkeypatch.undo()
    require_clear(target)
    assert target.read_text() == ("new" if survived == 2 else "old")
    assert (load_artifact(target) is None) == (survived == 1), "a manifest of another file makes no artifact"
    write(target, "newer")
    assert load_artifact(target) is not None


def test_replaces_names_the_old_file(target: Path) -> None:
    old, new = write(target, "old"), write(target, "new")
    assert new.manifest.replaces == old.sha256


def test_external_data_moves_along(target: Path) -> None:
    graph = write(target, "graph", data="weights")
    assert names(target.parent) == {"net.onnx", "net.onnx.data", "net.onnx.json"}
    assert graph.manifest.size_bytes == size_bytes(target) == 12
    external_data_path(target).write_text("WEIGHTS")
    assert hash_file(target) != graph.sha256
    assert load_artifact(target) is None


def graph_with(folder: Path, location: str, values: float = 1.0, *, where: str = "initializer") -> Path:
    """A graph whose weight is in a file of its own."""
    weight = numpy_helper.from_array(np.full(4, values, np.float32), "w")
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    (folder / location).write_bytes(weight.raw_data)
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["w"], value=weight) if where != "initializer" else None
    inner = helper.make_graph([constant] if constant else [], "inner", [], [], [] if constant else [weight])
    branch = helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([branch], "outer", [], []) if where == "subgraph" else inner
    (folder / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return folder / "net.onnx"


@pytest.mark.parametrize("location", ["weights.bin", "net.onnx_data", "net.onnx.data", "parts/a.bin"])
@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
def test_external_data_counts_whatever_it_is_called(tmp_path: Path, location: str, where: str) -> None:
    graph = graph_with(tmp_path, location, where=where)
    before = hash_file(graph)
    assert size_bytes(graph) == graph.stat().st_size + 16
    (tmp_path / location).write_bytes(np.full(4, 2, np.float32).tobytes())
    changed = hash_file(graph)
    assert changed != before
    (tmp_path / location).unlink()
    assert hash_file(graph) not in (before, changed)


def test_data_outside_the_graphs_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for location in ("../outside.bin", str(tmp_path / "absolute.bin")):
        graph = graph_with(folder, location)
        assert hash_file(graph) == hashlib.sha256(graph.read_bytes()).hexdigest()


def test_what_is_no_graph_is_hashed_as_it_is(tmp_path: Path) -> None:
    """Even where it speaks of locations, at the very edge of two chunks."""
    for name, content in (
        ("no.onnx", b"location"),
        ("far.onnx", b"x" * ((1 << 22) - 3) + b"location"),
        ("e.onnx", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert hash_file(tmp_path / name) == hashlib.sha256(content).hexdigest()


def test_a_location_at_the_edge_of_two_chunks_is_found(tmp_path: Path) -> None:
    graph = graph_with(tmp_path, "weights.bin")
    model = onnx.load(graph, load_external_data=False)
    # The text before it moves the word over the edge, one byte at a time.
    base = graph.read_bytes().index(b"location")
    for shift in (1, 4, 8):
        model.producer_name = "x" * ((1 << 22) - base - shift - 5)
        content = model.SerializeToString()
        graph.write_bytes(content)
        assert (1 << 22) - 8 <= content.index(b"location") <= (1 << 22)
        assert size_bytes(graph) == len(content) + 16


def test_external_data_goes_with_the_graph_that_had_it(target: Path) -> None:
    write(target, "graph", data="weights")
    graph = write(target, "small")
    assert names(target.parent) == {"net.onnx", "net.onnx.json"}
    assert load_artifact(target) == graph


def test_require_clear(target: Path) -> None:
    assert require_clear(target) is None
    graph = write(target, "hello")
    assert require_clear(target) == graph.sha256
    target.write_text("changed")
    with pytest.raises(WorkspaceError, match="was changed since vexport wrote it"):
        require_clear(target)
    assert require_clear(target, force=True) == hash_file(target)


@pytest.mark.parametrize("text", [None, "{}", "not json", '{"tool": "other", "schema": 1}', "[]"])
def test_a_file_without_our_manifest_is_in_the_way(target: Path, text: str | None) -> None:
    target.parent.mkdir()
    target.write_text("somebody's")
    if text is not None:
        manifest_path(target).write_text(text)
    with pytest.raises(WorkspaceError, match=r"net\.onnx is in the way: it was not written by vexport") as caught:
        write(target, "mine")
    assert "--force" in caught.value.hint
    assert target.read_text() == "somebody's"
    write(target, "mine", force=True)
    assert load_artifact(target) is not None


def test_a_foreign_manifest_is_in_the_way(target: Path) -> None:
    target.parent.mkdir()
    manifest_path(target).write_text("{}")
    with pytest.raises(WorkspaceError, match=r"net\.onnx\.json is in the way"):
        require_clear(target)
    assert require_clear(target, force=True) is None


def test_a_folder_is_never_replaced(target: Path) -> None:
    target.mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(WorkspaceError, match="is a folder"):
            require_clear(target, force=force)


def test_up_to_date(target: Path) -> None:
    graph = write(target, "hello")

    def ask(kind: type[Artifact] = Graph, parent: str | None = "ab12", **changed: Any) -> Artifact | None:
        asked = {"options": OPTIONS, "versions": VERSIONS} | changed
        return up_to_date(kind, target, parent=parent, **asked)

    assert ask() == graph
    assert ask(parent="cd34") is None
    assert ask(parent=None) is None
    assert ask(options={"batch": 2}) is None
    assert ask(options={}) is None
    assert ask(versions={"torch": "3"}) is None
    assert ask(Checkpoint) is None
    target.write_text("altered")
    assert ask() is None
    target.unlink()
    assert ask() is None


def test_up_to_date_needs_a_manifest(target: Path) -> None:
    write(target, "hello")
    manifest_path(target).unlink()
    assert up_to_date(Graph, target, parent="ab12", options=OPTIONS, versions=VERSIONS) is None


def at(target: Path, created: str) -> None:
    """Give an artifact a date."""
    manifest = read_manifest(target)
    assert manifest is not None
    manifest_path(target).write_text(json.dumps(replace(manifest, created=created).to_json()))
    when = datetime.fromisoformat(created).timestamp()
    os.utime(manifest_path(target), (when, when))


def test_newest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.newest(Graph) is None
    for name, created in (("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")):
        write(tmp_path / f"{name}.onnx", name, model=name)
        at(tmp_path / f"{name}.onnx", created)

    def newest(fits: Callable[[Graph], bool] = lambda _: True) -> str | None:
        found = workspace.newest(Graph, fits)
        return found.model if found else None

    assert newest() == "b"
    assert newest(lambda graph: graph.model != "b") == "a"
    assert newest(lambda _: False) is None
    assert workspace.newest(Checkpoint) is None
    (tmp_path / "b.onnx").write_text("altered")
    assert newest() == "a"
    (tmp_path / "a.onnx").unlink()
    assert newest() == "c"


def test_what_was_up_to_date_just_now_is_the_newest(tmp_path: Path) -> None:
    for name, created in (("a", "2026-01-01"), ("b", "2026-01-02")):
        write(tmp_path / f"{name}.onnx", name, model=name)
        at(tmp_path / f"{name}.onnx", created)
    manifest = read_manifest(tmp_path / "a.onnx")
    assert manifest is not None
    parent = manifest.parent.sha256 if manifest.parent else None
    assert up_to_date(Graph, tmp_path / "a.onnx", parent=parent, options=manifest.options, versions=manifest.versions)
    found = Workspace(tmp_path).newest(Graph)
    assert found is not None
    assert found.model == "a"


def test_no_folder_has_nothing(tmp_path: Path) -> None:
    assert Workspace(tmp_path / "none").newest(Graph) is None


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "no space left"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.ENOTDIR, "is not a folder"),
        (errno.EEXIST, "is not a folder"),
    ],
)
def test_refusals_of_the_operating_system(target: Path, code: int, says: str) -> None:
    with pytest.raises(WorkspaceError, match=says) as caught, mapped_os_errors(target):
        raise OSError(code, os.strerror(code))
    assert isinstance(caught.value, OSError)
    assert caught.value.hint


def test_other_errors_pass(target: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as caught, mapped_os_errors(target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, WorkspaceError)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(WorkspaceError, match="is not a folder"):
        write(tmp_path / "out" / "net.onnx", "hello")


def test_manifest_goes_to_json_and_back() -> None:
    manifest = replace(describe("bench", rows=[1])("ab", 2), parity=[{"passed": True}], created="now", replaces="cd")
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    with pytest.raises(ValueError, match="not a vexport manifest"):
        Manifest.from_json({**manifest.to_json(), "schema": 2})
    with pytest.raises(ValueError, match="not a vexport manifest"):
        Manifest.from_json({**manifest.to_json(), "colour": "red"})


def test_preprocessing_goes_to_json_and_back() -> None:
    preprocessing = Preprocessing((1, 32, 48), (0.3,), (0.4,), 1.0, "bilinear")
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
