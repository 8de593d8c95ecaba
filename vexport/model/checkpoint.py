"""From a checkpoint file to weights that fit: which network it is, whether every tensor belongs, and its slope."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vexport.artifacts import Preprocessing
from vexport.errors import CheckpointError
from vexport.model.ablation import AblationNetwork, AblationSpec
from vexport.model.build import Form, Network, Spec, build_network, conv_names, expected_shapes, read_spec
from vexport.model.slope import slope_at
from vexport.model.variants import VARIANTS, NetworkSpec, get_variant, published_preprocessing
from vexport.model.weights_file import LISTED, Source, WeightsFile, read_weights

INCEPTION = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint whose tensors are all there, have the right shapes and are finite.

    Args:
        path: The file.
        spec: Which network it is.
        form: `training` or `deployed`.
        tensors: Published name to tensor, in the order of the state dict.
        source: `ema` or `model`.
        slope: Slope of A'; None where the file does not say.
        slope_origin: Where the slope comes from, in words.
        preprocessing: How its images are prepared.
        class_names: Names of the classes, where the file says.
        epoch: Completed epochs, where the file says.
        activation_ranges: After quantisation-aware training: the largest magnitude that INT8 shall hold of what each
            convolution takes, by the convolution's name.
    """

    path: Path
    spec: Spec
    form: Form
    tensors: dict[str, Tensor]
    source: Source
    slope: float | None
    slope_origin: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    epoch: float | None
    activation_ranges: dict[str, float] | None = None


def load_checkpoint(path: Path, *, model: str | None = None, weights_from: Source | None = None) -> LoadedCheckpoint:
    """Read a checkpoint, work out which network it is, and check every tensor.

    Args:
        path: .pth, .pt, .ckpt (zip or legacy) or .safetensors.
        model: The variant it must be; it decides where the tensors leave two.
        weights_from: Which weights to take; None prefers the EMA.

    Raises:
        InputError: there is no readable file, or no such variant.
        CheckpointError: it is not a VanillaNet, not that variant, tensors are missing, unexpected or misshapen, values
            are not finite, or it was trained for INT8 and a range is missing.
    """
    if model is not None:
        get_variant(model)
    file = read_weights(path, source=weights_from)
    own = _own_spec(path, file, model)
    form = _ablation_form(file.tensors, own) if isinstance(own, AblationSpec) else _form(path, file.tensors)
    spec = own or infer_spec(path, file, form, model)
    tensors = _fitting(path, file.tensors, spec, form)
    _require_sound(path, tensors)
    slope, origin = _slope(file, form)
    _require_one_slope(path, tensors, slope)
    names = file.facts.get("class_names")
    return LoadedCheckpoint(
        path=path,
        spec=spec,
        form=form,
        tensors=tensors,
        source=file.source,
        slope=slope,
        slope_origin=origin,
        preprocessing=_preprocessing(file, spec),
        class_names=tuple(names) if names else None,
        epoch=file.epoch,
        activation_ranges=_activation_ranges(path, file, spec) if form == "deployed" else None,
    )


def load_network(
    path: Path, *, model: str | None = None, weights_from: Source | None = None
) -> tuple[Network, LoadedCheckpoint]:
    """The network of a checkpoint, float32, in evaluation mode, in the form that the file has.

    Raises:
        InputError, CheckpointError: as `load_checkpoint`.
    """
    loaded = load_checkpoint(path, model=model, weights_from=weights_from)
    return to_network(loaded.spec, loaded.form, loaded.tensors, slope=loaded.slope), loaded


def to_network(spec: Spec, form: Form, tensors: Mapping[str, Tensor], *, slope: float | None = None) -> Network:
    """A network around tensors that fit it; float32 tensors are shared, others converted."""
    with torch.device("meta"):
        network: Network = build_network(spec, form=form)
    if not isinstance(network, AblationNetwork):  # which has it among its tensors
        network.slope = torch.tensor(1.0)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    # These are set below, and the caller's stay as they are.
    state |= {name: tensor.clone() for name, tensor in state.items() if name.endswith(".slope")}
    network.load_state_dict(state, strict=True, assign=True)
    if slope is not None:
        network.set_slope(slope)
    return network.requires_grad_(False).eval()


