"""Fixtures of the benchmark's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny_bench import tiny_graph
from vexport.pipeline import bench_session
from vexport.pipeline.bench_artifacts import Artifacts, Made
from vexport.pipeline.bench_make import Maker
from vexport.workspace import Workspace, hash_file


@pytest.fixture
def out(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts are made in this process, where they can be replaced."""

    def make(*given: Any, **options: Any) -> Maker:
        return Maker(*given, **{**options, "own_process": False})

    monkeypatch.setattr(bench_session, "Maker", make)


@pytest.fixture
def made(here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """Named networks become tiny graphs; the broken one is no graph at all."""
    files: dict[str, Path] = {}

    def graph(_self: Artifacts, network: str, precision: str, _size: int) -> Made:
        path = tmp_path / "made" / f"{network}.{precision}.onnx"
        if path.exists():
            pass
        elif network == "resnet18":
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no graph")
        else:
            tiny_graph(path, 4 + len(files))
        files[path.name] = path
        return Made(path, path.name, hash_file(path), path.stat().st_size, "random", ("a note",))

    monkeypatch.setattr(Artifacts, "graph", graph)
    return files
