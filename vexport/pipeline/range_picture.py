"""A picture of channel ranges: how many bits of INT8 each channel has left, before and after equalisation.

All channels of a tensor share one scale, set by the largest. A channel whose values reach 1/16 of that has 4 bits
fewer: the picture shows log2(largest / range) for every channel, from the widest to the narrowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexport.deps import needs
from vexport.errors import InputError

if TYPE_CHECKING:
    from vexport.pipeline.quantize_search import Form

SUFFIXES = (".png", ".svg", ".pdf")
# Beyond this a channel is always 0 in INT8.
BITS = 8
COLUMNS = 4
COLOURS = {"plain": "#9a9a9a", "equalised": "#1f6fb4"}


def require_picture(path: Path) -> None:
    """Refuse a name that no picture can have, before any work is done.

    Raises:
        InputError: it ends in something else, its folder does not exist, or matplotlib is missing.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in none of {', '.join(SUFFIXES)}", hint="name the picture so")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder", hint="make it first, or name the picture elsewhere")
    with needs("train"):
        import matplotlib  # noqa: F401


def bits_lost(ranges: Any) -> Any:
    """log2(largest / range) of channels (C,), ascending; 8 at the most, also for channels that are always 0."""
    top = float(ranges.max(initial=0.0))
    if not top:
        return np.full(len(ranges), float(BITS))
    with np.errstate(divide="ignore"):
        return np.sort(np.minimum(np.log2(top / ranges), BITS))


def draw_ranges(path: Path, forms: Sequence[Form], title: str) -> None:
    """Draw the activations that each convolution takes, and the weights of each output channel.

    Args:
        path: The picture; it is replaced.
        forms: `plain`, and `equalised` where there is one.
        title: What was quantised.

    Raises:
        InputError: the file cannot be written.
    """
    with needs("train"):
        from matplotlib.figure import Figure

    from vexport.graph.quantize import conv_nodes

    convs = conv_nodes(forms[0].model)
    rows = -(-len(convs) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.3 * rows + 1.0), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for axes, conv in zip(grid.flat, convs, strict=False):
        for form in forms:
            inputs, weights = _ranges(form, conv)
            for values, style in ((inputs, "-"), (weights, ":")):
                axes.plot(np.linspace(0, 100, len(values)), values, style, color=COLOURS[form.name], linewidth=1.6)
        axes.set_title(conv, fontsize=8)
        axes.set_ylim(BITS, 0)
        axes.set_yticks(range(0, BITS + 1, 2))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(convs) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, len(convs) - COLUMNS) : len(convs)]:
        axes.set_xlabel("channels, % (widest first)", fontsize=8)
    figure.suptitle(f"{title}: bits of INT8 that channels lose to the widest channel of their tensor", fontsize=10)
    figure.supylabel("bits lost", fontsize=8)
    handles = _legend([form.name for form in forms])
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    try:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="name the picture elsewhere") from error


def _ranges(form: Form, conv: str) -> tuple[Any, Any]:
    from onnx import numpy_helper

    (node,) = [node for node in form.model.graph.node if node.name == conv]
    (tensor,) = [tensor for tensor in form.model.graph.initializer if tensor.name == node.input[1]]
    weights = np.abs(numpy_helper.to_array(tensor)).reshape(tensor.dims[0], -1).max(axis=1)
    return bits_lost(form.statistics.channels.largest[node.input[0]]), bits_lost(weights)


def _legend(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = []
    for name in names:
        lines.append(Line2D([], [], color=COLOURS[name], linestyle="-", label=f"{name}: activations taken"))
        lines.append(
            Line2D(
                [],
                [],
                color=COLOURS[name],
                linestyle=":",
                label=f"{name}: weights, by output channel (lost only with one scale for all)",
            )
        )
    return lines
