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

LOGITS = "logits"


@dataclass
class _Run:
    """What passed through a network: inputs and outputs by module name, in the order of the calls; the logits too."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def merge_and_prove_network(
    network: nn.Module, inputs: Mapping[str, Tensor], on_block: Callable[[str], None] = lambda _: None
) -> ProvenMerge:
    """Merge the techniques of any network and prove it on every set of inputs.

    Args:
        network: With every slope at 1; not changed.
        inputs: Name of a set to images (N, C, H, W); one set or more.
        on_block: Told the name of each module that is done.

    Returns:
        The merged network's state dict, with a report for each technique and, last, for the logits.

    Raises:
        FusionError: a technique cannot be merged.
        InputError: a technique's module is called more than once: there is no one input to prove it on.
        ParityError: an error exceeds its tolerance, or is not a number; the message names the module.
    """
    reference = copy.deepcopy(network).double().eval()
    before = {name: _weight_range(module) for name, module in technique_modules(reference)}
    merged = merge_techniques(copy.deepcopy(reference))
    kept = store({name: tensor for name, tensor in merged.state_dict().items() if tensor.is_floating_point()})
    deployed = {**{name: tensor.clone() for name, tensor in merged.state_dict().items()}, **kept}
    stored = copy.deepcopy(merged)
    stored.load_state_dict(deployed)
    runs = {
        name: tuple(_watch(net, list(before), images.double()) for net in (reference, merged, stored))
        for name, images in inputs.items()
    }
    reports = []
    for name in [*next(iter(runs.values()))[0].outputs]:
        module = None if name == LOGITS else merged.get_submodule(name)
        report = _report(name, module, before.get(name, (0.0, 0.0)), list(runs.values()))
        reports.append(report)
        require_agreement(report)
        on_block(name)
    parity = []
    for name, (first, *others) in runs.items():
        error, rounded = (relative_error(first.outputs[LOGITS], other.outputs[LOGITS]) for other in others)
        parity.append(describe_parity(name, len(inputs[name]), error=error, stored=rounded))
    return ProvenMerge(deployed, tuple(reports), tuple(parity))


def _report(
    name: str, module: nn.Module | None, before: tuple[float, float], runs: list[tuple[_Run, ...]]
) -> BlockReport:
    alone = [
        0.0 if module is None else relative_error(reference.outputs[name], module(reference.inputs[name]))
        for reference, _, _ in runs
    ]
    weight = module.weight if module is not None else torch.zeros(1)
    assert isinstance(weight, Tensor)
    low, high = (float(bound) for bound in torch.aminmax(weight.detach()))
    return BlockReport(
        name=name,
        shape=tuple(weight.shape) if module is not None else (),
        error=worst(alone),
        chained=worst([relative_error(reference.outputs[name], merged.outputs[name]) for reference, merged, _ in runs]),
        stored=worst([relative_error(reference.outputs[name], stored.outputs[name]) for reference, _, stored in runs]),
        range_before=before,
        range_after=(low, high),
    )


def _weight_range(module: nn.Module) -> tuple[float, float]:
    convs = [module.conv1, module.conv2] if isinstance(module, DeepConv2d) else [module]
    bounds = [torch.aminmax(conv.weight.detach()) for conv in convs]  # type: ignore[operator]
    return min(float(pair.min) for pair in bounds), max(float(pair.max) for pair in bounds)


def _watch(network: nn.Module, names: list[str], images: Tensor) -> _Run:
    run = _Run()
    with _hooks(network, names, run):
        run.outputs[LOGITS] = network(images)
    return run


@contextmanager
def _hooks(network: nn.Module, names: list[str], run: _Run) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if name in run.outputs:
                raise InputError(
                    f"{name} is called more than once: its merge cannot be proven",
                    hint="give each place its own module",
                )
            # Copies: what follows may work in place.
            run.inputs[name], run.outputs[name] = args[0].clone(), output.clone()

        return keep

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