def _form(path: Path, tensors: Mapping[str, Tensor]) -> Form:
    tops = {name.split(".")[0] for name in tensors}
    training, deployed = tops & {"stem1", "stem2", "cls1", "cls2"}, tops & {"stem", "cls"}
    if training and not deployed:
        return "training"
    if deployed and not training and "stages" in tops:
        return "deployed"
    raise CheckpointError(
        f"{path} is not a VanillaNet checkpoint",
        details=[f"its tensors: {', '.join(list(tensors)[:LISTED])} ..."] if tensors else (),
        hint="VanillaNet's tensors are stem1, stem2, stages, cls1 and cls2, or stem, stages and cls once deployed",
    )


def _ablation_form(tensors: Mapping[str, Tensor], spec: AblationSpec) -> Form:
    """The training form has tensors that the deployed one lacks; without techniques there is nothing to merge."""
    telling = set(expected_shapes(spec, "training")) - set(expected_shapes(spec, "deployed"))
    return "training" if telling & set(tensors) else "deployed"


def _own_spec(path: Path, file: WeightsFile, model: str | None) -> Spec | None:
    """The network that our own file names; its tensors are checked against it like any others."""
    if "network" not in file.facts:
        return None
    try:
        spec = read_spec(file.facts["network"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the description of the network in {path} is damaged", hint="write the file anew"
        ) from error
    if model not in (None, spec.variant):
        raise _wrong_variant(path, [spec.variant], str(model))
    return spec


def infer_spec(path: Path, file: WeightsFile, form: Form, model: str | None = None) -> NetworkSpec:
    """Work a network's numbers out from its tensors. Shapes vote, so that one damaged tensor cannot mislead.

    Raises:
        CheckpointError: no variant has these widths, `model` is another one, or two variants fit and nothing decides.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    depth = 1 + max(
        (int(n.split(".")[1]) for n in shapes if n.startswith("stages.") and n.split(".")[1].isdigit()), default=-1
    )
    dims = [_vote(_width_votes(shapes, form, index, depth)) for index in range(depth + 1)]
    head = "cls2.0" if form == "training" else "cls.2"
    classes = _vote(
        _axis(shapes, (f"{head}.weight", f"{head}.bias", "cls1.2.weight", "cls1.2.bias", "cls1.3.weight"), 0)
    )
    stem = "stem1.0.weight" if form == "training" else "stem.0.weight"
    kernels = (shape[-1] for name, shape in shapes.items() if len(shape) == 4 and shape[1] == 1 and "act" in name)
    stem_kernels = _axis(shapes, ("stem2.2.weight", "stem.1.weight"), -1)
    kernel = _vote([*kernels, *stem_kernels])
    names = _candidates(dims)
    if not names:
        widths = " ".join("?" if dim is None else str(dim) for dim in dims)
        raise CheckpointError(
            f"no variant has the widths of {path}",
            details=[f"widths: {widths}"],
            hint="`vexport models` lists the variants; other widths must be a variant's, times one factor",
        )
    name = _decide(path, names, file.args.get("model"), model)
    variant = VARIANTS[name]
    width = next(dim / base for dim, base in zip(dims, variant.dims, strict=True) if dim is not None)
    return NetworkSpec(
        variant=name,
        dims=tuple(dim or round(base * width) for dim, base in zip(dims, variant.dims, strict=True)),
        act_num=(kernel - 1) // 2 if kernel else 3,
        num_classes=classes or 1000,
        in_chans=_vote(_axis(shapes, (stem,), 1)) or 3,
        stem_stride=variant.stem_stride,
    )


def _axis(shapes: Mapping[str, tuple[int, ...]], names: Iterable[str], axis: int) -> list[int]:
    return [shapes[name][axis] for name in names if name in shapes and len(shapes[name]) > max(axis, 0)]


def _width_votes(shapes: Mapping[str, tuple[int, ...]], form: Form, index: int, depth: int) -> list[int]:
    """What the tensors around width `index` say that it is."""
    first, last = ("conv1.0", "conv2.0") if form == "training" else ("conv", "conv")
    votes = _axis(shapes, (f"stages.{index}.{first}.weight",), 1)
    if index == depth:
        votes += _axis(shapes, ("cls1.2.weight", "cls.2.weight"), 1)
    if index == 0:
        before = (
            "stem1.0.weight",
            "stem1.0.bias",
            "stem2.0.weight",
            "stem2.2.weight",
            "stem.0.weight",
            "stem.1.weight",
        )
    else:
        stage = f"stages.{index - 1}"
        before = (f"{stage}.{last}.weight", f"{stage}.{last}.bias", f"{stage}.act.weight", f"{stage}.act.bias")  # type: ignore[assignment]
    return votes + _axis(shapes, before, 0)


def _vote(values: Iterable[int]) -> int | None:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def _candidates(dims: list[int | None]) -> list[str]:
    """Variants with these widths; failing that, variants that have them times one factor."""
    same = [name for name, v in VARIANTS.items() if len(v.dims) == len(dims) and _proportional(dims, v.dims, 0)]
    if same:
        return same
    return [n for n, v in VARIANTS.items() if len(v.dims) == len(dims) and _proportional(dims, v.dims, 8)]


def _proportional(dims: list[int | None], base: tuple[int, ...], slack: int) -> bool:
    known = [(dim, reference) for dim, reference in zip(dims, base, strict=True) if dim is not None]
    if not known:
        return False
    factor = max(known)[0] / max(known)[1] if slack else 1.0
    return all(abs(dim - factor * reference) <= slack / 2 for dim, reference in known)


def _decide(path: Path, names: list[str], named_in_file: Any, asked: str | None) -> str:
    if asked is not None:
        if asked in names:
            return asked
        raise _wrong_variant(path, names, asked)
    if len(names) == 1:
        return names[0]
    if named_in_file in names:
        return str(named_in_file)
    raise CheckpointError(
        f"{path} fits {', '.join(names[:-1])} and {names[-1]}: their tensors have the same proportions",
        hint=" or ".join(f"--model {name}" for name in names),
    )


def _wrong_variant(path: Path, names: list[str], asked: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is a {' or '.join(names)}, not a {asked}", hint=f"leave --model out, or give --model {names[0]}"
    )


def _fitting(path: Path, tensors: dict[str, Tensor], spec: Spec, form: Form) -> dict[str, Tensor]:
    """The tensors in the network's order, if they are exactly the network's."""
    expected = expected_shapes(spec, form)
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # of no use to a trained network
    missing = [name for name in expected if name not in tensors and name not in counters]
    unexpected = [name for name in tensors if name not in expected and not (name == "slope" and form == "training")]
    misshapen = [n for n in expected if n in tensors and n not in counters and tuple(tensors[n].shape) != expected[n]]
    if missing or unexpected or misshapen:
        details = [f"missing: {name} {_times(expected[name])}" for name in missing]
        details += [f"unexpected: {name} {_times(tuple(tensors[name].shape))}" for name in unexpected]
        details += [
            f"wrong shape: {n} is {_times(tuple(tensors[n].shape))}, must be {_times(expected[n])}" for n in misshapen
        ]
        raise CheckpointError(
            f"the tensors of {path} are not those of a {spec.label} in {form} form; nothing was loaded",
            details=details,
            hint="compare the file with the network it was trained as",
        )
    zero = torch.zeros((), dtype=torch.int64)
    return {name: tensors.get(name, zero) if name in counters else tensors[name] for name in expected}


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape) or "scalar"


def _require_sound(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that no network can work with."""
    problems = []
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not tensor.is_floating_point():
            problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not floating point")
            continue
        low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))  # one pass, nothing allocated; keeps NaN
        if not (torch.isfinite(torch.tensor([low, high])).all()):
            count = int((~torch.isfinite(tensor)).sum())
            problems.append(f"{name}: {count} of {tensor.numel()} values are NaN or infinite")
        elif name.endswith("running_var") and low < 0:
            problems.append(f"{name}: {int((tensor < 0).sum())} variances are negative, the least is {low:g}")
    if problems:
        raise CheckpointError(
            f"{path} holds values that cannot be right",
            details=problems,
            hint="training diverged or the file is damaged: take an earlier checkpoint",
        )


