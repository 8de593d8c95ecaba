"""Images to calibrate on: a folder of any depth, a tar, or an array of images that are prepared already.

Whatever they come from, they have sorted names, and only the ones that are chosen are read, one at a time.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vexport.artifacts import Preprocessing
from vexport.errors import InputError, WorkspaceError
from vexport.run.images import SUFFIXES, find_images, is_image, load_image, require_sound
from vexport.run.runner import Array, times
from vexport.workspace import hash_file

ARRAYS = (".npy", ".npz")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
PREPARED = "images"  # the array of a .npz with several
# What numpy, zipfile and the decompressors raise on damaged .npy and .npz files; RuntimeError on encrypted ones.
DAMAGED_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
DAMAGED_TAR = (tarfile.TarError, OSError, ValueError, EOFError, zlib.error, lzma.LZMAError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ImageSet(Protocol):
    """Images by name."""

    @property
    def kind(self) -> str:
        """`folder`, `tar` or `array`."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, sorted."""

    def fetch(self, names: Collection[str]) -> None:
        """Make these ready to be loaded."""

    def load(self, name: str) -> Array:
        """One image, float32 (C, H, W), prepared for the network; called from several threads.

        Raises:
            InputError: it cannot be read.
        """

    def sha256(self, name: str) -> str | None:
        """Hash of its contents; None where they cannot be read."""


@contextmanager
def open_images(path: Path, preprocessing: Preprocessing) -> Iterator[ImageSet]:
    """Open images for calibration.

    Args:
        path: A folder, a .tar (compressed or not), or a .npy or .npz with float32 (N, C, H, W), prepared already.
        preprocessing: How an image of a folder or a tar becomes the network's input; its size, for an array.

    Raises:
        InputError: there is nothing, it is something else, it is damaged, or it holds no image.
        WorkspaceError: there is no space to unpack it.
    """
    require_sound(preprocessing)
    require_images_at(path)
    name = path.name.lower()
    with tempfile.TemporaryDirectory(prefix="vexport-") as scratch:
        if path.is_dir():
            yield _Folder(path, preprocessing)
        elif name.endswith(ARRAYS):
            yield _Prepared(path, preprocessing, Path(scratch))
        else:
            yield _Tar(path, preprocessing, Path(scratch))


def require_images_at(path: Path) -> None:
    """Refuse a path at which there can be no images.

    Raises:
        InputError: there is nothing, or another kind of file.
    """
    if not path.exists():
        raise InputError(f"there are no calibration images: {path} does not exist", hint=_HINT)
    if not path.is_dir() and not path.name.lower().endswith((*ARRAYS, *TARS)):
        raise InputError(f"{path} holds no calibration images", hint=_HINT)


_HINT = "give a folder of images, a .tar of them, or a .npy or .npz with float32 (images, channels, height, width)"


class _Folder:
    kind = "folder"

    def __init__(self, path: Path, preprocessing: Preprocessing) -> None:
        self._root, self._preprocessing = path, preprocessing
        self.names = tuple(file.relative_to(path).as_posix() for file in find_images(path))

    def fetch(self, names: Collection[str]) -> None:
        pass

    def load(self, name: str) -> Array:
        return load_image(self._root / name, self._preprocessing)

    def sha256(self, name: str) -> str | None:
        try:
            return hash_file(self._root / name)
        except OSError:  # a broken link, say: whoever loads it says why
            return None


