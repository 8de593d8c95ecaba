"""Equalisation: which pairs there are, that the function stays, and what becomes of the ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import ExportError, InputError
from vexport.graph.blocks import find_pairs, survey_pairs
from vexport.graph.equalize import choose_scales, equalization_error, equalize, equalize_weights, scale_ranges
from vexport.graph.precision import lift_constants
from vexport.graph.quantize import conv_inputs, conv_nodes
from vexport.graph.reference import run_float64
from vexport.pipeline.export import export_graph
from vexport.run.calibrate import ImageBatch, collect_statistics
from vexport.run.channel_ranges import ChannelRanges
from vexport.workspace import Workspace

CHANNELS = 6


class Builder:
    """A graph made node by node; each is named after the tensor that it gives."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs = ["y"]

    def conv(self, x: str, y: str, *, shape: tuple[int, ...] = (CHANNELS, CHANNELS, 1, 1), bias: bool = True) -> str:
        """A convolution; its groups follow from the weight's shape."""
        values = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        names = [f"{y}.w", f"{y}.b"][: 1 + bias]
        for name, array in zip(names, (values, self.rng.normal(size=shape[0]) * 0.1), strict=False):
            self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        pads = [side // 2 for side in shape[2:]] * 2
        return self.op("Conv", x, y, *names, group=CHANNELS // shape[1], pads=pads)

    def depthwise(self, x: str, y: str, *, bias: bool = True) -> str:
        return self.conv(x, y, shape=(CHANNELS, 1, 3, 3), bias=bias)

    def op(self, operator: str, x: str, y: str, *more: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, [x, *more], [y], name=y, **attributes))
        return y

    def constant(self, name: str, values: object) -> None:
        self.weights.append(numpy_helper.from_array(np.array(values, np.float32), name))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "hand-made",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, 8, 8])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in self.outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {"vexport.model": "hand-made"})
        return model


def between(*operators: str) -> Builder:
    """pointwise a, these operators, depthwise b, pointwise c, average pool, pointwise y."""
    made = Builder()
    last = made.conv("x", "a")
    for number, operator in enumerate(operators):
        attributes: dict[str, object] = {}
        if operator in ("MaxPool", "AveragePool"):
            attributes = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
        last = made.op(operator, last, f"t{number}", **attributes)
    made.depthwise(last, "b")
    made.conv("b", "c")
    made.conv(made.op("GlobalAveragePool", "c", "pooled"), "y")
    return made


def random_scales(model: onnx.ModelProto, seed: int = 0, *, signs: bool = True) -> dict[str, np.ndarray]:
    """Spread over 1e4; of both signs where a pair allows it."""
    rng = np.random.default_rng(seed)
    scales = {}
    for pair in find_pairs(model):
        scales[pair.key] = 10 ** rng.uniform(-2, 2, pair.channels)
        if signs and pair.signed:
            scales[pair.key] *= rng.choice([-1, 1], pair.channels)
    return scales


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {model.graph.input[0].name: images})[0])


def assert_same_answers(model: onnx.ModelProto, other: onnx.ModelProto, images: np.ndarray) -> None:
    before = run(model, images)
    np.testing.assert_allclose(run(other, images), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def spread(ranges: np.ndarray) -> float:
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, CHANNELS, 8, 8)).astype(np.float32)


@pytest.fixture
def exported(small_checkpoint: Path, tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(export_graph(small_checkpoint, workspace=Workspace(tmp_path / "out")).artifact.path)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(3, 3, 64, 64)).astype(np.float32)


