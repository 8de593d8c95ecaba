"""The direction of imports, and what the command line leaves for later."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch", "timm", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxsim", "onnx_ir", "lightning", "pydantic",
    "safetensors", "sklearn", "PIL", "yaml",
}  # fmt: skip


def test_imports_go_one_way() -> None:
    pytest.importorskip("importlinter", reason="the extra `test` brings import-linter")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_only_the_root_says_where_public_names_are() -> None:
    """The package root and the timm hook stand outside the layers, so nothing in the layers may lean on them."""
    for path in sorted((ROOT / "vexport").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                assert node.module != "vexport", f"{path}: imports from the package root"


def top_level_imports(path: Path) -> set[str]:
    """Packages that a module imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "vexport" / "cli").glob("*.py")), ids=lambda path: path.name)
def test_cli_imports_nothing_heavy(path: Path) -> None:
    imports = top_level_imports(path)
    assert not {name.partition(".")[0] for name in imports} & HEAVY
    allowed = ("vexport.cli", "vexport.errors", "vexport.workspace", "vexport.artifacts", "vexport.deps")
    assert all(name.startswith(allowed) for name in imports if name.startswith("vexport"))


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, vexport.cli.app; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_is_short() -> None:
    """A module past this length is two modules."""
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "vexport").rglob("*.py")}
    assert not {str(path): length for path, length in lengths.items() if length > 400}
