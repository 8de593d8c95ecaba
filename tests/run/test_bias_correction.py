"""Bias correction: the means of every quantised convolution come right, nothing else of the graph changes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from colours import colour_graph, prepared
from onnx import TensorProto, helper, numpy_helper

from vexport.errors import InputError
from vexport.graph.inspect import metadata
from vexport.graph.quantize import conv_edges, quantize
from vexport.run.bias_correction import BiasCorrection, _cut_out, add_corrections, correct_biases

RANGES = {"input": 2.0, "pooled": 3.5, "second": 3.0}
ROUGH = ("one", "two", "three")
ROUGH_RANGES = {"input": 2.0, "relu_one": 4.0, "relu_two": 16.0}
EXACT = 2e-6  # float rounding, relative to a layer's RMS


def rough_graph(*, bias: bool = True) -> onnx.ModelProto:
    """Three convolutions whose weights INT8 rounds roughly, so that means move: the last channel between them is dead,
    and its large weights, which do nothing, take up the range of each row."""
    rng = np.random.default_rng(1)
    one = rng.uniform(-1, 1, (8, 3, 1, 1))
    two, three = rng.uniform(0.05, 0.6, (8, 8, 1, 1)), rng.uniform(-0.6, 0.6, (3, 8, 1, 1))
    two[:, 7], three[:, 7] = 60, 60
    two[7] = 0
    level = np.full(8, 1.5)
    level[7] = -8
    weights = {"w1": one, "b1": level, "w2": two, "b2": level - 1, "w3": three}
    second = ["relu_one", "w2", "b2"] if bias else ["relu_one", "w2"]
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["one"], name="one"),
        helper.make_node("Relu", ["one"], ["relu_one"], name="relu_one"),
        helper.make_node("Conv", second, ["two"], name="two"),
        helper.make_node("Relu", ["two"], ["relu_two"], name="relu_two"),
        helper.make_node("Conv", ["relu_two", "w3"], ["three"], name="three"),
        helper.make_node("GlobalAveragePool", ["three"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    return graph_of(nodes, weights)


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 3, 8, 8]), ("logits", ["n", 3]))
    ]
    tensors = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "graph", sides[:1], sides[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def batches(images: np.ndarray, size: int = 16) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def run(model: onnx.ModelProto, images: np.ndarray, tensors: tuple[str, ...] = ("logits",)) -> list[np.ndarray]:
    """Some tensors, with Q and DQ computed as they stand."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(None, {"input": images})]


def shifts(
    fp32: onnx.ModelProto, int8: onnx.ModelProto, images: np.ndarray, convs: tuple[str, ...]
) -> list[np.ndarray]:
    """INT8 minus FP32, by convolution: means over images and positions, by hand."""
    pairs = zip(run(fp32, images, convs), run(int8, images, convs), strict=True)
    return [(b.astype(float) - a).mean(axis=(0, 2, 3)) for a, b in pairs]


def bias(model: onnx.ModelProto, name: str) -> np.ndarray:
    (conv,) = (node for node in model.graph.node if node.name == name)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return stored[conv.input[2]] if len(conv.input) > 2 else np.zeros(())


