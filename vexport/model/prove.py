"""The proof of a merge: both forms evaluated in float64, block by block and chained from the input to the logits.

Four evaluations run side by side, so that no block is held longer than it is needed:

    reference   the training form, from its own tensors, BatchNorm by BatchNorm
    block       the merged block on the reference's input: the error of this block alone
    chained     the merged blocks one after another: the error up to here
    stored      the same with the weights rounded to float32: what the file will give
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vexport.errors import ParityError
from vexport.model.fuse import BatchNormStats, Block, batchnorm_stats, blocks_of, merge_block, store
from vexport.model.vanillanet import VanillaNet
from vexport.model.variants import NetworkSpec

MERGE_TOLERANCE = 1e-9
STORED_TOLERANCE = 1e-6


@dataclass(frozen=True)
class BlockReport:
    """What merging one block did.

    Args:
        name: `stem`, `stages.N` or `head`.
        shape: Of the merged convolution's weight.
        error: Largest of the inputs' relative errors of this block alone, float64.
        chained: Likewise from the input up to this block, float64.
        stored: Likewise with float32 weights.
        range_before: Least and greatest weight of the two convolutions.
        range_after: Likewise of the merged one.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    chained: float
    stored: float
    range_before: tuple[float, float]
    range_after: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ProvenMerge:
    """A deployed network with its proof.

    Args:
        tensors: The deployed form's state dict, float32.
        blocks: One report each, in order.
        parity: Per set of inputs: name, images, error of the logits in float64 and as stored, tolerances.
    """

    tensors: dict[str, Tensor]
    blocks: tuple[BlockReport, ...]
    parity: tuple[dict[str, Any], ...]


@dataclass
class _Chain:
    """One set of inputs on its way through the three chains, (N, C, H, W) float64 each."""

    name: str
    reference: Tensor
    merged: Tensor
    stored: Tensor
    images: int = 0
    errors: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def merge_and_prove(
    tensors: Mapping[str, Tensor],
    spec: NetworkSpec,
    inputs: Mapping[str, Tensor],
    on_block: Callable[[str], None] = lambda _: None,
) -> ProvenMerge:
    """Merge a training form and prove it on every set of inputs.

    Args:
        tensors: The training form's state dict at slope 1; not changed.
        spec: Its network.
        inputs: Name of a set to images (N, C, H, W); one set or more.
        on_block: Told the name of each block that is done.

    Raises:
        FusionError: a block cannot be merged.
        InputError: the images do not fit the network.
        ParityError: an error exceeds its tolerance, or is not a number; the message names the block.
    """
    with torch.device("meta"):
        shell = VanillaNet(**spec.network_kwargs(), deploy=True)
    chains = []
    for name, images in inputs.items():
        shell.feature_sizes(*images.shape[-2:])
        chains.append(_Chain(name, images.double(), images.double(), images.double(), len(images)))
    deployed: dict[str, Tensor] = {}
    reports = []
    for block in blocks_of(spec):
        merged = merge_block(tensors, block)
        kept = store(merged)
        report = _advance(block, tensors, merged, kept, chains, shell)
        reports.append(report)
        deployed |= kept
        on_block(block.name)
        require_agreement(report)
    parity = (describe_parity(chain.name, chain.images, **chain.errors) for chain in chains)
    return ProvenMerge(deployed, tuple(reports), tuple(parity))


def _advance(
    block: Block,
    tensors: Mapping[str, Tensor],
    merged: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    chains: list[_Chain],
    shell: VanillaNet,
) -> BlockReport:
    """Run one block in all chains and compare."""
    errors, chained, stored = [], [], []
    for chain in chains:
        inputs = chain.reference
        chain.reference = _training_block(block, tensors, inputs, shell)
        # The block alone and the chain so far share one pass.
        both = _deployed_block(block, merged, torch.cat([inputs, chain.merged]), shell)
        alone, chain.merged = both[: len(inputs)], both[len(inputs) :]
        chain.stored = _deployed_block(block, kept, chain.stored, shell)
        errors.append(relative_error(chain.reference, alone))
        chained.append(relative_error(chain.reference, chain.merged))
        stored.append(relative_error(chain.reference, chain.stored))
        chain.errors = {"error": chained[-1], "stored": stored[-1]}
    before = [torch.aminmax(tensors[f"{prefix}.weight"]) for prefix in (block.first, block.second)]
    after = torch.aminmax(merged[f"{block.conv}.weight"])
    return BlockReport(
        name=block.name,
        shape=tuple(merged[f"{block.conv}.weight"].shape),
        error=worst(errors),
        chained=worst(chained),
        stored=worst(stored),
        range_before=(min(float(pair.min) for pair in before), max(float(pair.max) for pair in before)),
        range_after=(float(after.min), float(after.max)),
    )


def relative_error(reference: Tensor, other: Tensor) -> float:
    """max|a - b| / max|a|; 0 for equal zeros, NaN or infinity where either holds one."""
    difference = float((reference - other).abs().max())
    scale = float(reference.abs().max())
    return difference / scale if scale > 0 else difference


