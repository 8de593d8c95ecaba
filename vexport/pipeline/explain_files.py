"""The folder of an explanation: written whole, and never over what another hand wrote."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vexport.errors import WorkspaceError
from vexport.workspace import hash_file, mapped_os_errors

OWNED = "explain.files.json"  # what the last explanation wrote, by hash: that much the next one may replace


def write_folder(folder: Path, contents: Mapping[str, bytes], *, force: bool = False) -> list[Path]:
    """Write files into a folder; what an earlier explanation left there is replaced or removed.

    Args:
        folder: Made where it is missing.
        contents: Names to bytes.
        force: Replace files too that no explanation wrote, or that were changed since.

    Raises:
        WorkspaceError: such a file is in the way, or the folder cannot be written.
    """
    with mapped_os_errors(folder / OWNED):
        require_clear_folder(folder, list(contents), force=force)
        folder.mkdir(parents=True, exist_ok=True)
        before = _owned(folder)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        staged = Path(tempfile.mkdtemp(prefix=".vexport-", dir=folder))
        try:
            for name, data in contents.items():
                _write(staged / name, data)
            # The list goes first and knows the old files too: an interrupt in between leaves nothing unowned.
            for known in (_joined(before, hashes), {name: [sha256] for name, sha256 in hashes.items()}):
                _write(staged / OWNED, (json.dumps(known, indent=2) + "\n").encode())
                (staged / OWNED).replace(folder / OWNED)
                for left in sorted(staged.iterdir()):
                    left.replace(folder / left.name)
                for name in before.keys() - contents.keys():
                    _remove(folder / name, before[name])
        finally:
            for left in staged.iterdir():
                left.unlink()
            staged.rmdir()
    return [folder / name for name in contents]


def require_clear_folder(folder: Path, names: list[str], *, force: bool = False) -> None:
    """Refuse a folder that cannot be written, or in which files of these names are another's.

    Raises:
        WorkspaceError: with every such file.
    """
    if folder.exists() and not folder.is_dir():
        raise WorkspaceError(f"{folder} is a file", hint="choose another folder with --out")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise WorkspaceError(f"{above} is a file, not a folder", hint="choose another folder with --out")
    if not os.access(above, os.W_OK):
        raise WorkspaceError(f"no permission to write {folder}", hint="choose another folder with --out")
    before = _owned(folder)
    foreign = [
        folder / name
        for name in names
        if (folder / name).exists()
        and (not (folder / name).is_file() or hash_file(folder / name) not in before.get(name, ()))
    ]
    folders = [path for path in foreign if path.is_dir()]
    if folders or (foreign and not force):
        raise WorkspaceError(
            f"{foreign[0]} is in the way: vexport explain did not write it, or it was changed since",
            details=[str(path) for path in foreign[1:]],
            hint="move it, choose another folder with --out, or give --force",
        )


def _owned(folder: Path) -> dict[str, list[str]]:
    """Names to the hashes that they may have, as the last explanation left them."""
    try:
        found = json.loads((folder / OWNED).read_text(encoding="utf-8"))
        # A name that leads out of the folder was not written by us.
        return {name: list(map(str, hashes)) for name, hashes in found.items() if Path(name).name == name}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _joined(before: Mapping[str, list[str]], after: Mapping[str, str]) -> dict[str, list[str]]:
    names = {**before, **after}
    return {name: [*before.get(name, ()), *([after[name]] if name in after else ())] for name in names}


def _remove(path: Path, hashes: list[str]) -> None:
    if path.is_file() and hash_file(path) in hashes:
        path.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
