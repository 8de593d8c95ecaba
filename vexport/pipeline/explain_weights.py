"""What a network to explain is given as: a checkpoint in either form, or a network's name and `--weights`."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vexport.artifacts import Parent
from vexport.errors import InputError
from vexport.model.variants import VARIANTS, unknown_model
from vexport.pipeline.facts import ArtifactFacts
from vexport.pipeline.resolve import RANDOM_SEED, Weights, model_names, random_parent
from vexport.workspace import hash_file, read_manifest, require_file

if TYPE_CHECKING:
    from torch import nn

EXPORTED = {".onnx": "a graph", ".xml": "a graph", ".engine": "an engine", ".plan": "an engine"}


def is_name(given: str) -> bool:
    """Whether this is a network's name, and no file of that name lies here."""
    return not Path(given).exists() and given in model_names()


def require_network(given: str, weights: Weights | None) -> None:
    """Refuse what no maps can be made of, before anything is loaded.

    Raises:
        InputError: it is neither a checkpoint nor a name, a name without weights, or a graph or an engine.
    """
    path = Path(given)
    if is_name(given):
        if weights is None:
            raise InputError(
                f"{given} is a network's name: which weights?",
                hint="give a checkpoint, or --weights pretrained for the published ones (random only tries it out)",
            )
        return
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        near = difflib.get_close_matches(given, model_names(), n=1, cutoff=0.5)
        raise InputError(
            f"{given} is neither a file nor a network's name",
            hint=unknown_model(given, model_names()).hint if near else "give the path of a checkpoint",
        )
    require_file(path)
    if path.suffix.lower() in EXPORTED:
        raise _exported(path)


def load_weights(
    given: str, weights: Weights | None, weights_from: Literal["ema", "model"] | None
) -> tuple[nn.Module, ArtifactFacts, Parent, list[str]]:
    """The network in evaluation mode, what is known of its images and classes, where it is from, and notes.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        DownloadError: weights cannot be fetched.
    """
    if is_name(given) and weights == "random":
        note = f"{given} has random weights: its maps say nothing of a trained network"
        return *_randomized(given), random_parent(given), [note]
    if is_name(given) and given not in VARIANTS:
        from vexport.model.baselines import baseline_preprocessing, create_baseline

        module = create_baseline(given, pretrained=True)
        parent = Parent(f"{given}, its library's pretrained weights", _hash_weights(module))
        return module, ArtifactFacts(baseline_preprocessing(module), None, given), parent, []
    from vexport.model.checkpoint import load_network
    from vexport.model.published import fetch_published

    path = fetch_published(given) if is_name(given) else Path(given)
    network, loaded = load_network(path, weights_from=weights_from)
    facts = ArtifactFacts(loaded.preprocessing, loaded.class_names, loaded.spec.variant)
    return network, facts, Parent(path.name, hash_file(path)), []


def _exported(path: Path) -> InputError:
    """A graph or an engine has no gradients; the manifests say which checkpoint it comes from."""
    message = f"{path} is {EXPORTED[path.suffix.lower()]}: attention maps need the gradients of a checkpoint"
    seen, manifest = path, read_manifest(path)
    while manifest is not None and manifest.parent is not None:
        seen = seen.with_name(manifest.parent.name)
        if seen.suffix.lower() not in EXPORTED:
            there = seen.is_file() and hash_file(seen) == manifest.parent.sha256
            origin = f"it was made from {seen.name}, sha256 {manifest.parent.sha256[:12]}"
            return InputError(
                message,
                details=[origin + ("" if there else ", which does not lie beside it")],
                hint=f"give {seen if there else 'that'} instead",
            )
        manifest = read_manifest(seen)
    return InputError(message, hint="give the checkpoint that it was made from")


def _randomized(name: str) -> tuple[nn.Module, ArtifactFacts]:
    from vexport.model.baselines import baseline_preprocessing, create_baseline
    from vexport.model.build import build_network
    from vexport.model.randomize import randomize_
    from vexport.model.variants import make_spec, published_preprocessing

    module: nn.Module
    if name in VARIANTS:
        module, how = build_network(make_spec(name)), published_preprocessing(name)
    else:
        module = create_baseline(name)
        how = baseline_preprocessing(module)
    return randomize_(module, how.input_size, RANDOM_SEED), ArtifactFacts(how, None, name)


def _hash_weights(module: nn.Module) -> str:
    """SHA-256 over the names and values of a state dict: a library's weights come without a file of ours."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