def worst(values: list[float]) -> float:
    """The largest value; NaN if any is (max would drop it)."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _training_block(block: Block, tensors: Mapping[str, Tensor], x: Tensor, shell: VanillaNet) -> Tensor:
    """A block of the training form, from its own tensors, in float64; A' is the identity at slope 1."""
    x = _convolve(block, tensors, block.first, _enter(block, x), shell)
    x = _normalise(x, batchnorm_stats(tensors, block.first_bn))
    x = _pointwise(x, tensors[f"{block.second}.weight"].double(), tensors[f"{block.second}.bias"].double())
    if block.second_bn:
        x = _normalise(x, batchnorm_stats(tensors, block.second_bn))
    if not block.act:
        return x
    x = depthwise(F.relu(_pool(block, x, shell)), tensors[f"{block.act}.weight"].double())
    return _normalise(x, batchnorm_stats(tensors, f"{block.act}.bn"))


def _deployed_block(block: Block, merged: Mapping[str, Tensor], x: Tensor, shell: VanillaNet) -> Tensor:
    x = _convolve(block, merged, block.conv, _enter(block, x), shell)
    if not block.act:
        return x
    x = depthwise(F.relu(_pool(block, x, shell)), merged[f"{block.act_deployed}.weight"].double())
    return x + merged[f"{block.act_deployed}.bias"].double().reshape(1, -1, 1, 1)


def _enter(block: Block, x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3), keepdim=True) if block.name == "head" else x


def _convolve(block: Block, tensors: Mapping[str, Tensor], prefix: str, x: Tensor, shell: VanillaNet) -> Tensor:
    weight, bias = tensors[f"{prefix}.weight"].double(), tensors[f"{prefix}.bias"].double()
    if block.name == "stem":
        return F.conv2d(x, weight, bias, shell.stem_stride, shell.stem_padding)
    return _pointwise(x, weight, bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product that it is: in float64 quicker than the convolution on CPUs."""
    count, _, height, width = x.shape
    y = weight.flatten(1) @ x.flatten(2)
    return y.add_(bias.reshape(-1, 1)).reshape(count, -1, height, width)


def _pool(block: Block, x: Tensor, shell: VanillaNet) -> Tensor:
    if block.name == "stem":
        return x
    return shell.stages[int(block.name.split(".")[1])].pool(x)  # type: ignore[no-any-return, operator]


def _normalise(x: Tensor, bn: BatchNormStats) -> Tensor:
    mean, var, weight, bias = (t.double() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=bn.eps)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution with padding n as a sum of shifted products.

    PyTorch has no fast float64 depthwise convolution for CPUs: this is about five times as quick.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, 2n+1, 2n+1).
    """
    kernel = weight.shape[-1]
    height, width = x.shape[-2:]
    padded = F.pad(x, (kernel // 2,) * 4)
    total = torch.zeros_like(x)
    for row, column in _taps(kernel):
        tap = weight[None, :, 0, row, column, None, None]
        total.addcmul_(padded[:, :, row : row + height, column : column + width], tap)
    return total


def _taps(kernel: int) -> Iterator[tuple[int, int]]:
    return ((row, column) for row in range(kernel) for column in range(kernel))


def require_agreement(report: BlockReport, stored_tolerance: float = STORED_TOLERANCE) -> None:
    """Hold a block to the tolerances.

    Raises:
        ParityError: an error exceeds its tolerance, or is not a number.
    """
    # Written so that NaN fails.
    merge_holds = report.error <= MERGE_TOLERANCE and report.chained <= MERGE_TOLERANCE
    if merge_holds and report.stored <= stored_tolerance:
        return
    raise ParityError(
        f"the merged {report.name} disagrees with the training form",
        details=[
            f"this block alone   {report.error:.2e}  (tolerance {MERGE_TOLERANCE:.0e}, float64)",
            f"chained up to here {report.chained:.2e}  (tolerance {MERGE_TOLERANCE:.0e}, float64)",
            f"stored as float32  {report.stored:.2e}  (tolerance {stored_tolerance:.0e})",
        ],
        hint=_advice(report, merge_holds),
    )


def _advice(report: BlockReport, merge_holds: bool) -> str:
    if merge_holds:
        return "float32 cannot hold this merge: a BatchNorm variance near zero makes weights that cancel; train longer"
    if report.error != report.error:
        return "the network's own activations overflow: check the checkpoint and the images"
    return "this is a bug in the merge: please report it with the checkpoint"


def describe_parity(
    inputs: str, images: int, *, error: float, stored: float, stored_tolerance: float = STORED_TOLERANCE
) -> dict[str, Any]:
    """What a manifest says of one set of inputs that has passed."""
    return {
        "inputs": inputs,
        "images": images,
        "float64": {"error": error, "tolerance": MERGE_TOLERANCE},
        "stored_float32": {"error": stored, "tolerance": stored_tolerance},
        "passed": True,
    }