def _slope(file: WeightsFile, form: Form) -> tuple[float | None, str]:
    """Slope of A', and where it is known from."""
    if form == "deployed":
        return 1.0, "the file is deployed"
    own = file.facts.get("slope_ema" if file.source == "ema" else "slope")
    if own is not None:
        return float(own), "the checkpoint says"
    if "slope" in file.tensors:
        return float(file.tensors["slope"]), "the state dict says"
    if slopes := _slopes_within(file.tensors):
        return min(slopes), "the state dict says"
    # timm's trainer has a `decay_epochs` too, of its learning rate: it comes with a `decay_rate`.
    decay_epochs = None if "decay_rate" in file.args else file.args.get("decay_epochs")
    if decay_epochs == 0:
        return 1.0, "decay_epochs is 0"
    if decay_epochs is not None and file.epoch is not None:
        decay = "linear" if file.args.get("decay_linear", True) else "cosine"
        slope = slope_at(file.epoch, float(decay_epochs), decay)  # type: ignore[arg-type]
        return slope, f"epoch {file.epoch:g} of a {decay} ramp over {decay_epochs:g}"
    return None, "the file does not say"


def _slopes_within(tensors: Mapping[str, Tensor]) -> list[float]:
    """Those of each pair of convolutions in a network of an ablation."""
    return [float(tensor) for name, tensor in tensors.items() if name.endswith(".slope") and tensor.numel() == 1]


