"""The table of networks: counted parameters and multiply-accumulates beside the published figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vexport.model.variants import VARIANTS, Published, make_spec

INPUT_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class ModelRow:
    """One network.

    Args:
        name: What `--model` takes.
        depth: Convolutions of the deployed form that are not depthwise; None for a baseline.
        params_m: Counted parameters of the deployed form, millions.
        gmacs: Counted multiply-accumulates at 224x224, billions.
        published: The paper's figures.
    """

    name: str
    depth: int | None
    params_m: float
    gmacs: float
    published: Published

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_models() -> list[ModelRow]:
    """Build every network without memory, count it, and put the published figures beside it."""
    import torch

    from vexport.model.baselines import BASELINES, create_baseline
    from vexport.model.build import build_network, count_cost

    rows = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            network = build_network(make_spec(name), form="deployed")
        cost = count_cost(network, INPUT_SIZE)
        rows.append(ModelRow(name, len(variant.dims) + 1, cost.params / 1e6, cost.gmacs, variant.published))
    for name, baseline in BASELINES.items():
        with torch.device("meta"):
            module = create_baseline(name)
        cost = count_cost(module, INPUT_SIZE)
        rows.append(ModelRow(name, None, cost.params / 1e6, cost.gmacs, baseline.published))
    return rows