def wrong(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_means_come_right_and_the_answers_nearer(per_channel: bool, with_bias: bool) -> None:
    fp32, images = rough_graph(bias=with_bias), prepared(40)
    int8 = quantize(fp32, ROUGH_RANGES, per_channel=per_channel)
    before = int8.SerializeToString(), fp32.SerializeToString()
    made, report = correct_biases(fp32, int8, batches(images), threads=1)
    assert (int8.SerializeToString(), fp32.SerializeToString()) == before
    onnx.checker.check_model(made, full_check=True)
    assert [row.node for row in report] == list(ROUGH)
    outputs = run(fp32, images, ROUGH)
    was, now = shifts(fp32, int8, images, ROUGH), shifts(fp32, made, images, ROUGH)
    for row, values, old, new in zip(report, outputs, was, now, strict=True):
        rms = float(np.sqrt((values.astype(float) ** 2).mean()))
        assert row.output_rms == pytest.approx(rms, rel=1e-5)
        assert row.shift_before == pytest.approx(np.abs(old).max() / rms, rel=1e-3, abs=EXACT)
        assert np.abs(new).max() / rms < EXACT
        assert row.shift_after < EXACT
        # What the report says is what was added.
        np.testing.assert_array_equal(row.correction, bias(made, row.node).astype(float) - bias(int8, row.node))
        assert row.largest == pytest.approx(np.abs(row.correction).max() / row.output_rms)
    assert min(row.shift_before for row in report[1:]) > 0.02
    (wanted,), (a,), (b,) = run(fp32, images), run(int8, images), run(made, images)
    assert wrong(wanted, b) < 0.3 * wrong(wanted, a)


def test_held_out_images_gain_too() -> None:
    fp32, images = rough_graph(), prepared(96)
    int8 = quantize(fp32, ROUGH_RANGES)
    made, _ = correct_biases(fp32, int8, batches(images[:48]))
    (wanted,), (a,), (b,) = (run(model, images[48:]) for model in (fp32, int8, made))
    assert wrong(wanted, b) < 0.3 * wrong(wanted, a)


def test_each_layer_is_corrected_after_those_before_it() -> None:
    """All at once would take the shift that the first layers pass on for the later ones' own."""
    fp32, images = rough_graph(), prepared(32)
    int8 = quantize(fp32, ROUGH_RANGES)
    _, report = correct_biases(fp32, int8, batches(images))
    old = shifts(fp32, int8, images, ROUGH)
    apart = [np.abs(row.correction + shift).max() / row.output_rms for row, shift in zip(report, old, strict=True)]
    assert apart[0] < EXACT, "nothing lies before the first"
    assert apart[2] > 0.01


def test_names_metadata_and_edges_stay() -> None:
    fp32 = colour_graph()
    int8 = quantize(fp32, RANGES)
    made, _ = correct_biases(fp32, int8, batches(prepared(16)))
    assert conv_edges(made) == conv_edges(int8)
    assert metadata(made) == metadata(int8)
    assert made.opset_import == int8.opset_import
    assert [(node.name, node.op_type, node.output) for node in made.graph.node] == [
        (node.name, node.op_type, node.output) for node in int8.graph.node
    ]
    assert (made.graph.input, made.graph.output) == (int8.graph.input, int8.graph.output)
    stored = {tensor.name: tensor.SerializeToString() for tensor in made.graph.initializer}
    changed = {
        tensor.name for tensor in int8.graph.initializer if stored.pop(tensor.name) != tensor.SerializeToString()
    }
    assert changed == {"first.bias"}
    assert set(stored) == {"second.bias", "last.bias"}, "convolutions without a bias have got one"


def test_a_second_correction_changes_nothing() -> None:
    fp32, images = rough_graph(), batches(prepared(32))
    once, first = correct_biases(fp32, quantize(fp32, ROUGH_RANGES), images)
    _, second = correct_biases(fp32, once, images)
    assert min(row.largest for row in first) > 100 * EXACT
    assert max(row.largest for row in second) < EXACT
    assert max(row.shift_before for row in second) < EXACT


def test_it_is_the_same_every_time_and_for_all_batch_sizes() -> None:
    fp32, images = colour_graph(), prepared(20)
    int8 = quantize(fp32, RANGES)
    first, report = correct_biases(fp32, int8, batches(images, 8), threads=1)
    again, _ = correct_biases(fp32, int8, batches(images, 8), threads=1)
    assert first.SerializeToString() == again.SerializeToString()
    for size in (1, 20):
        _, other = correct_biases(fp32, int8, batches(images, size), threads=1)
        for a, b in zip(report, other, strict=True):
            np.testing.assert_allclose(a.correction, b.correction, atol=EXACT * a.output_rms)


@pytest.mark.parametrize("size", [3, 4, 10])
def test_a_fixed_batch_is_filled_up_or_cut_and_that_does_not_count(size: int) -> None:
    """Ten images, the last unlike the others: were the fill counted, its means would weigh more."""
    images = prepared(10)
    images[-1] *= -1
    fixed = colour_graph(batch=4)
    _, found = correct_biases(fixed, quantize(fixed, RANGES), batches(images, size))
    free = colour_graph()
    _, wanted = correct_biases(free, quantize(free, RANGES), batches(images, 5))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.correction, b.correction, atol=EXACT * a.output_rms)
        assert (a.noise, a.output_rms) == (pytest.approx(b.noise, rel=1e-3), pytest.approx(b.output_rms))


@pytest.mark.parametrize(("keep", "left"), [(["second"], ("first", "last")), (["first"], ("second", "last"))])
def test_layers_that_stay_fp32_keep_their_bias(keep: list[str], left: tuple[str, ...]) -> None:
    fp32, images = colour_graph(), prepared(32)
    int8 = quantize(fp32, RANGES, keep=keep)
    made, report = correct_biases(fp32, int8, batches(images))
    assert tuple(row.node for row in report) == left
    kept = {node.name: list(node.input) for node in int8.graph.node if node.name in keep}
    assert {node.name: list(node.input) for node in made.graph.node if node.name in keep} == kept
    assert conv_edges(made) == conv_edges(int8)
    for row, shift in zip(report, shifts(fp32, made, images, left), strict=True):
        assert np.abs(shift).max() / row.output_rms < EXACT


