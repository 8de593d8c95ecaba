"""Checkpoint to deployed checkpoint: load, merge, prove, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vexport.artifacts import Checkpoint, Manifest, Parent
from vexport.deps import tool_versions
from vexport.errors import FusionError, InputError
from vexport.model.variants import VARIANTS
from vexport.pipeline.resolve import RANDOM_SEED, Weights, WeightSource, find_weights, random_parent, require_model
from vexport.workspace import Workspace, require_clear, stage, up_to_date

if TYPE_CHECKING:
    from torch import Tensor

    from vexport.model.checkpoint import LoadedCheckpoint
    from vexport.model.prove import ProvenMerge

Format = Literal["safetensors", "pth"]
IMAGES_USED = 4  # of a folder: each is evaluated four times in float64
PROOF_SIDE = 128  # of random images, at the most


@dataclass(frozen=True)
class FuseResult:
    """A deployed checkpoint and how it came about.

    Args:
        artifact: The deployed checkpoint; its manifest holds the blocks' report and the parity.
        took: Which weights were taken, in words.
        up_to_date: Whether it was there already.
        notes: What the reader should know.
    """

    artifact: Checkpoint
    took: str
    up_to_date: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.artifact.path),
            "took": self.took,
            "up_to_date": self.up_to_date,
            "notes": list(self.notes),
            "manifest": self.artifact.manifest.to_json(),
        }


def fuse_checkpoint(
    checkpoint: Path | None = None,
    *,
    workspace: Workspace,
    model: str | None = None,
    weights: Weights | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    images: Path | None = None,
    file_format: Format = "safetensors",
    output: Path | None = None,
    assume_slope_1: bool = False,
    force: bool = False,
    on_block: Callable[[str, int], None] = lambda _name, _count: None,
) -> FuseResult:
    """Merge the training form of a checkpoint into the deployed network, prove it, and write it.

    Args:
        checkpoint: The file; None takes the newest of the workspace, then the published weights of `model`.
        workspace: Where the result goes, unless `output` says otherwise.
        model: The variant; it must agree with the file.
        weights: `pretrained` or `random` in place of a file.
        weights_from: `ema` or `model`; None prefers the EMA.
        images: A folder of images to prove it on, besides random ones.
        file_format: `safetensors`, or `pth` for the reference's deployed format.
        output: The file to write.
        assume_slope_1: Merge although the slope is known to be below 1.
        force: Overwrite a file that vexport did not write.
        on_block: Told each block that is done, and how many there are.

    Raises:
        VexportError: see the tree in errors.py; nothing has been written then.
    """
    require_model(model)
    if model is not None and model not in VARIANTS:
        raise InputError(f"{model} is a baseline: it has nothing to merge", hint=f"vexport onnx --model {model}")
    source = find_weights(checkpoint, weights=weights, model=model, workspace=workspace, accept_deployed=False)
    target = output or workspace.root / f"{source.stem}.deploy.{file_format}"
    if source.path is not None and target.resolve() == source.path.resolve():
        return _already_deployed(source, model)
    _require_suffix(output, file_format)
    options = {
        "model": model,
        "from": weights_from,
        "images": _fingerprint(images),
        "format": file_format,
        "assume_slope_1": assume_slope_1,
    }
    versions = tool_versions("torch", "safetensors")
    done = up_to_date(Checkpoint, target, parent=source.parent.sha256, options=options, versions=versions)
    if done is not None:
        return FuseResult(done, source.how, True, tuple(done.facts["notes"]))
    require_clear(target, force=force)

    loaded = load_source(source, model=model, weights_from=weights_from)
    tensors, facts, parity = _deployed(loaded, images, assume_slope_1, on_block)
    if source.path is None:
        facts["weights"] = "random"
    with stage(target, force=force) as staging:
        write_deployed(staging.path, tensors, loaded, file_format, source.parent)
        artifact = staging.publish(
            Checkpoint,
            lambda sha256, size: Manifest(
                "checkpoint", sha256, size, source.parent, options, facts, parity=parity, versions=versions
            ),
        )
    return FuseResult(artifact, source.how, False, tuple(facts["notes"]))


def _require_suffix(output: Path | None, file_format: Format) -> None:
    """Refuse a name that would be read back as another format."""
    suffixes = (".safetensors",) if file_format == "safetensors" else (".pth", ".pt")
    if output is not None and output.suffix not in suffixes:
        raise InputError(
            f"{output} does not end in {' or '.join(suffixes)}", hint="name it so, or choose the other --format"
        )


def load_source(
    source: WeightSource, *, model: str | None, weights_from: Literal["ema", "model"] | None = None
) -> LoadedCheckpoint:
    """The tensors of a source: read from its file, or drawn from the seed."""
    from vexport.model.checkpoint import LoadedCheckpoint, load_checkpoint

    if source.path is not None:
        return load_checkpoint(source.path, model=model, weights_from=weights_from)
    from vexport.model.build import build_network
    from vexport.model.randomize import randomize_
    from vexport.model.variants import make_spec, published_preprocessing

    assert model is not None
    spec, preprocessing = make_spec(model), published_preprocessing(model)
    network = randomize_(build_network(spec), preprocessing.input_size, RANDOM_SEED)
    return LoadedCheckpoint(
        path=Path(random_parent(model).name),
        spec=spec,
        form="training",
        tensors=dict(network.state_dict()),
        source="model",
        slope=1.0,
        slope_origin="random weights",
        preprocessing=preprocessing,
        class_names=None,
        epoch=None,
    )


def _deployed(
    loaded: LoadedCheckpoint, images: Path | None, assume_slope_1: bool, on_block: Callable[[str, int], None]
) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """The deployed tensors, the facts about them and their proof."""
    slope, notes = require_mergeable(loaded, assume_slope_1)
    facts: dict[str, Any] = {
        "model": loaded.spec.variant,
        "form": "deployed",
        "network": loaded.spec.to_json(),
        "weights": loaded.source,
        "slope": slope,
        "preprocessing": loaded.preprocessing.to_json(),
        "class_names": list(loaded.class_names) if loaded.class_names else None,
        "notes": notes,
        "blocks": [],
    }
    if loaded.form == "deployed":
        what = "has nothing to merge" if _has_nothing_to_merge(loaded) else "is deployed already"
        notes.append(f"the file {what}: its tensors were carried over unchanged")
        if loaded.activation_ranges is not None:
            facts["activation_ranges"] = loaded.activation_ranges
            notes.append("it was trained for INT8: its activation ranges were carried over too")
        return {name: tensor.float().contiguous() for name, tensor in loaded.tensors.items()}, facts, []
    proven = _merge(loaded, _inputs(loaded, images), on_block)
    facts["blocks"] = [block.to_json() for block in proven.blocks]
    return proven.tensors, facts, list(proven.parity)


def _has_nothing_to_merge(loaded: LoadedCheckpoint) -> bool:
    """Whether it is a network of an ablation without either technique."""
    from vexport.model.ablation import AblationSpec

    return isinstance(loaded.spec, AblationSpec) and loaded.spec.techniques == "none"


def _merge(loaded: LoadedCheckpoint, inputs: dict[str, Tensor], on_block: Callable[[str, int], None]) -> ProvenMerge:
    from vexport.model.ablation import AblationSpec
    from vexport.model.checkpoint import to_network
    from vexport.model.prove import merge_and_prove
    from vexport.model.prove_techniques import merge_and_prove_network
    from vexport.model.techniques import technique_modules

    if isinstance(loaded.spec, AblationSpec):
        network = to_network(loaded.spec, loaded.form, loaded.tensors, slope=1.0)
        count = len(list(technique_modules(network))) + 1
        return merge_and_prove_network(network, inputs, on_block=lambda name: on_block(name, count))
    count = len(loaded.spec.dims) + 1
    return merge_and_prove(loaded.tensors, loaded.spec, inputs, on_block=lambda name: on_block(name, count))


def require_mergeable(loaded: LoadedCheckpoint, assume_slope_1: bool = False) -> tuple[str, list[str]]:
    """The slope as the manifest states it, with notes.

    Raises:
        FusionError: the slope is known to be below 1.
    """
    if loaded.slope == 1.0:
        return "1", []
    if loaded.slope is None:
        return "assumed 1", [f"the slope was assumed to be 1: {loaded.slope_origin}"]
    if assume_slope_1:
        return "assumed 1", [f"the slope was assumed to be 1 although it is {loaded.slope:g} ({loaded.slope_origin})"]
    raise FusionError(
        f"the activation slope is {loaded.slope:.6g}: the layers are not yet linear",
        details=[f"{loaded.path.name}: {loaded.slope_origin}"],
        hint="fuse a checkpoint from after deep training (slope 1), or give --assume-slope-1",
    )


def _inputs(loaded: LoadedCheckpoint, images: Path | None) -> dict[str, Tensor]:
    """Random images, and real ones where given, (N, C, H, W) each."""
    import torch

    from vexport.model.randomize import image_like

    channels, height, width = loaded.preprocessing.input_size
    if not loaded.spec.fixed_size and min(height, width) > PROOF_SIDE:
        # The algebra does not depend on the size, the cost does; real images are taken at their full size.
        height = width = PROOF_SIDE
    # A small network is proven on more images at the cost of one large one.
    count = max(1, min(8, PROOF_SIDE**2 // (height * width)))
    inputs = {"random": image_like(count, (channels, height, width), seed=1)}
    if images is not None:
        from vexport.run.images import load_images

        inputs["images"] = torch.from_numpy(load_images(images, loaded.preprocessing, limit=IMAGES_USED))
    return inputs


def _fingerprint(images: Path | None) -> str | None:
    """Changes when an image of the folder does."""
    if images is None:
        return None
    from vexport.run.images import find_images

    found: Sequence[Path] = find_images(images)
    listing = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def write_deployed(
    path: Path, tensors: dict[str, Tensor], loaded: LoadedCheckpoint, file_format: Format, parent: Parent
) -> None:
    """Write deployed tensors: safetensors, or the reference's `{"model": state_dict}`; both with our facts."""
    facts = {
        "network": loaded.spec.to_json(),
        "preprocessing": loaded.preprocessing.to_json(),
        "class_names": loaded.class_names,
        "source": loaded.source,
        "parent": {"name": parent.name, "sha256": parent.sha256},
    }
    if loaded.activation_ranges is not None:
        facts["activation_ranges"] = loaded.activation_ranges
    if file_format == "pth":
        import torch

        torch.save({"model": tensors, "vexport": json.loads(json.dumps(facts))}, path)
        return
    from safetensors.torch import save_file

    # One entry only: safetensors writes several in an order that differs from run to run, and with it the hash.
    save_file(tensors, path, metadata={"vexport": json.dumps(facts)})


def _already_deployed(source: WeightSource, model: str | None) -> FuseResult:
    """The answer for a deployed file that would be written over itself."""
    from vexport.workspace import load_artifact

    assert source.path is not None
    loaded = load_source(source, model=model)
    if loaded.form != "deployed":
        raise InputError(f"{source.path} cannot be written over itself", hint="name another file with --output")
    known = load_artifact(source.path)
    facts = {
        "model": loaded.spec.variant,
        "form": "deployed",
        "network": loaded.spec.to_json(),
        "blocks": [],
        "notes": [],
    }
    manifest = Manifest("checkpoint", source.parent.sha256, source.path.stat().st_size, None, {}, facts)
    artifact = known if isinstance(known, Checkpoint) else Checkpoint(source.path, manifest)
    return FuseResult(artifact, source.how, True, ("the file is deployed already: there is nothing to merge",))
