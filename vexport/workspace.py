"""The folder where artifacts and their manifests live: the newest one, hashes, atomic writes.

A stage writes into a hidden folder beside its target and, once it has proven the result, moves the files to their final
names. Until then nothing stands under those names, so an interrupt or a full disk leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from vexport.artifacts import KINDS, Artifact, Manifest
from vexport.errors import InputError, WorkspaceError

DEFAULT_FOLDER = Path("vexport-out")
STALE_S = 24 * 3600
A = TypeVar("A", bound=Artifact)


def manifest_path(artifact: Path) -> Path:
    """Path of the manifest that belongs to an artifact file."""
    return artifact.with_name(artifact.name + ".json")


def external_data_path(graph: Path) -> Path:
    """Path of an ONNX graph's external data, where it has any."""
    return graph.with_name(graph.name + ".data")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, and of a graph's external data, whatever that is called; read in chunks."""
    digest = hashlib.sha256()
    for part in _parts(path):
        with part.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def size_bytes(path: Path) -> int:
    """Size of an artifact, external data included."""
    return sum(part.stat().st_size for part in _parts(path))


def _parts(path: Path) -> list[Path]:
    if path.suffix != ".onnx":
        return [path]
    data = external_data_path(path)
    return [path, *dict.fromkeys([*([data] if data.exists() else []), *_named_data(path)])]


def _named_data(graph: Path) -> list[Path]:
    """The files that a graph names as its external data, as other tools call them: those that are there."""
    if not _contains(graph, _LOCATION):
        return []
    import onnx  # seldom needed, and slow to import
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(graph, load_external_data=False)
    except (DecodeError, ValueError):  # no graph: only its own bytes count
        return []
    named = {
        entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == _LOCATION.decode()
    }
    # onnx reads no data outside the graph's folder.
    inside = [name for name in sorted(named) if not Path(name).is_absolute() and ".." not in Path(name).parts]
    return [path for path in (graph.parent / name for name in inside) if path.is_file()]


_LOCATION = b"location"  # the key under which a tensor names the file of its data


def _contains(path: Path, wanted: bytes) -> bool:
    before = b""
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            if wanted in before + chunk:
                return True
            before = chunk[1 - len(wanted) :]
    return False


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a protobuf message: weights, and those in attributes, subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(child)


def require_file(path: Path, what: str = "checkpoint") -> None:
    """Refuse a path at which there is no readable, non-empty file.

    Raises:
        InputError: it is missing, a folder, empty or unreadable.
    """
    if not path.exists():
        raise InputError(f"no such file: {path}", hint=f"give the path of a {what}")
    if not path.is_file():
        raise InputError(f"{path} is a folder", hint=f"give the path of a {what} file inside it")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if empty:
        raise InputError(f"{path} is empty", hint="copy or make it again")


