"""The public surface: a closed list, loaded lazily."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vexport

PUBLIC = [
    "BuildOptions",
    "DeepConv2d",
    "SeriesActivation",
    "VARIANTS",
    "VexportError",
    "Workspace",
    "apply_techniques",
    "build_engine",
    "check_parity",
    "evaluate",
    "export_graph",
    "fuse_checkpoint",
    "inspect_artifact",
    "load_network",
    "make_spec",
    "measure_latency",
    "merge_and_prove_network",
    "merge_techniques",
    "open_runner",
    "quantize_graph",
    "set_slope",
    "train_recipe",
]


def test_the_list_is_closed() -> None:
    assert vexport.__all__ == PUBLIC
    assert dir(vexport) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_described(name: str) -> None:
    found = getattr(vexport, name)
    if name != "VARIANTS":  # a table
        assert found.__name__ == name
        assert found.__doc__


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fuze'"):
        vexport.fuze  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, vexport; print([m for m in ('torch', 'numpy', 'onnx', 'typer', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "vexport", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vexport ")


def test_the_readme_has_no_gaps_and_names_every_command() -> None:
    from pathlib import Path

    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    assert "@@" not in readme
    for command in ("quickstart", "models", "train", "fuse", "onnx", "check", "bench"):
        assert f"vexport {command}" in readme
