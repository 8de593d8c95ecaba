"""The proof of a merge in any network: each technique alone, chained up to it, and the network's answers, in float64.

Four evaluations, as in `prove`: the training form, each merged module on the training form's input, the merged network
as a whole, and the same with weights rounded to float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vexport.errors import InputError
from vexport.model.fuse import store
from vexport.model.prove import BlockReport, ProvenMerge, describe_parity, relative_error, require_agreement, worst
from vexport.model.techniques import DeepConv2d, merge_techniques, technique_modules

# VanillaNet's 13 blocks are held to 1e-6. A ResNet-50 rounds 102 times on its way (trained at a quarter of its width:
# 7e-7), so it is held to what an exported graph is held to.
STORED_TOLERANCE = 1e-5
LOGITS = "logits"  # the report's last line; a module may be called so, too


@dataclass
class _Run:
    """What passed through a network: inputs and outputs by module name, in the order of the calls; and its answers."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class _Errors:
    """Of one module, over all sets of inputs: alone, chained and with float32 weights."""

    alone: list[float] = field(default_factory=list)
    chained: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)


@torch.no_grad()
def merge_and_prove_network(
    network: nn.Module, inputs: Mapping[str, Tensor], on_block: Callable[[str], None] = lambda _: None
) -> ProvenMerge:
    """Merge the techniques of any network and prove it on every set of inputs.

    Args:
        network: With every slope at 1; not changed.
        inputs: Name of a set to images (N, C, H, W), on any device; one set or more.
        on_block: Told the name of each module that is done.

    Returns:
        The merged network's state dict, with a report for each technique and, last, for the logits.

    Raises:
        FusionError: a technique cannot be merged.
        InputError: a technique's module is called more than once or not at all: it cannot be proven.
        ParityError: an error exceeds its tolerance, or is not a number; the message names the module.
    """
    reference = copy.deepcopy(network).double().eval()
    before = {name: _weight_range(module) for name, module in technique_modules(reference)}
    merged = merge_techniques(copy.deepcopy(reference))
    kept = store({name: tensor for name, tensor in merged.state_dict().items() if tensor.is_floating_point()})
    deployed = {**{name: tensor.clone() for name, tensor in merged.state_dict().items()}, **kept}
    stored = copy.deepcopy(merged)
    stored.load_state_dict(deployed)
    device = next(reference.parameters()).device
    found: dict[str, _Errors] = {}
    parity = []
    for name, images in inputs.items():
        logits = _compare(reference, merged, stored, list(before), images.to(device, torch.float64), found)
        parity.append(
            describe_parity(
                name,
                len(images),
                error=logits.chained[-1],
                stored=logits.stored[-1],
                stored_tolerance=STORED_TOLERANCE,
            )
        )
    reports = []
    for name, errors in found.items():
        report = _report(name, merged, before.get(name), errors)
        reports.append(report)
        require_agreement(report, STORED_TOLERANCE)
        on_block(report.name)
    return ProvenMerge(deployed, tuple(reports), tuple(parity))


def _compare(
    reference: nn.Module,
    merged: nn.Module,
    stored: nn.Module,
    names: list[str],
    images: Tensor,
    found: dict[str, _Errors],
) -> _Errors:
    """Run one set of inputs through all three and add the errors to `found`; those of the logits are returned."""
    first = _watch(reference, names, images, keep_inputs=True)
    if idle := [name for name in names if name not in first.outputs]:
        raise InputError(
            "a technique's module is not called in evaluation mode: its merge cannot be proven",
            details=idle,
            hint="take out what only training uses",
        )
    second, third = (_watch(net, names, images) for net in (merged, stored))
    for name, expected in first.outputs.items():
        errors = found.setdefault(name, _Errors())
        errors.alone.append(relative_error(expected, merged.get_submodule(name)(first.inputs[name])))
        errors.chained.append(relative_error(expected, second.outputs[name]))
        errors.stored.append(relative_error(expected, third.outputs[name]))
    last = found.pop("", None) or _Errors()  # no module has this name; it stands at the end
    last.chained.append(relative_error(first.logits, second.logits))
    last.stored.append(relative_error(first.logits, third.logits))
    found[""] = last
    return last


def _report(name: str, merged: nn.Module, before: tuple[float, float] | None, errors: _Errors) -> BlockReport:
    if before is None:
        return BlockReport(
            LOGITS,
            (),
            0.0,
            worst(errors.chained),
            worst(errors.stored),
            range_before=(0.0, 0.0),
            range_after=(0.0, 0.0),
        )
    weight = merged.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    low, high = (float(bound) for bound in torch.aminmax(weight.detach()))
    return BlockReport(
        name=name,
        shape=tuple(weight.shape),
        error=worst(errors.alone),
        chained=worst(errors.chained),
        stored=worst(errors.stored),
        range_before=before,
        range_after=(low, high),
    )


def _weight_range(module: nn.Module) -> tuple[float, float]:
    convs = [module.conv1, module.conv2] if isinstance(module, DeepConv2d) else [module]
    bounds = [torch.aminmax(conv.weight.detach()) for conv in convs]  # type: ignore[operator]
    return min(float(pair.min) for pair in bounds), max(float(pair.max) for pair in bounds)


def _watch(network: nn.Module, names: list[str], images: Tensor, *, keep_inputs: bool = False) -> _Run:
    run = _Run()
    with _hooks(network, names, run, keep_inputs):
        run.logits = network(images)
    return run


@contextmanager
def _hooks(network: nn.Module, names: list[str], run: _Run, keep_inputs: bool) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if name in run.outputs:
                raise InputError(
                    f"{name} is called more than once: its merge cannot be proven",
                    hint="give each place its own module",
                )
            # Copies: what follows may work in place.
            run.outputs[name] = output.clone()
            if keep_inputs:
                run.inputs[name] = args[0].clone()

        return keep

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
