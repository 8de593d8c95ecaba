"""The longest path through layers with weights: what counts on it, and that whole networks come to published depths."""

from __future__ import annotations

import pytest

from tests.graph.graphs import Draft, qdq, resnet50, two_layers, vanillanet
from vexport.graph.depth import longest_path
from vexport.model.variants import VARIANTS

FULL = (224, 224)


def test_layers_in_a_row_count() -> None:
    assert longest_path(two_layers(), size=(8, 8)) == 2


def test_a_downsampling_shortcut_is_beside_the_path() -> None:
    draft = Draft(["n", 8, 4, 4])
    long = draft.conv(draft.conv("x", "a", 8, 8, 3), "b", 8, 8)
    added = draft.add("Add", [draft.conv("x", "short", 8, 8), long], "add")
    assert longest_path(draft.model(draft.add("Relu", [added], "y")), size=(4, 4)) == 2


def test_a_gate_is_beside_the_path() -> None:
    draft = Draft(["n", 8, 4, 4])
    value = draft.conv("x", "a", 8, 8)
    pooled = draft.add("GlobalAveragePool", [value], "pool")
    gate = draft.add("Sigmoid", [draft.conv(draft.conv(pooled, "squeeze", 8, 2), "excite", 2, 8)], "gate")
    assert longest_path(draft.model(draft.add("Mul", [value, gate], "y")), size=(4, 4)) == 1
    draft.add("Mul", [draft.conv(value, "branch", 8, 8), value], "product")
    assert longest_path(draft.model("product"), size=(4, 4)) == 2, "a factor of the same size is no gate"


def test_products_without_weights_do_not_count() -> None:
    draft = Draft(["n", 6, 4])
    query, key = (draft.add("MatMul", ["x", draft.weight(f"{name}.weight", 4, 4)], name) for name in ("q", "k"))
    turned = draft.add("Transpose", [key], "turned", perm=[0, 2, 1])
    scores = draft.add("MatMul", [query, turned], "scores")
    assert longest_path(draft.model(draft.add("MatMul", [scores, "x"], "y")), size=(6, 4)) == 1


def test_quantised_layers_count_as_others() -> None:
    assert longest_path(qdq(), size=(8, 8)) == 2


def test_weights_that_are_made_of_weights_stay_weights() -> None:
    draft = Draft(["n", 4])
    turned = draft.add("Transpose", [draft.weight("w", 3, 4)], "turned")
    assert longest_path(draft.model(draft.add("MatMul", ["x", turned], "y")), size=(1, 4)) == 1


def test_depthwise_convolutions_count_where_they_are_no_activations() -> None:
    draft = Draft(["n", 8, 4, 4])
    last = draft.conv(draft.conv("x", "grouped", 8, 8, 3, group=2), "depthwise", 8, 8, 3, group=8)
    model = draft.model(draft.conv(last, "y", 8, 4))
    assert longest_path(model, size=(4, 4)) == 3
    assert longest_path(model, size=(4, 4), depthwise=False) == 2, "groups of several channels are layers"


def test_resnet50_has_fifty_layers() -> None:
    assert longest_path(resnet50(), size=FULL) == 50


@pytest.mark.parametrize(("name", "depth"), [("vanillanet_5", 5), ("vanillanet_9", 9), ("vanillanet_13", 13)])
def test_vanillanet_has_the_layers_of_its_name(name: str, depth: int) -> None:
    variant = VARIANTS[name]
    model = vanillanet([width // 64 for width in variant.dims], variant.strides)
    assert longest_path(model, size=FULL, depthwise=False) == depth