def _require_one_slope(path: Path, tensors: Mapping[str, Tensor], slope: float | None) -> None:
    """Refuse a file whose pairs of convolutions are not at the slope that it tells."""
    others = {value for value in _slopes_within(tensors) if slope is not None and abs(value - slope) > 1e-6}
    if others:
        raise CheckpointError(
            f"{path} tells a slope of {slope:g}, and holds {', '.join(f'{value:g}' for value in sorted(others))}",
            hint="the file was changed by hand or damaged: take another checkpoint",
        )


def _activation_ranges(path: Path, file: WeightsFile, spec: Spec) -> dict[str, float] | None:
    """The ranges of quantisation-aware training, of every convolution or none."""
    told = file.facts.get("activation_ranges")
    if told is None:
        return None
    found = dict(told) if isinstance(told, Mapping) else {}
    names = conv_names(spec) if isinstance(spec, NetworkSpec) else []
    wrong = [
        f"{name}: {found.get(name, 'missing')}"
        for name in names
        if not (isinstance(found.get(name), (int, float)) and 0 < found[name] < math.inf)
    ]
    wrong += [f"{name}: there is no such convolution" for name in found if name not in names]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of the activation ranges in {path} cannot be right",
            details=wrong[:LISTED],
            hint="the file is damaged: take another checkpoint of the run, or fuse it again",
        )
    return {name: float(found[name]) for name in names}


def _preprocessing(file: WeightsFile, spec: Spec) -> Preprocessing:
    """What the file says, else what its training arguments say, else the published evaluation's."""
    if "preprocessing" in file.facts:
        return Preprocessing.from_json(file.facts["preprocessing"])
    standard = published_preprocessing(spec.variant)
    given = file.args.get("input_size") or standard.input_size[1]
    size = int(given[-1] if isinstance(given, (list, tuple)) else given)
    mean, std = standard.mean, standard.std
    if file.args.get("imagenet_default_mean_and_std") is False:
        mean = std = INCEPTION
    if spec.in_chans != len(mean):
        mean, std = (0.5,) * spec.in_chans, (0.5,) * spec.in_chans
    crop = float(file.args.get("crop_pct") or standard.crop_pct)
    return Preprocessing((spec.in_chans, size, size), mean, std, crop, standard.interpolation)
