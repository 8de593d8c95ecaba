"""The published weights: where they are, and a checked copy in the torch hub cache."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import torch

from vexport.errors import DownloadError
from vexport.model.variants import get_variant
from vexport.workspace import hash_file

RELEASE = "https://github.com/huawei-noah/VanillaNet/releases/download/ckpt"


def published_url(name: str) -> str:
    """Address of a variant's published checkpoint.

    Raises:
        InputError: there is no such variant.
    """
    get_variant(name)
    return f"{RELEASE}/{name}.pth"


def fetch_published(name: str) -> Path:
    """The published checkpoint of a variant, from the torch hub cache or downloaded into it.

    The authors publish no hashes: the hash of the first download is kept beside the file, and a cached file that has
    changed since is refused. That the tensors are the variant's is checked when they are loaded.

    Raises:
        InputError: there is no such variant.
        DownloadError: it cannot be fetched, or the cached copy was changed.
    """
    url = published_url(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pth"
    noted = path.with_name(path.name + ".sha256")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except (URLError, OSError, RuntimeError) as error:
            raise DownloadError(
                f"the published weights of {name} cannot be downloaded",
                details=[f"{url}: {getattr(error, 'reason', error)}"],
                hint=f"give a checkpoint's path, or --weights random; or put the file at {path}",
            ) from error
    if not noted.exists():
        noted.write_text(hash_file(path) + "\n", encoding="ascii")
    elif noted.read_text(encoding="ascii").strip() != hash_file(path):
        raise DownloadError(f"{path} has changed since it was downloaded", hint="remove it to download it again")
    return path
