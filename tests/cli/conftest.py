"""What the tests of the command line share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from colours import save_graph, save_images
from typer.testing import CliRunner

from vexport.cli.app import app
from vexport.model.variants import NetworkSpec
from vexport.workspace import hash_file

Invoke = Callable[..., Result]
Save = Callable[..., Path]
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def invoke(folder: Path) -> Invoke:
    """Run a command in the folder; what is not an exit is a bug and is raised."""

    def run(*args: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def refused(invoke: Invoke, folder: Path) -> Callable[..., str]:
    """Run a command that must be refused, twice; what it says on standard error."""

    def run(*args: str | Path) -> str:
        before = files_of(folder)
        result, as_json = invoke(*args), invoke(*args, "--json")
        assert (result.exit_code, as_json.exit_code) == (1, 1), result.output
        assert files_of(folder) == before
        said = result.stderr[result.stderr.index("error: ") :].splitlines()
        assert said[-1].startswith("hint: ")
        assert all(line.startswith("  ") for line in said[1:-1])
        assert "Traceback" not in result.output
        assert result.stdout == ""
        error = json.loads(as_json.stdout)["error"]
        assert f"error: {error['message']}" == said[0]
        assert f"hint: {error['hint']}" == said[-1]
        assert [f"  {line}" for line in error["details"]] == said[1:-1]
        return "\n".join(said)

    return run


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones and hidden folders included, with its hash."""
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file() or p.name.startswith(".")}
    return {str(name): hash_file(path) if path.is_file() else "folder" for name, path in found.items()}


@pytest.fixture
def state(fill: Any, small_spec: NetworkSpec) -> State:
    """A state dict of the small network, to be spoilt."""
    filled: State = fill(small_spec)
    return filled


@pytest.fixture
def save(folder: Path) -> Save:
    """Write a published-style training checkpoint into the folder."""

    def write(state: Any, name: str = "ckpt.pth", *, epoch: int = 299, legacy: bool = False, **args: Any) -> Path:
        told = {"model": "vanillanet_5", "decay_epochs": 100, "decay_linear": True, "input_size": 64, **args}
        content = {"model": state, "epoch": epoch, "args": argparse.Namespace(**told)}
        torch.save(content, folder / name, _use_new_zipfile_serialization=not legacy)
        return Path(name)

    return write


@pytest.fixture
def ckpt(save: Save, state: State) -> Path:
    """A sound checkpoint, `ckpt.pth` in the folder."""
    return save(state)


@pytest.fixture
def colours(folder: Path) -> Path:
    """A graph that tells colours apart."""
    save_graph(folder / "colours.onnx")
    return Path("colours.onnx")


@pytest.fixture
def images(folder: Path) -> Path:
    """Images of these colours, by class."""
    save_images(folder / "images")
    return Path("images")
