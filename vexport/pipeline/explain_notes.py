"""What the reader of attention maps should know: where there is none, and where they mean little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vexport.pipeline.explain_looks import Look, Row, spread_of
from vexport.pipeline.explain_network import Network
from vexport.pipeline.explain_samples import Choice

# Above this share the pole of alpha bears on the maps.
NEGATIVE_SHARE = 0.05
# Of fewer images, nothing is said of what hiding costs.
ENOUGH = 30
_NO_MAP = {
    "no gradient": "where no positive gradient of the class reaches the layer",
    "not positive": "where the map is nowhere above 0",
    "not finite": "where values are NaN or infinite",
}


def collect_notes(networks: Sequence[Network], choice: Choice, rows: Sequence[Row]) -> Iterator[str]:
    """Notes on the networks, the images, each network's maps, and on how comparable they are."""
    for network in networks:
        yield from network.notes
    yield from choice.notes
    for index, network in enumerate(networks):
        looks = [row.looks[index] for row in rows]
        yield from _of_maps(network, looks)
        yield from _of_hiding(network, looks)
    first = networks[0]
    for network in networks[1:]:
        if network.preprocessing != first.preprocessing:
            yield f"{network.name} prepares images otherwise than {first.name}: its maps lie over what it sees"
    if len({(network.layer.height, network.layer.width) for network in networks}) > 1:
        told = ", ".join(f"{network.name} {network.layer.height}x{network.layer.width}" for network in networks)
        yield f"the maps differ in size ({told}): a coarser map covers a larger area whatever the network looks at"


def _of_maps(network: Network, looks: Sequence[Look]) -> Iterator[str]:
    states = [look.attention.state for look in looks if look.attention.state != "map"]
    if states:
        reasons = ", ".join(f"{states.count(state)} {words}" for state, words in _NO_MAP.items() if state in states)
        yield f"{network.name} has no map of {len(states)} of {len(looks)} images: {reasons}"
    negative = sum(look.attention.negative_share for look in looks) / max(1, len(looks))
    if negative > NEGATIVE_SHARE:
        yield (
            f"{network.name}: {negative:.0%} of the weights of the maps are negative: GradCAM++ is made for "
            f"activations that are not, and those of {network.layer.name} are; doubt its maps"
        )


def _of_hiding(network: Network, looks: Sequence[Look]) -> Iterator[str]:
    """Where there is no other map to compare with, and where hiding what the maps show costs no more than others."""
    alone = sum(look.attention.state == "map" and look.lost is None for look in looks)
    if alone:
        yield (
            f"{network.name}: what hiding costs is not measured for {alone} of {len(looks)} images: no other image of "
            "their group has a map to compare with"
        )
    difference = spread_of([look.lost.difference for look in looks if look.lost is not None])
    if difference.images < ENOUGH or difference.mean is None or difference.deviation is None:
        return
    error = difference.deviation / math.sqrt(difference.images)
    if difference.mean > 2 * error:
        return
    # Not told apart is not the same as alike: more images may tell.
    verdict = "costs the class less than" if difference.mean < -2 * error else "cannot be told from"
    figures = f"{100 * difference.mean:+.1f} points, standard error {100 * error:.1f}, {difference.images} images"
    yield (
        f"{network.name}: hiding what the maps of {network.layer.name} show {verdict} hiding what other images' maps "
        f"show ({figures})"
    )
