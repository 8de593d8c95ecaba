"""Which weights a command works on: an explicit path, `--weights`, the workspace's newest, the published ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vexport.artifacts import Checkpoint, Parent
from vexport.errors import InputError
from vexport.model.variants import VARIANTS, unknown_model
from vexport.workspace import Workspace, hash_file, require_file

Weights = Literal["pretrained", "random"]
RANDOM_SEED = 0


@dataclass(frozen=True)
class WeightSource:
    """Where weights come from.

    Args:
        path: The checkpoint; None for random weights.
        stem: What files made from it are called.
        parent: Its name and hash, for manifests.
        how: Why it was taken, in words.
    """

    path: Path | None
    stem: str
    parent: Parent
    how: str


def model_names() -> list[str]:
    """Every name that `--model` takes."""
    from vexport.model.baselines import BASELINES

    return [*VARIANTS, *BASELINES]


def require_model(name: str | None) -> None:
    """Refuse a name that no table has.

    Raises:
        InputError: with a did-you-mean.
    """
    if name is not None and name not in model_names():
        raise unknown_model(name, model_names())


def stem_of(path: Path) -> str:
    """A file's name without the suffixes that vexport or torch give."""
    stem = path.name
    for suffix in (
        ".tar",
        ".safetensors",
        ".pth",
        ".pt",
        ".ckpt",
        ".bin",
        ".onnx",
        ".deploy",
        ".fp16",
        ".bf16",
        ".int8",
        ".int8-depthwise",
    ):
        stem = stem.removesuffix(suffix)
    return stem or path.name


def random_parent(model: str) -> Parent:
    """The parent of what is made from seeded random weights."""
    text = f"{model}, random weights, seed {RANDOM_SEED}"
    return Parent(text, hashlib.sha256(text.encode()).hexdigest())


def find_weights(
    path: Path | None,
    *,
    weights: Weights | None,
    model: str | None,
    workspace: Workspace,
    accept_deployed: bool,
) -> WeightSource:
    """Find the checkpoint that a command works on.

    Args:
        path: What the user named, if anything.
        weights: `pretrained` or `random`, if asked for.
        model: The variant, if asked for.
        workspace: Where the newest fitting checkpoint is looked for.
        accept_deployed: Whether a checkpoint in deployed form fits.

    Raises:
        InputError: nothing is named and nothing fits.
        DownloadError: the published weights are needed and cannot be had.
    """
    if path is not None:
        if weights is not None:
            raise InputError("a path and --weights exclude each other", hint="leave one of them out")
        return _from_file(path, str(path))
    if weights is not None and model is None:
        raise InputError(
            f"--weights {weights} needs a network", hint="name it with --model; `vexport models` lists them"
        )
    if weights == "random":
        assert model is not None
        # A name of their own: they never pass for trained weights, nor overwrite them.
        return WeightSource(None, f"{model}.random", random_parent(model), f"seeded random weights of {model}")
    if weights is None:
        found = _newest(workspace, model, accept_deployed)
        if found is not None:
            return WeightSource(
                found.path, stem_of(found.path), found.as_parent(), f"{found.path}, the newest that fits"
            )
    if model is None:
        raise InputError(
            f"there is no checkpoint in {workspace.root} to take",
            hint="give a checkpoint's path, or a network with --model",
        )
    from vexport.model.published import fetch_published

    published = fetch_published(model)
    return _from_file(published, f"{published}, the published weights of {model}")


def _from_file(path: Path, how: str) -> WeightSource:
    require_file(path)
    return WeightSource(path, stem_of(path), Parent(path.name, hash_file(path)), how)


def _newest(workspace: Workspace, model: str | None, accept_deployed: bool) -> Checkpoint | None:
    """The newest fitting checkpoint, a `.last.ckpt` only where there is no other; never random weights."""

    def fits(checkpoint: Checkpoint) -> bool:
        forms = ("training", "deployed") if accept_deployed else ("training",)
        trained = checkpoint.facts.get("weights") != "random"
        return trained and checkpoint.form in forms and model in (None, checkpoint.model)

    best = workspace.newest(Checkpoint, lambda found: fits(found) and not found.path.name.endswith(".last.ckpt"))
    return best or workspace.newest(Checkpoint, fits)