def test_every_pair_of_an_exported_network(exported: onnx.ModelProto) -> None:
    survey = survey_pairs(exported)
    assert [(p.first, p.second, p.depthwise, p.signed) for p in survey.pairs] == [
        ("stem.0", "stem.1", True, False),
        ("stem.1", "stages.0.conv", False, True),
        ("stages.0.conv", "stages.0.act", True, False),
        ("stages.0.act", "stages.1.conv", False, True),
        ("stages.1.conv", "stages.1.act", True, False),
        ("stages.1.act", "stages.2.conv", False, True),
        ("stages.2.conv", "stages.2.act", True, False),
        ("stages.2.act", "cls.2", False, True),
    ]
    assert survey.pairs[2].tensors == ("stages.0.conv", "stages.0.conv.relu", "stages.0.conv.relu.maxpool")
    assert survey.pairs[-1].tensors == ("stages.2.act", "stages.2.act.globalaveragepool")
    assert survey.refused == {"cls.2": "a scale does not pass through cls.2.flatten (Flatten)"}
    assert survey.pairs[0].to_json()["tensors"] == ["stem.0", "stem.0.relu"]


@pytest.mark.parametrize("seed", range(3))
def test_an_exported_network_keeps_its_function(
    exported: onnx.ModelProto, pictures: np.ndarray, tmp_path: Path, seed: int
) -> None:
    before = exported.SerializeToString()
    scales = random_scales(exported, seed)
    assert min(values.min() for values in scales.values()) < 0
    assert equalization_error(exported, scales, pictures) < 1e-9
    result = equalize(exported, scales)
    assert exported.SerializeToString() == before
    assert result.metadata_props == exported.metadata_props
    assert len(result.metadata_props) > 0
    assert list(result.graph.node) == list(exported.graph.node)
    onnx.checker.check_model(result, full_check=True)
    assert_same_answers(exported, result, pictures)