def shared_bias(clash: bool = False) -> onnx.ModelProto:
    """Two convolutions one behind the other, of one bias."""
    rng = np.random.default_rng(0)
    names = ("one", "one.bias" if clash else "two")
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b"], [names[0]], name="one"),
        helper.make_node("Relu", [names[0]], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "w2", "b"], [names[1]], name="two"),
        helper.make_node("GlobalAveragePool", [names[1]], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    one, two = rng.normal(size=(2, 3, 3, 1, 1))
    return graph_of(nodes, {"w1": one, "w2": two, "b": np.array([0.5, -0.25, 1])})


@pytest.mark.parametrize("clash", [False, True])
def test_a_shared_bias_becomes_two(clash: bool) -> None:
    """Also where the name that the copy would have is that of an activation."""
    fp32, images = shared_bias(clash), prepared(24)
    int8 = quantize(fp32, {"input": 1.0, "relu": 1.5})
    for node in int8.graph.node:  # ONNX Runtime's quantiser has made copies; other tools do not
        if node.op_type == "Conv":
            node.input[2] = "b"
    made, report = correct_biases(fp32, int8, batches(images))
    onnx.checker.check_model(made, full_check=True)
    results = [name for node in made.graph.node for name in node.output]
    assert not {tensor.name for tensor in made.graph.initializer} & set(results)
    found = [bias(made, name) for name in ("one", "two")]
    for row, value in zip(report, found, strict=True):
        np.testing.assert_allclose(value, np.array([0.5, -0.25, 1]) + row.correction, rtol=1e-6)
        assert row.largest > 0.002
        assert row.shift_after < EXACT
    assert np.abs(found[0] - found[1]).max() > 0.002


def test_a_bias_shared_with_a_layer_in_fp32_stays_there() -> None:
    fp32 = shared_bias()
    made, _ = correct_biases(fp32, quantize(fp32, {"relu": 1.5}, keep=["one"]), batches(prepared(24)))
    np.testing.assert_array_equal(bias(made, "one"), np.array([0.5, -0.25, 1], np.float32))
    assert np.abs(bias(made, "two") - bias(made, "one")).max() > 0.002


def test_only_the_part_up_to_a_layer_runs() -> None:
    int8 = quantize(colour_graph(), RANGES)
    part = _cut_out(int8, ["second"], squares=False)
    onnx.checker.check_model(part)
    assert [node.name for node in part.graph.node if node.op_type == "Conv"] == ["first", "second"]
    assert not [tensor.name for tensor in part.graph.initializer if tensor.name.startswith("last")]
    assert len(part.graph.output) == 1
    assert "second.weight_quantized" in {tensor.name for tensor in int8.graph.initializer}


def test_only_means_leave_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory: nothing with positions comes out of a run, however large the images are."""
    sizes = []

    class Watched(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *args: object) -> list[np.ndarray]:
            answers: list[np.ndarray] = super().run(*args)
            sizes.extend(answer.size for answer in answers)
            return answers

    monkeypatch.setattr(ort, "InferenceSession", Watched)
    fp32 = colour_graph()
    correct_biases(fp32, quantize(fp32, RANGES), batches(prepared(8), 4))
    assert sizes
    assert max(sizes) == 4 * 6


def test_noise_is_the_standard_error_over_the_images() -> None:
    fp32, images = colour_graph(), prepared(24)
    int8 = quantize(fp32, RANGES)
    _, report = correct_biases(fp32, int8, batches(images))
    (a,), (b,) = run(fp32, images, ("last",)), run(int8, images, ("last",))
    rows = (b.astype(float) - a).mean(axis=(2, 3))
    wanted = (rows.std(axis=0, ddof=1) / np.sqrt(len(rows))).max() / report[2].output_rms
    assert report[2].noise == pytest.approx(wanted, rel=1e-3)
    _, single = correct_biases(fp32, int8, batches(images[:1]))
    assert single[0].noise == 0


def test_progress_ends_at_one_and_the_report_is_plain() -> None:
    fp32, told = colour_graph(), list[float]()
    _, report = correct_biases(fp32, quantize(fp32, RANGES), batches(prepared(12), 4), on_share=told.append)
    assert told == sorted(told)
    assert len(told) == 3 * (1 + 3 + 1)
    assert told[-1] == pytest.approx(1)
    rows = json.loads(json.dumps([row.to_json() for row in report], allow_nan=False))
    assert [row["channels"] for row in rows] == [6, 6, 3]
    huge = BiasCorrection("n", np.ones(2), float("inf"), 0.0, 0.0, 0.0)
    assert json.loads(json.dumps(huge.to_json(), allow_nan=False))["output_rms"] is None


def test_a_layer_that_gives_only_zeros() -> None:
    fp32 = colour_graph()
    for tensor in fp32.graph.initializer:
        if tensor.name == "last.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((3, 6, 1, 1), np.float32), tensor.name))
    _, report = correct_biases(fp32, quantize(fp32, RANGES), batches(prepared(8)))
    assert (report[2].output_rms, report[2].largest, report[2].shift_after) == (0, 0, 0)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite|NaN")])
def test_activations_that_are_no_numbers_are_named(value: float, kind: str) -> None:
    fp32, images = colour_graph(), batches(prepared(12), 4)
    int8 = quantize(fp32, RANGES)
    images[1][0, 0, 0, 0] = value
    with pytest.raises(InputError, match=f"first of the FP32 graph is ({kind}) in image batch 2"):
        correct_biases(fp32, int8, images)


def test_what_is_refused() -> None:
    fp32, images = colour_graph(), batches(prepared(8))
    int8 = quantize(fp32, RANGES)
    with pytest.raises(InputError, match="no images"):
        correct_biases(fp32, int8, [])
    with pytest.raises(InputError, match="no convolution of the INT8 graph is quantised"):
        correct_biases(fp32, fp32, images)
    with pytest.raises(InputError, match="the network takes Nx3x8x8"):
        correct_biases(fp32, int8, [images[0][:, :, :4]])
    with pytest.raises(InputError, match="0 threads"):
        correct_biases(fp32, int8, images, threads=0)
    with pytest.raises(InputError, match="the FP32 graph has no convolution first, second, last"):
        correct_biases(shared_bias(), int8, images)
    other = colour_graph()
    (weight,) = (tensor for tensor in other.graph.initializer if tensor.name == "last.weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones((4, 6, 1, 1), np.float32), "last.weight"))
    del other.graph.output[:]
    other.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4]))
    with pytest.raises(InputError, match="last has other channels in the two graphs"):
        correct_biases(other, int8, images)
    for node in int8.graph.node:
        if node.name == "second":
            node.name = "first"
    with pytest.raises(InputError, match="several convolutions of the INT8 graph are named 'first'"):
        correct_biases(fp32, int8, images)


def test_a_bias_that_is_not_fp32_is_refused() -> None:
    fp32 = colour_graph()
    int8 = quantize(fp32, RANGES)
    (tensor,) = (tensor for tensor in int8.graph.initializer if tensor.name == "first.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(6, np.int32), "first.bias"))
    with pytest.raises(InputError, match="the bias of first is not stored in FP32"):
        correct_biases(fp32, int8, batches(prepared(4)))


def test_a_graph_that_onnx_runtime_cannot_load() -> None:
    fp32 = colour_graph()
    int8 = quantize(fp32, RANGES)
    (node,) = (node for node in fp32.graph.node if node.name == "relu")
    node.op_type = "NoSuchOperator"
    with pytest.raises(InputError, match="ONNX Runtime cannot load the FP32 graph"):
        correct_biases(fp32, int8, batches(prepared(4)))


def test_corrections_found_before_are_added_again() -> None:
    """To the same graph: the same result. To one with fewer INT8 layers: their biases alone change."""
    fp32 = colour_graph()
    int8 = quantize(fp32, RANGES)
    before = int8.SerializeToString()
    corrected, report = correct_biases(fp32, int8, batches(prepared(16)))
    again = add_corrections(int8, {row.node: row.correction for row in report})
    assert int8.SerializeToString() == before
    for name in ("first", "second", "last"):
        np.testing.assert_allclose(bias(again, name), bias(corrected, name), rtol=1e-6, atol=1e-7)
    mixed = quantize(fp32, RANGES, keep=["second"])
    some = add_corrections(mixed, {row.node: row.correction for row in report if row.node != "second"})
    np.testing.assert_allclose(bias(some, "first"), bias(corrected, "first"), rtol=1e-6, atol=1e-7)
    assert conv_edges(some) == conv_edges(mixed)