class _Tar:
    """What is chosen is copied to a folder of its own, in the archive's order: a compressed one is read twice only."""

    kind = "tar"

    def __init__(self, path: Path, preprocessing: Preprocessing, scratch: Path) -> None:
        self._path, self._preprocessing, self._scratch = path, preprocessing, scratch
        self._files: dict[str, Path] = {}
        with self._open() as archive:
            found = {name for name in map(_member_name, archive) if name is not None}
        self.names = tuple(sorted(found))
        if not found:
            raise InputError(f"there is no image in {path}", hint=f"images end in {' '.join(sorted(SUFFIXES))}")

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self._path) as archive:
                yield archive
        except DAMAGED_TAR as error:
            _require_space(error, self._path, self._scratch)
            raise InputError(
                f"{self._path} is not a whole tar", details=[str(error)[:200]], hint="copy it again"
            ) from error

    def fetch(self, names: Collection[str]) -> None:
        wanted = set(names)
        with self._open() as archive:
            for number, member in enumerate(archive):
                name = _member_name(member)
                if name is None or name not in wanted:
                    continue
                content = archive.extractfile(member)
                assert content is not None
                # Under a number: a member's name may point anywhere.
                target = self._scratch / f"{number}{Path(name).suffix.lower()}"
                with target.open("wb") as copied:
                    shutil.copyfileobj(content, copied)
                self._files[name] = target  # of several of one name the last one, as tar has it

    def load(self, name: str) -> Array:
        return load_image(self._files[name], self._preprocessing)

    def sha256(self, name: str) -> str:
        return hash_file(self._files[name])


def _member_name(member: tarfile.TarInfo) -> str | None:
    """What a folder would call this image; None of anything else. `tar -C images .` puts `./` before every name."""
    name = posixpath.normpath(member.name)
    hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
    return name if member.isfile() and not hidden and is_image(posixpath.basename(name)) else None


def _require_space(error: BaseException, path: Path, scratch: Path) -> None:
    """Raises: WorkspaceError: it is not `path` that is damaged, but the disk that it is unpacked to that is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        raise WorkspaceError(
            f"no space left to unpack {path} to {scratch.parent}",
            hint=f"free some space in {scratch.parent}, or name another folder in TMPDIR",
        ) from error


class _Prepared:
    """An array that stays on disk: a .npz is unpacked first."""

    kind = "array"

    def __init__(self, path: Path, preprocessing: Preprocessing, scratch: Path) -> None:
        self._path = path
        try:
            file = _unpack(path, scratch) if path.suffix.lower() == ".npz" else path
            self._images: Array = np.load(file, mmap_mode="r", allow_pickle=False)
        except DAMAGED_ARRAY as error:
            _require_space(error, path, scratch)
            raise InputError(
                f"{path} is not a whole array of numbers", details=[str(error)[:200]], hint="save it with numpy again"
            ) from error
        found, wanted = self._images.shape, preprocessing.input_size
        if len(found) != 4 or tuple(found[1:]) != tuple(wanted):
            raise InputError(
                f"{path} holds {times(found)}, the network takes {times((None, *wanted))}",
                hint="save the images as the network takes them: resized, cropped, normalised; images come first",
            )
        if self._images.dtype != np.float32:
            real = np.issubdtype(self._images.dtype, np.floating)
            raise InputError(
                f"{path} holds {_describe_type(self._images.dtype)}, not float32",
                hint="save it again as `images.astype(np.float32)`"
                if real
                else "save normalised images as float32; pixels of 0 to 255 are not what the network takes",
            )
        if not len(self._images):
            raise InputError(f"there is no image in {path}", hint="save at least two")
        digits = len(str(len(self._images) - 1))
        self.names = tuple(f"{path.name}[{index:0{digits}}]" for index in range(len(self._images)))
        self._index = {name: index for index, name in enumerate(self.names)}

    def fetch(self, names: Collection[str]) -> None:
        pass

    def load(self, name: str) -> Array:
        image = np.array(self._images[self._index[name]])
        if not np.isfinite(image).all():
            raise InputError(f"{name} holds NaN or infinite pixels", hint="remove it")
        return image

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self._images[self._index[name]].tobytes()).hexdigest()


def _describe_type(dtype: np.dtype[Any]) -> str:
    """Its name, and the order of its bytes where that is not this machine's."""
    return dtype.name if dtype.isnative else f"{dtype.name} in another byte order ({dtype.str})"


def _unpack(path: Path, scratch: Path) -> Path:
    """The one array of a .npz, or `images` of several."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        chosen = f"{PREPARED}.npy" if f"{PREPARED}.npy" in names else names[0] if len(names) == 1 else None
        if chosen is None:
            raise ValueError(f"it has {len(names)} arrays, none of them called {PREPARED}")
        target = scratch / "images.npy"
        with archive.open(chosen) as source, target.open("wb") as copied:
            shutil.copyfileobj(source, copied)
    return target