def test_the_reference_is_the_graph(exported: onnx.ModelProto, pictures: np.ndarray) -> None:
    exact = run_float64(exported, pictures)["logits"]
    assert exact.dtype == np.float64
    np.testing.assert_allclose(run(exported, pictures), exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


def test_a_wrong_scale_is_seen(exported: onnx.ModelProto, pictures: np.ndarray) -> None:
    """The reference is no judge if it overlooks a change: one weight off by 1e-6."""
    weights = equalize_weights(exported, random_scales(exported))
    name = "stages.1.conv.weight"
    weights[name][3] *= 1 + 1e-6
    before, after = (run_float64(exported, pictures, given)["logits"] for given in ({}, weights))
    assert np.abs(after - before).max() > 1e-9 * np.abs(before).max()


def test_the_algebra_by_hand() -> None:
    model = between("Relu").model()
    scales = {key: np.arange(1.0, 7) for key in ("a", "b")}
    weights = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    changed = equalize_weights(model, scales)
    s = scales["a"]
    assert set(changed) == {"a.w", "a.b", "b.w", "b.b", "c.w"}
    np.testing.assert_allclose(changed["a.w"], weights["a.w"] / s[:, None, None, None])
    np.testing.assert_allclose(changed["a.b"], weights["a.b"] / s)
    np.testing.assert_allclose(changed["b.w"], weights["b.w"])
    np.testing.assert_allclose(changed["b.b"], weights["b.b"] / s)
    np.testing.assert_allclose(changed["c.w"], weights["c.w"] * s[None, :, None, None])


@pytest.mark.parametrize(
    ("operators", "signed"),
    [
        ((), True),
        (("Relu",), False),
        (("Relu", "MaxPool"), False),
        (("MaxPool", "Relu"), False),
        (("MaxPool", "Relu", "MaxPool"), False),
        (("LeakyRelu",), False),
        (("MaxPool",), False),
        (("AveragePool",), True),
        (("Identity", "AveragePool"), True),
        (("GlobalMaxPool",), False),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, tuple) else str(value),
)
def test_what_a_scale_passes_through(operators: tuple[str, ...], signed: bool, images: np.ndarray) -> None:
    model = between(*operators).model()
    pairs = {pair.key: pair for pair in find_pairs(model)}
    assert {key: (pair.depthwise, pair.signed) for key, pair in pairs.items()} == {
        "a": (True, signed),
        "b": (False, True),
        "c": (False, True),
    }
    scales = random_scales(model)
    assert equalization_error(model, scales, images) < 1e-9
    assert_same_answers(model, equalize(model, scales), images)
    if not signed:
        scales["a"][2] *= -1
        with pytest.raises(InputError, match="the scales of a are negative"):
            equalize(model, scales)


def test_dense_kernels_without_bias(images: np.ndarray) -> None:
    """A plain 3x3 network, where every second convolution is dense."""
    made = Builder()
    made.conv("x", "a", shape=(CHANNELS, CHANNELS, 3, 3), bias=False)
    made.conv(made.op("Relu", "a", "r"), "y", shape=(CHANNELS, CHANNELS, 3, 3), bias=False)
    model = made.model()
    (pair,) = find_pairs(model)
    assert (pair.first_bias, pair.depthwise, pair.signed) == ("", False, False)
    assert equalization_error(model, random_scales(model), images) < 1e-9
    assert set(equalize_weights(model, random_scales(model))) == {"a.w", "y.w"}


def _branches(made: Builder) -> None:
    made.op("Add", made.depthwise("a", "b"), "y", "a")


def _concat(made: Builder) -> None:
    made.op("Concat", "a", "y", "x", axis=1)


def _grouped(made: Builder) -> None:
    made.conv("a", "y", shape=(CHANNELS, 2, 1, 1))


def _shared(made: Builder) -> None:
    made.depthwise("a", "b", bias=False)
    made.op("Conv", "b", "y", "b.w", group=CHANNELS, pads=[1, 1, 1, 1])


def _output(made: Builder) -> None:
    made.outputs.append("a")
    made.depthwise("a", "y")


def _relu6(made: Builder) -> None:
    made.constant("low", 0)
    made.constant("high", 6)
    made.depthwise(made.op("Clip", "a", "t", "low", "high"), "y")


def _bias_between(made: Builder) -> None:
    made.constant("offset", np.ones((CHANNELS, 1, 1)))
    made.depthwise(made.op("Add", "a", "t", "offset"), "y")


def _sigmoid(made: Builder) -> None:
    made.depthwise(made.op("Sigmoid", "a", "t"), "y")


def _transposed(made: Builder) -> None:
    made.constant("y.w", np.ones((CHANNELS, CHANNELS, 1, 1)))
    made.op("ConvTranspose", "a", "y", "y.w")


def _computed_weight(made: Builder) -> None:
    made.constant("w", np.ones((CHANNELS, 1, 3, 3)))
    made.op("Neg", "w", "computed")
    made.op("Conv", "a", "y", "computed", group=CHANNELS, pads=[1, 1, 1, 1])


def _weight_as_output(made: Builder) -> None:
    made.depthwise("a", "y")
    made.outputs.append("y.w")


def _nobody(made: Builder) -> None:
    made.op("Relu", "x", "y")


def _within(made: Builder) -> None:
    """A graph inside a node reads the tensor too."""
    made.depthwise("a", "b")
    made.weights.append(numpy_helper.from_array(np.array(True), "yes"))
    branches = {}
    for branch, source in (("then_branch", "a"), ("else_branch", "b")):
        inner = helper.make_tensor_value_info(f"{branch}.out", TensorProto.FLOAT, [None] * 4)
        node = helper.make_node("Identity", [source], [inner.name])
        branches[branch] = helper.make_graph([node], branch, [], [inner])
    made.nodes.append(helper.make_node("If", ["yes"], ["y"], name="y", **branches))


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (_branches, "2 nodes read a: b, y"),
        (_concat, "a scale does not pass through y (Concat)"),
        (_grouped, "y has 3 groups without being depthwise"),
        (_shared, "b.w of b is shared: b, y"),
        (_output, "a is an output of the graph"),
        (_relu6, "a scale does not pass through t (Clip)"),
        (_bias_between, "a scale does not pass through t (Add)"),
        (_sigmoid, "a scale does not pass through t (Sigmoid)"),
        (_transposed, "a scale does not pass through y (ConvTranspose)"),
        (_computed_weight, "computed of y is no initializer"),
        (_weight_as_output, "y.w of y is an input or output of the graph"),
        (_nobody, "0 nodes read a: none"),
        (_within, "2 nodes read a: b, y"),
    ],
)
def test_no_pair(behind: object, reason: str, images: np.ndarray) -> None:
    made = Builder()
    made.conv("x", "a")
    behind(made)  # type: ignore[operator]
    model = made.model()
    onnx.checker.check_model(model)
    survey = survey_pairs(model)
    assert survey.pairs == ()
    assert survey.refused["a"] == reason
    with pytest.raises(InputError, match="a is no pair of this graph"):
        equalize(model, {"a": np.ones(CHANNELS)})