def read_manifest(artifact: Path) -> Manifest | None:
    """The manifest beside an artifact; None where there is none that vexport wrote."""
    try:
        return Manifest.from_json(json.loads(manifest_path(artifact).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


def write_manifest(artifact: Path, manifest: Manifest) -> None:
    """Replace the manifest of an artifact that is already there, whole or not at all.

    Raises:
        WorkspaceError: the folder cannot be written.
    """
    target = manifest_path(artifact)
    with mapped_os_errors(target):
        descriptor, name = tempfile.mkstemp(prefix=".vexport-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(manifest.to_json(), indent=2) + "\n")
            Path(name).chmod(target.stat().st_mode)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


def load_artifact(path: Path) -> Artifact | None:
    """The artifact at `path` with its manifest; None unless vexport wrote it and it is unchanged since."""
    manifest = read_manifest(path)
    if manifest is None or manifest.kind not in KINDS or not path.is_file():
        return None
    try:
        if hash_file(path) != manifest.sha256:
            return None
    except OSError:  # unreadable: as good as changed
        return None
    return KINDS[manifest.kind](path=path, manifest=manifest)


def up_to_date(
    kind: type[A], path: Path, *, parent: str | None, options: Mapping[str, Any], versions: Mapping[str, str]
) -> A | None:
    """The artifact at `path` if the same request made it: same parent hash, options and versions, file unchanged."""
    manifest = read_manifest(path)
    if manifest is None or manifest.kind != kind.kind:
        return None
    recorded = manifest.parent.sha256 if manifest.parent else None
    if (recorded, manifest.options, manifest.versions) != (parent, dict(options), dict(versions)):
        return None
    artifact = load_artifact(path)
    if not isinstance(artifact, kind):
        return None
    with contextlib.suppress(OSError):
        os.utime(manifest_path(path))  # asked for just now: the next command takes it as the newest
    return artifact


def require_clear(target: Path, *, force: bool = False) -> str | None:
    """Refuse to write over what vexport did not write.

    Returns:
        The hash of the file that will be replaced, None where there is none.

    Raises:
        WorkspaceError: `target` or its manifest stands in the way, or cannot be read.
    """
    with mapped_os_errors(target):
        return _require_clear(target, force)


def _require_clear(target: Path, force: bool) -> str | None:
    if target.is_dir():
        raise WorkspaceError(f"{target} is a folder", hint="name a file with --output")
    if not target.exists():
        if target.suffix == ".onnx" and external_data_path(target).exists() and not force:
            raise _in_the_way(external_data_path(target), "belongs to no graph that vexport wrote")
        if manifest_path(target).exists() and read_manifest(target) is None and not force:
            raise _in_the_way(manifest_path(target), "was not written by vexport")
        return None
    current = hash_file(target)
    if force:
        return current
    manifest = read_manifest(target)
    if manifest is None:
        raise _in_the_way(target, "was not written by vexport")
    if current not in (manifest.sha256, manifest.replaces):
        raise _in_the_way(target, "was changed since vexport wrote it")
    return current


def _in_the_way(path: Path, why: str) -> WorkspaceError:
    return WorkspaceError(
        f"{path} is in the way: it {why}", hint="move it, name another file with --output, or give --force"
    )


class Staging:
    """Files under way to their final names: write to `path`, then `publish`."""

    def __init__(self, folder: Path, target: Path, replaces: str | None) -> None:
        self.path = folder / target.name
        self._target = target
        self._replaces = replaces

    def publish(self, kind: type[A], manifest: Callable[[str, int], Manifest]) -> A:
        """Move what was written to its final name, with its manifest.

        Args:
            kind: The artifact's class.
            manifest: Makes the manifest from the file's hash and size in bytes.
        """
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = replace(manifest(hash_file(self.path), size_bytes(self.path)), created=created, replaces=self._replaces)
        text = json.dumps(facts.to_json(), indent=2) + "\n"
        manifest_path(self.path).write_text(text, encoding="utf-8")
        had_data, has_data = external_data_path(self._target).exists(), external_data_path(self.path).exists()
        moves = [manifest_path(self.path), *([external_data_path(self.path)] if has_data else []), self.path]
        mode = (
            manifest_path(self.path).stat().st_mode
        )  # as the umask wants it; some libraries write for the owner alone
        for source in moves:
            source.chmod(mode)
            _sync(source)
        # The manifest goes first: it knows the old file's hash as well, so a crash in between leaves nothing unowned.
        for source in moves:
            source.replace(self._target.with_name(source.name))
        if had_data and not has_data and self._target.suffix == ".onnx":
            external_data_path(self._target).unlink()
        _sync(self._target.parent)
        return kind(path=self._target, manifest=facts)


def _sync(path: Path) -> None:
    if os.name != "posix":
        return  # only POSIX opens folders and read-only files for fsync
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def stage(target: Path, *, force: bool = False) -> Iterator[Staging]:
    """A hidden folder beside `target` to write in; whatever is not published is removed.

    Raises:
        WorkspaceError: something is in the way, the disk is full or the folder may not be written.
    """
    with mapped_os_errors(target):
        replaces = require_clear(target, force=force)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        folder = Path(tempfile.mkdtemp(prefix=".vexport-", dir=target.parent))
        try:
            yield Staging(folder, target, replaces)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left behind long ago; a folder younger than that may be another process's."""
    for left in folder.glob(".vexport-*"):
        with contextlib.suppress(OSError):
            if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)


_FULL_DISK = ("No space left", "File too large", "os error 27", "os error 28", "PytorchStreamWriter failed writing")


def _no_space(target: Path) -> WorkspaceError:
    hint = "free some space, or choose another folder with --workspace"
    return WorkspaceError(f"no space left to write {target}", hint=hint)


@contextmanager
def mapped_os_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into a WorkspaceError."""
    try:
        yield
    except WorkspaceError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_space(target) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise WorkspaceError(
                f"no permission to write {target}", hint="choose another folder with --workspace"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise WorkspaceError(
                f"{target.parent} is not a folder", hint="choose another folder with --workspace"
            ) from error
        raise
    except Exception as error:
        # torch and safetensors report a full disk as errors of their own.
        if any(sign in str(error) for sign in _FULL_DISK):
            raise _no_space(target) from error
        raise


class Workspace:
    """The folder that commands share.

    Args:
        root: Its path; made when something is first written.
    """

    def __init__(self, root: Path = DEFAULT_FOLDER) -> None:
        self.root = root

    def newest(self, kind: type[A], fits: Callable[[A], bool] = lambda _: True) -> A | None:
        """The newest artifact of a kind that fits and is unchanged since it was written, if any.

        Args:
            kind: The artifact's class.
            fits: Asked before the file is hashed.
        """
        candidates: list[tuple[int, Path, Manifest]] = []
        for beside in self.root.glob("*.json") if self.root.is_dir() else ():
            path = beside.with_suffix("")
            manifest = read_manifest(path)
            if manifest is not None and manifest.kind == kind.kind and path.is_file() and fits(kind(path, manifest)):
                candidates.append((beside.stat().st_mtime_ns, path, manifest))
        for _, path, manifest in sorted(candidates, key=lambda row: row[0], reverse=True):
            with contextlib.suppress(OSError):  # unreadable: as good as changed
                if hash_file(path) == manifest.sha256:
                    return kind(path, manifest)
        return None
