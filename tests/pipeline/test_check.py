"""`check` on engines that no machine has proven yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vexport.artifacts import Manifest, Parent
from vexport.pipeline import check, prove_engine
from vexport.pipeline.prove_engine import prove_pending
from vexport.workspace import hash_file, manifest_path, read_manifest, write_manifest

RAN = ({"result": "read back"}, {"result": "run", "with": "net.onnx"})


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A graph, and in another folder an engine of it that awaits a GPU; what needs one is replaced."""
    graph, plan = tmp_path / "graphs" / "net.onnx", tmp_path / "engines" / "net.engine"
    for path in (graph, plan):
        path.parent.mkdir()
        path.write_bytes(path.name.encode())
    facts = {"precision": "fp16", "runtime": {"name": "tensorrt-rtx", "version": "1"}, "targets": [80]}
    parity = [{"result": "not run", "reason": "no GPU"}]
    parent = Parent(graph.name, hash_file(graph))
    manifest_path(plan).touch()
    write_manifest(plan, Manifest("engine", hash_file(plan), 10, parent, {}, facts, parity=parity, versions={}))
    monkeypatch.setattr(prove_engine, "prove_engine", lambda *_: RAN)
    monkeypatch.setattr("vexport.engine.plan.open_plan", lambda *_, **__: None)
    return graph, plan


def parity_of(plan: Path) -> list[dict[str, Any]]:
    manifest = read_manifest(plan)
    assert manifest is not None
    return list(manifest.parity)


def test_a_graph_elsewhere_proves_the_engine_when_it_is_given(pair: tuple[Path, Path]) -> None:
    graph, plan = pair
    assert check._prove_first(pair, trust=False) == (("net.engine",), ())
    assert parity_of(plan) == [RAN[1]]
    assert check._prove_first(pair, trust=False) == ((), ())
    assert graph.is_file()


def test_without_its_graph_it_says_what_is_missing(pair: tuple[Path, Path]) -> None:
    graph, plan = pair
    sha256 = hash_file(graph)
    graph.write_bytes(b"another graph")
    proven, (unproven,) = check._prove_first(pair, trust=False)
    assert proven == ()
    assert f"net.onnx (sha256 {sha256[:12]}) beside it" in unproven
    assert parity_of(plan)[0]["result"] == "not run"


def test_beside_it_the_graph_is_found(pair: tuple[Path, Path]) -> None:
    graph, plan = pair
    graph.rename(plan.with_name(graph.name))
    assert isinstance(prove_pending(plan), Manifest)
    assert parity_of(plan) == [RAN[1]]


def test_an_altered_engine_is_not_what_the_evidence_is_about(pair: tuple[Path, Path]) -> None:
    _, plan = pair
    manifest = read_manifest(plan)
    assert manifest is not None
    write_manifest(plan, replace(manifest, sha256="0" * 64))
    proven, (unproven,) = check._prove_first(pair, trust=True)
    assert proven == ()
    assert "not the plan that its manifest is about" in unproven
    assert parity_of(plan)[0]["result"] == "not run"