def test_no_pair_with_a_convolution_as_the_weight() -> None:
    made = Builder()
    made.conv("x", "a")
    made.op("Conv", "x", "y", "a")
    assert "takes a as something else" in survey_pairs(made.model()).refused["a"]


def test_weights_of_other_types_are_left_alone() -> None:
    model = between("Relu").model()
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "a.w"))
    assert survey_pairs(model).refused["a"] == "a.w of a is not FP32"


def test_a_weight_that_may_be_overridden_is_left_alone() -> None:
    model = between("Relu").model()
    model.graph.input.append(helper.make_tensor_value_info("b.w", TensorProto.FLOAT, [CHANNELS, 1, 3, 3]))
    assert list(survey_pairs(model).refused) == ["a", "b", "y"]


def test_weights_in_constant_nodes_are_found_once_lifted(images: np.ndarray) -> None:
    model = between("Relu").model()
    tensor = model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["a.w"], name="constant", value=tensor))
    model.graph.initializer.remove(tensor)
    assert "a" in survey_pairs(model).refused
    lifted = lift_constants(model)
    assert [pair.key for pair in find_pairs(lifted)] == ["a", "b", "c"]
    assert equalization_error(lifted, random_scales(lifted), images) < 1e-9


def test_nodes_without_names_are_told_apart() -> None:
    model = between("Relu").model()
    for node in model.graph.node:
        node.name = ""
    assert [(pair.key, pair.first, pair.second) for pair in find_pairs(model)] == [
        ("a", "a", "b"),
        ("b", "b", "c"),
        ("c", "c", "y"),
    ]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"nobody": np.ones(CHANNELS)}, "nobody is no pair"),
        ({"a": np.ones(CHANNELS + 1)}, r"\(7,\), not \(6,\)"),
        ({"a": np.zeros(CHANNELS)}, "zero or not finite"),
        ({"a": np.full(CHANNELS, np.nan)}, "zero or not finite"),
        ({"b": np.full(CHANNELS, np.inf)}, "zero or not finite"),
        ({"a": -np.ones(CHANNELS)}, "negative, and a Relu or max-pool"),
    ],
    ids=["unknown", "shape", "zero", "NaN", "infinite", "negative"],
)
def test_scales_that_are_refused(scales: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        equalize(between("Relu").model(), scales)


def test_weights_that_would_leave_fp32_are_refused() -> None:
    with pytest.raises(ExportError, match=r"a\.w does not fit into FP32"):
        equalize(between("Relu").model(), {"a": np.full(CHANNELS, 1e-42)})


def test_no_scales_change_nothing() -> None:
    model = between("Relu").model()
    assert equalize(model, {}).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_the_square_root_rule_evens_a_pairs_weights(exported: onnx.ModelProto, pictures: np.ndarray) -> None:
    """For a fixed point of all pairs, row c of the first and column (or kernel) c of the second have one range."""

    def ratios(model: onnx.ModelProto) -> dict[str, float]:
        weights = {t.name: np.abs(numpy_helper.to_array(t)) for t in model.graph.initializer}
        found = {}
        for pair in find_pairs(model):
            r1 = weights[pair.first_weight].max(axis=(1, 2, 3))
            r2 = weights[pair.second_weight].max(axis=(1, 2, 3) if pair.depthwise else (0, 2, 3))
            found[pair.key] = float(np.exp(np.abs(np.log(r1 / r2)).max()))
        return found

    hostile = equalize(exported, random_scales(exported, signs=False))
    assert min(ratios(hostile).values()) > 100
    scales = choose_scales(hostile)
    even = equalize(hostile, scales)
    assert max(ratios(even).values()) < 1.1
    assert equalization_error(hostile, scales, pictures) < 1e-9
    assert_same_answers(exported, even, pictures)


def measured(model: onnx.ModelProto, images: np.ndarray) -> ChannelRanges:
    """The activations that convolutions take."""
    tensors = conv_inputs(model, conv_nodes(model))
    names = tuple(str(index) for index in range(len(images)))
    return collect_statistics(model, tensors, [ImageBatch(names, images)]).channels


def test_a_hostile_network_comes_back_to_even_ranges(exported: onnx.ModelProto, pictures: np.ndarray) -> None:
    hostile = equalize(exported, random_scales(exported, 5, signs=False))
    assert_same_answers(exported, hostile, pictures)
    before = measured(hostile, pictures).largest
    scales = choose_scales(hostile, before)
    even = equalize(hostile, scales)
    after = measured(even, pictures).largest
    for pair in find_pairs(hostile):
        taken = pair.tensors[-1]
        assert spread(after[taken]) < (1.001 if pair.depthwise else spread(before[taken]) / 20), pair.key
        np.testing.assert_allclose(after[taken], scale_ranges(hostile, scales, before)[taken], rtol=1e-3, atol=1e-6)
    assert equalization_error(hostile, scales, pictures) < 1e-9
    assert_same_answers(exported, even, pictures)


def test_the_result_does_not_depend_on_how_hostile_the_network_was(
    exported: onnx.ModelProto, pictures: np.ndarray
) -> None:
    """What the scales were before leaves no trace but one common factor per pair."""
    hostile = equalize(exported, random_scales(exported, 6, signs=False))
    results = []
    for model in (exported, hostile):
        ranges = measured(model, pictures)
        results.append(scale_ranges(model, choose_scales(model, ranges.typical), ranges.largest))
    for pair in find_pairs(exported):
        plain, other = (after[pair.tensors[-1]] for after in results)
        np.testing.assert_allclose(other / other.max(), plain / plain.max(), rtol=1e-3)


def int8_error(model: onnx.ModelProto, images: np.ndarray) -> float:
    """Relative error of the answers in INT8: what a convolution takes on one grid, its weights on one per row."""
    ranges = measured(model, images).largest
    weights = {}
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    nodes = []
    for node in quantized.graph.node:
        if node.op_type == "Conv":
            (tensor,) = [tensor for tensor in quantized.graph.initializer if tensor.name == node.input[1]]
            values = numpy_helper.to_array(tensor).astype(np.float64)
            step = np.abs(values).max(axis=(1, 2, 3), keepdims=True) / 127
            weights[tensor.name] = np.round(values / step) * step
            name = node.input[0]
            step = ranges[name].max() / 127
            quantized.graph.initializer.append(numpy_helper.from_array(np.float32(step), f"{node.name}.step"))
            for number, operator in enumerate(("Div", "Round", "Mul")):
                given = [name, f"{node.name}.step"] if operator != "Round" else [name]
                name = f"{node.name}.q{number}"
                nodes.append(helper.make_node(operator, given, [name], name=name))
            node.input[0] = name
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del quantized.graph.node[:]
    quantized.graph.node.extend(ordered)
    exact, rough = run_float64(model, images)["logits"], run_float64(quantized, images, weights)["logits"]
    return float(np.linalg.norm(rough - exact) / np.linalg.norm(exact))


def test_int8_survives_a_hostile_network(exported: onnx.ModelProto, pictures: np.ndarray) -> None:
    hostile = equalize(exported, random_scales(exported, 7, signs=False))
    plain, broken = int8_error(exported, pictures), int8_error(hostile, pictures)
    found = measured(hostile, pictures)
    assert broken > 0.5
    for ranges in (found.largest, found.typical):
        assert int8_error(equalize(hostile, choose_scales(hostile, ranges)), pictures) < plain


def test_scales_are_bounded_and_dead_channels_keep_theirs(images: np.ndarray) -> None:
    model = between("Relu").model()
    ranges = {name: np.ones(CHANNELS) for name in ("t0", "b", "pooled")}
    ranges["t0"] = np.array([0, 1e-30, 1e30, 1, 1, 1])
    ranges["b"] = np.zeros(CHANNELS)
    ranges["pooled"] = np.array([0, 1, 1, 1, 1, 1])
    scales = choose_scales(model, ranges)
    np.testing.assert_allclose(scales["a"], [1, 1e-6, 1e6, 1, 1, 1])
    np.testing.assert_array_equal(scales["b"], np.ones(CHANNELS))
    assert scales["c"][0] == 1
    assert equalization_error(model, scales, images) < 1e-9


def test_dead_weights_keep_their_scale() -> None:
    model = between("Relu").model()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("a.w", "b.w", "c.w"):
        values = numpy_helper.to_array(weights[name]).copy()
        values[2] = 0
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    scales = choose_scales(model)
    assert [scales[key][2] for key in "abc"] == [1, 1, 1]
    assert all(np.isfinite(values).all() and (values > 0).all() for values in scales.values())


def test_a_column_that_nobody_weighs_takes_no_range() -> None:
    model = between("Relu").model()
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "c.w"]
    values = numpy_helper.to_array(tensor).copy()
    values[:, 4] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, "c.w"))
    ranges = {name: np.ones(CHANNELS) for name in ("t0", "b", "pooled")}
    ranges["b"][4] = 1e3
    scaled = ranges["b"] / choose_scales(model, ranges)["b"]
    assert scaled[4] == pytest.approx(np.delete(scaled, 4).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ranges: ranges.pop("b"), "there are no activation ranges of b"),
        (lambda ranges: ranges.update(b=np.ones(3)), r"the activation ranges of b are \(3,\), not \(6,\)"),
        (lambda ranges: ranges["t0"].__setitem__(1, np.nan), "1 of 6 activation ranges of t0 are NaN"),
        (lambda ranges: ranges["t0"].__setitem__(slice(2, 4), np.inf), "2 of 6 activation ranges of t0"),
        (lambda ranges: ranges["pooled"].__setitem__(0, -1), "1 of 6 activation ranges of pooled"),
    ],
    ids=["missing", "shape", "NaN", "infinite", "negative"],
)
def test_ranges_that_are_refused(change: object, message: str) -> None:
    ranges = {name: np.ones(CHANNELS) for name in ("t0", "b", "pooled")}
    change(ranges)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        choose_scales(between("Relu").model(), ranges)


