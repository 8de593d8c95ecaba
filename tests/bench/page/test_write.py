"""The report's folder: what is written, replaced and removed, and what is left alone."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path

import pytest

from vexport.bench.page import write_report
from vexport.errors import WorkspaceError

from .reading import Doc, small


def test_files(document: Doc, tmp_path: Path) -> None:
    written = write_report(small(document), tmp_path / "new" / "folder")
    assert [path.name for path in written[:3]] == ["report.html", "report.md", "results.csv"]
    assert all(path.is_file() for path in written)
    pictures = {path.name for path in written[3:]}
    assert len(pictures) == 12
    assert {Path(name).stem for name in pictures if name.endswith(".svg")} == {
        Path(name).stem for name in pictures if name.endswith(".png")
    }
    linked = re.findall(r"\((figures/[^)]+)\)", (tmp_path / "new/folder/report.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(f"figures/{name}" for name in pictures)


def test_again_replaces_and_removes_what_is_no_longer_drawn(document: Doc, tmp_path: Path) -> None:
    first = write_report(small(copy.deepcopy(document)), tmp_path)
    document = small(document)
    for row in document["groups"][0]["rows"]:
        row["accuracy"] = None
    second = write_report(document, tmp_path)
    gone = set(first) - set(second)
    assert len(gone) == 4
    assert not any(path.exists() for path in gone)
    assert not list(tmp_path.rglob(".vexport-*"))


def test_what_a_report_did_not_write_is_kept(document: Doc, tmp_path: Path) -> None:
    mine = tmp_path / "report.md"
    mine.write_text("my own notes", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="in the way"):
        write_report(small(document), tmp_path)
    assert mine.read_text(encoding="utf-8") == "my own notes"
    assert not (tmp_path / "report.html").exists()
    write_report(document, tmp_path, force=True)
    assert "my own notes" not in mine.read_text(encoding="utf-8")
    mine.write_text("changed by hand", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="in the way"):
        write_report(document, tmp_path)


def test_a_list_of_files_that_leads_elsewhere_deletes_nothing(document: Doc, tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("x", encoding="utf-8")
    folder = tmp_path / "report"
    folder.mkdir()
    hashes = {"../precious.txt": hashlib.sha256(b"x").hexdigest(), str(outside): hashlib.sha256(b"x").hexdigest()}
    (folder / "report.files.json").write_text(json.dumps(hashes), encoding="utf-8")
    write_report(small(document), folder)
    assert outside.exists()


def test_a_folder_that_is_a_file(document: Doc, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="not a folder"):
        write_report(small(document), tmp_path / "taken")