@pytest.mark.parametrize("measured", [False, True])
def test_weights_that_are_not_finite_are_refused(measured: bool) -> None:
    model = between("Relu").model()
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "c.w"]
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, "c.w"))
    ranges = {name: np.ones(CHANNELS) for name in ("t0", "b", "pooled")} if measured else None
    with pytest.raises(InputError, match=r"c\.w holds NaN"):
        choose_scales(model, ranges)
    assert equalization_error(model, {}, np.ones((1, CHANNELS, 8, 8), np.float32)) == float("inf")


def test_the_reference_refuses_other_weights(images: np.ndarray) -> None:
    with pytest.raises(InputError, match="is no weight of the graph"):
        run_float64(between().model(), images, {"a.w": np.ones(3)})
    with pytest.raises(InputError, match="is no weight of the graph"):
        run_float64(between().model(), images, {"nobody": np.ones(3)})


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"dilations": [2, 2]},
        {"auto_pad": "VALID"},
    ],
    ids=["same", "uneven", "dilated", "valid"],
)
@pytest.mark.parametrize("operator", ["Conv", "MaxPool"])
def test_the_reference_reads_every_attribute(operator: str, attributes: dict[str, object], images: np.ndarray) -> None:
    made, more = Builder(), []
    if operator == "Conv":
        made.constant("w", made.rng.normal(size=(4, CHANNELS // 2, 3, 3)))
        more, attributes = ["w"], attributes | {"group": 2}
    made.op(operator, "x", "y", *more, kernel_shape=[3, 3], **attributes)
    model = made.model()
    exact = run_float64(model, images)["y"]
    np.testing.assert_allclose(run(model, images), exact, rtol=1e-4, atol=1e-5)
