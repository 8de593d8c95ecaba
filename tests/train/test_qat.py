"""Quantisation-aware training: it computes what the Q/DQ graph computes, gives back lost accuracy, and refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vexport.errors import CheckpointError, InputError, RecipeError, TrainingError
from vexport.graph.inspect import metadata, read_graph
from vexport.graph.precision import lift_constants
from vexport.graph.quantize import conv_edges, quantize
from vexport.graph.trained_ranges import ACTIVATION_RANGES, trained_ranges
from vexport.model.build import build_network, conv_names
from vexport.model.checkpoint import load_checkpoint, load_network
from vexport.model.vanillanet import SeriesActivation
from vexport.model.variants import make_spec
from vexport.pipeline.calibration import QuantizeOptions
from vexport.pipeline.export import export_graph
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.quantize import quantize_graph
from vexport.pipeline.train import train_recipe
from vexport.recipe import load_recipe
from vexport.run.calibrate import ImageBatch, collect_statistics
from vexport.run.ort import OrtRunner
from vexport.run.runner import Array
from vexport.run.thresholds import METHODS, choose_threshold
from vexport.train.digits import InMemory, open_digits
from vexport.train.qat import (
    FakeQuantisedConv,
    FakeQuantisedSeries,
    fake_quantise,
    load_rounded,
    load_start,
    rounded_layers,
    split_ranges,
)
from vexport.workspace import Workspace

BASE = """\
epochs: 8
batch_size: 96
device: cpu
network: {model: vanillanet_5, width: 0.015625, act_num: 1}
deep_training: {decay_epochs: 3, per: step}
data: {name: digits}
optimizer: {name: adamw, lr: 5.0e-3}
schedule: {warmup_epochs: 1}
loss: {name: ce}
ema: {decay: 0.9}
"""
QAT = """\
inherits: base
epochs: 2
qat: {start_from: base, images: 200}
deep_training: {decay_epochs: 0}
optimizer: {lr: 5.0e-4}
schedule: {warmup_epochs: 0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two recipes and a workspace, `out`, in which the first was trained and fused."""
    folder = tmp_path_factory.mktemp("qat")
    torch.set_num_threads(1)
    (folder / "base.yaml").write_text(BASE)
    (folder / "fine.yaml").write_text(QAT)
    workspace = Workspace(folder / "out")
    result = train_recipe(folder / "base.yaml", workspace=workspace)
    assert result is not None
    fuse_checkpoint(result.best.path, workspace=workspace)
    return folder


@pytest.fixture(scope="module")
def tuned(trained: Path) -> Path:
    """The best checkpoint of quantisation-aware training."""
    result = train_recipe(trained / "fine.yaml", workspace=Workspace(trained / "out"))
    assert result is not None
    return result.best.path


@pytest.fixture(scope="module")
def graph(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its FP32 graph."""
    return export_graph(tuned, workspace=Workspace(tmp_path_factory.mktemp("graph"))).artifact.path


def deployed(folder: Path) -> Path:
    return folder / "out" / "base.best.deploy.safetensors"


def held_out(folder: Path) -> tuple[Array, Array]:
    data = open_digits(load_recipe(folder / "base.yaml").data).held_out
    assert isinstance(data, InMemory)
    return data.images.numpy(), data.labels.numpy()


def as_written(model: onnx.ModelProto, images: Array) -> Array:
    """What a graph says, node by node: ONNX Runtime's optimiser would round biases too."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: Array = session.run(None, {"input": images})[0]
    return answers


def rewrite(source: Path, target: Path, tensors: dict[str, Tensor] | None = None, **facts: object) -> Path:
    """A deployed file with other tensors or facts."""
    with safe_open(source, framework="pt") as reader:
        told = json.loads(reader.metadata()["vexport"])
    save_file(tensors or load_file(source), target, metadata={"vexport": json.dumps(told | facts)})
    return target


# What is computed


def test_rounding_is_that_of_the_operators() -> None:
    """QuantizeLinear saturates at -128 and 127; weights have the levels -127 to 127, channel by channel."""
    conv = FakeQuantisedConv(1, 3, 1)
    conv.add_range(3)
    conv.input_range.fill_(12.7)
    x = torch.tensor([-13.0, -12.8, -12.75, -0.04, 0.04, 0.06, 12.7, 99.0])
    assert torch.allclose(conv.round_input(x), torch.tensor([-12.8, -12.8, -12.8, 0.0, 0.0, 0.1, 12.7, 12.7]))
    weight = torch.tensor([[1.27, -1.27, 0.004, 0.006], [127e3, -400.0, 600.0, 0.0], [0.0] * 4]).reshape(3, 4, 1, 1)
    expected = torch.tensor([[1.27, -1.27, 0.0, 0.01], [127e3, -0.0, 1e3, 0.0], [0.0] * 4]).reshape(3, 4, 1, 1)
    assert torch.allclose(conv.round_weight(weight), expected)


def test_gradients_pass_the_rounding_and_stop_at_the_clipping() -> None:
    conv = FakeQuantisedConv(1, 1, 1)
    conv.add_range(1)
    conv.input_range.fill_(1.27)
    x = torch.tensor([-2.0, -1.2, 0.004, 1.2, 2.0], requires_grad=True)
    conv.round_input(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.tensor([0.3, -0.7, 0.001]).reshape(1, 3, 1, 1).requires_grad_()
    conv.round_weight(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1, 1, 1]


def test_every_convolution_is_rounded_and_keeps_its_name(small_spec, fill) -> None:
    plain = build_network(small_spec, form="deployed")
    plain.load_state_dict(fill(small_spec, "deployed"))
    wide = dict.fromkeys(conv_names(small_spec), 1e30)
    network = fake_quantise(build_network(small_spec, form="deployed"), wide)
    tensors, ranges = split_ranges(network.state_dict())
    assert list(ranges) == conv_names(small_spec)
    assert tensors.keys() == plain.state_dict().keys()
    kinds = {name: type(layer) for name, layer in rounded_layers(network).items()}
    assert {kinds["stem.0"], kinds["stages.0.conv"], kinds["cls.2"]} == {FakeQuantisedConv}
    assert {kinds["stem.1"], kinds["stages.2.act"]} == {FakeQuantisedSeries}
    # While activations are counted nothing is rounded.
    network.load_state_dict(plain.state_dict(), strict=False)
    counted: list[float] = []

    class Count:
        def add(self, values: Array, largest: float) -> None:
            counted.append(largest)

    for layer in rounded_layers(network).values():
        layer.histogram = Count()  # type: ignore[assignment]
    images = torch.randn(2, small_spec.in_chans, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval()(images), plain(images))
    assert len(counted) == len(ranges)
    assert counted[0] == float(images.abs().max())


def test_torch_and_the_qdq_graph_agree(tuned, graph, trained, capsys) -> None:
    images, labels = held_out(trained)
    model = lift_constants(read_graph(graph))
    ranges = trained_ranges(model)
    assert ranges is not None
    int8 = quantize(model, ranges)
    with torch.no_grad():
        expected = load_rounded(tuned)(torch.from_numpy(images)).numpy()
        plain = load_network(tuned)[0](torch.from_numpy(images)).numpy()
    largest = np.abs(expected).max()
    errors = np.abs(as_written(int8, images) - expected).max(axis=1) / largest
    with OrtRunner(int8.SerializeToString()) as runner:
        optimised = runner(images)
    same_top1 = float((optimised.argmax(1) == expected.argmax(1)).mean())
    with capsys.disabled():
        print(
            f"\ntorch against Q/DQ: max rel {errors.max():.1e}, above 1e-5 on {(errors > 1e-5).sum()} of {len(images)}"
            f"\nagainst FP32: {np.abs(plain - expected).max() / largest:.1e}"
            f"\nwith ONNX Runtime's optimiser: {np.abs(optimised - expected).max() / largest:.1e}, "
            f"top-1 the same on {same_top1:.1%}"
        )
    # A value on the border between two levels may fall to either side: an image with one is far off.
    assert float((errors <= 1e-5).mean()) >= 0.98
    assert np.abs(plain - expected).max() / largest > 1e-3, "else the rounding was not tested"
    assert same_top1 >= 0.98
    facts = load_checkpoint(tuned)
    assert facts.activation_ranges is not None
    # Scales are equal to the last bit.
    scales = {edges.node: edges.input_scale for edges in conv_edges(int8)}
    assert scales == {name: float(np.float32(top) / np.float32(127)) for name, top in facts.activation_ranges.items()}
    # What the run said of itself is what the graph answers.
    result = json.loads(Path(f"{tuned}.json").read_text())["facts"]
    assert int((expected.argmax(1) == labels).sum()) == result["correct"]


def test_the_average_and_the_weights_share_ranges_but_not_weights(tuned) -> None:
    content = torch.load(tuned, weights_only=True)
    own = content["vexport"]["activation_ranges"]
    for prefix in ("network.", "ema.module."):
        _, ranges = split_ranges({n.removeprefix(prefix): t for n, t in content["state_dict"].items() if prefix in n})
        assert ranges == own
    assert not [name for name in (*content["model"], *content["model_ema"]) if "input_range" in name]
    assert not torch.equal(content["model"]["stem.0.weight"], content["model_ema"]["stem.0.weight"])


def test_ranges_are_those_of_post_training_quantisation(trained, tmp_path) -> None:
    """Measured on the same images by the same method: the last epochs' weights did not move them."""
    told: list[str] = []
    workspace = Workspace(tmp_path / "out")
    overrides = ["qat.images=1438", "batch_size=719", "epochs=1", f"qat.start_from={deployed(trained)}"]
    result = train_recipe(trained / "fine.yaml", workspace=workspace, overrides=overrides, tell=told.append)
    assert told[-1] == "measuring what 9 convolutions take, on 1438 training images"
    found = load_checkpoint(result.best.path).activation_ranges
    model = lift_constants(read_graph(export_graph(deployed(trained), workspace=workspace).artifact.path))
    data = open_digits(load_recipe(trained / "base.yaml").data).train
    assert isinstance(data, InMemory)
    inputs = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    batch = ImageBatch(("",) * len(data.images), data.images.numpy())
    histograms = collect_statistics(model, list(inputs.values()), [batch]).histograms
    expected = {name: choose_threshold(histograms[tensor], "mse") for name, tensor in inputs.items()}
    assert found == pytest.approx(expected, rel=2e-3)


# What it is for


def spread(folder: Path, factor: float, seed: int) -> Path:
    """The same function with channels of very different size, so that one scale per tensor holds few of them."""
    tensors = load_file(deployed(folder))
    draw = np.random.default_rng(seed)
    depth = sum(name.endswith(".conv.weight") for name in tensors)
    acts = ["stem.1", *(f"stages.{i}.act" for i in range(depth - 1))]
    for index in range(depth):
        conv, act = f"stages.{index}.conv", f"stages.{index}.act"
        for first, second, axis in ((conv, act, 0), (acts[index], conv, 1)):
            channels = len(tensors[f"{first}.bias"])
            scale = torch.from_numpy(np.exp(draw.uniform(-0.5, 0.5, channels) * math.log(factor))).float()
            tensors[f"{first}.weight"] = tensors[f"{first}.weight"] / scale.reshape(-1, 1, 1, 1)
            tensors[f"{first}.bias"] = tensors[f"{first}.bias"] / scale
            shape = (-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1)
            tensors[f"{second}.weight"] = tensors[f"{second}.weight"] * scale.reshape(shape)
    return rewrite(deployed(folder), folder / f"spread_{seed}.safetensors", tensors)


def accuracy(model: onnx.ModelProto, images: Array, labels: Array) -> float:
    return 100 * float((as_written(model, images).argmax(1) == labels).mean())


def test_it_gives_back_what_int8_takes(trained, tmp_path, capsys) -> None:
    images, labels = held_out(trained)
    data = open_digits(load_recipe(trained / "base.yaml").data).train
    assert isinstance(data, InMemory)
    hostile = spread(trained, 300.0, seed=1)
    workspace = Workspace(tmp_path)
    model = lift_constants(read_graph(export_graph(hostile, workspace=workspace).artifact.path))
    tensors = [node.input[0] for node in model.graph.node if node.op_type == "Conv"]
    batch = ImageBatch(("",) * 200, data.images[:200].numpy())
    histograms = collect_statistics(model, tensors, [batch]).histograms
    chosen = {method: {n: choose_threshold(h, method) for n, h in histograms.items()} for method in METHODS}
    ptq = {method: accuracy(quantize(model, ranges), images, labels) for method, ranges in chosen.items()}
    fp32 = accuracy(model, images, labels)
    overrides = [f"qat.start_from={hostile}", "epochs=4", "optimizer.lr=3.0e-3"]
    result = train_recipe(trained / "fine.yaml", workspace=workspace, overrides=overrides)
    exported = lift_constants(read_graph(export_graph(result.best.path, workspace=workspace).artifact.path))
    qat = accuracy(quantize(exported, trained_ranges(exported)), images, labels)
    with capsys.disabled():
        tried = ", ".join(f"{method} {top1:.1f}" for method, top1 in ptq.items())
        print(f"\nspread by 300: FP32 {fp32:.1f} %, post-training {tried}; four epochs of QAT {qat:.1f} %")
    assert max(ptq.values()) < fp32 - 5
    assert qat > max(ptq.values()) + 5
    assert qat == pytest.approx(result.top1, abs=0.6), "the run's own figure is that of the graph"


# What becomes of it


def test_fuse_carries_weights_and_ranges_over(tuned, graph, tmp_path) -> None:
    workspace = Workspace(tmp_path)
    fused = fuse_checkpoint(tuned, workspace=workspace)
    assert fused.artifact.path.name == "fine.best.deploy.safetensors"
    assert "it was trained for INT8" in fused.notes[-1]
    before, after = load_checkpoint(tuned), load_checkpoint(fused.artifact.path)
    assert after.activation_ranges == before.activation_ranges is not None
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    exported = export_graph(fused.artifact.path, workspace=workspace)
    assert exported.fused is None
    assert exported.artifact.facts["activation_ranges"] == before.activation_ranges
    assert trained_ranges(read_graph(exported.artifact.path)) == trained_ranges(read_graph(graph))
    again = fuse_checkpoint(fused.artifact.path, workspace=workspace)
    assert again.up_to_date


def test_a_graph_that_was_not_trained_for_int8_has_no_ranges(trained, tmp_path) -> None:
    exported = export_graph(deployed(trained), workspace=Workspace(tmp_path))
    assert trained_ranges(read_graph(exported.artifact.path)) is None
    assert "activation_ranges" not in exported.artifact.facts
    with pytest.raises(InputError, match="has no trained ranges"):
        load_rounded(deployed(trained))


def test_manifests_say_what_it_is(trained, tuned) -> None:
    facts = json.loads(Path(f"{tuned}.json").read_text())
    assert (facts["facts"]["form"], facts["facts"]["trained_for"], facts["facts"]["slope"]) == ("deployed", "int8", 1.0)
    assert facts["options"]["start_from"]
    loaded = load_checkpoint(tuned)
    assert (loaded.form, loaded.slope, loaded.source) == ("deployed", 1.0, "ema")
    assert load_network(tuned)[0].deploy
    assert train_recipe(trained / "fine.yaml", workspace=Workspace(trained / "out")).up_to_date


def test_one_that_is_stopped_goes_on_to_the_same_weights(trained, tuned, tmp_path) -> None:
    workspace = Workspace(tmp_path / "out")
    overrides = [f"qat.start_from={deployed(trained)}", "checkpoint.every_steps=3"]

    def stop(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(trained / "fine.yaml", workspace=workspace, overrides=overrides, on_progress=stop)
    told: list[str] = []
    resumed = train_recipe(
        trained / "fine.yaml", workspace=workspace, overrides=overrides, resume=True, tell=told.append
    )
    assert resumed.resumed_from == 1
    assert not [line for line in told if "measuring" in line], "the ranges are those of the run's start"
    one, other = (torch.load(path.parent / "fine.last.ckpt", weights_only=True) for path in (tuned, resumed.best.path))
    assert one["vexport"]["activation_ranges"] == other["vexport"]["activation_ranges"]
    for key in ("model", "model_ema"):
        assert all(torch.equal(tensor, other[key][name]) for name, tensor in one[key].items())


def test_devices_do_not_change_what_is_measured(trained, tmp_path) -> None:
    """Portions of another size, as on several devices."""
    found = []
    for index, micro in enumerate((96, 32)):
        overrides = [f"qat.start_from={deployed(trained)}", "epochs=1", f"compute.micro_batch={micro}"]
        result = train_recipe(trained / "fine.yaml", workspace=Workspace(tmp_path / str(index)), overrides=overrides)
        found.append(load_checkpoint(result.best.path).activation_ranges)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


# What is refused


def refused(folder: Path, tmp_path: Path, *overrides: str, **options: bool) -> InputError:
    with pytest.raises(InputError) as caught:
        train_recipe(
            folder / "fine.yaml",
            workspace=Workspace(tmp_path / "refused"),
            overrides=overrides,
            on_progress=lambda *_: pytest.fail("training began"),
            **options,
        )
    assert not list((tmp_path / "refused").glob("*.ckpt"))
    return caught.value


def test_a_start_in_training_form_is_refused(trained, tmp_path) -> None:
    error = refused(trained, tmp_path, f"qat.start_from={trained / 'out' / 'base.best.ckpt'}")
    assert isinstance(error, RecipeError)
    assert "in training form" in error.message
    assert "vexport fuse" in error.hint


def test_a_start_that_is_not_there_is_refused(trained, tmp_path) -> None:
    error = refused(trained, tmp_path)
    assert f"there is neither this file nor {tmp_path / 'refused' / 'base.best.deploy.safetensors'}" in error.message
    assert "vexport fuse" in error.hint


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("network.width=0.03125", "dims: [8, 16, 32, 64] in the file, [16, 32, 64, 128] in the recipe and its data"),
        ("network.act_num=2", "act_num: 1 in the file, 2 in the recipe and its data"),
        ("network.model=vanillanet_6", "variant: vanillanet_5 in the file, vanillanet_6 in the recipe and its data"),
    ],
)
def test_a_start_of_another_network_is_refused(trained, tmp_path, override, says) -> None:
    error = refused(trained, tmp_path, f"qat.start_from={deployed(trained)}", override)
    assert says in error.details


def test_a_start_of_other_classes_is_refused(trained, tmp_path) -> None:
    spec = make_spec("vanillanet_5", width=1 / 64, act_num=1, num_classes=11, in_chans=1)
    with pytest.raises(RecipeError) as caught:
        load_start(deployed(trained), spec, tuple("0123456789x"))
    assert caught.value.details == ("num_classes: 10 in the file, 11 in the recipe and its data",)
    names = [*"1023456789"]
    other = rewrite(deployed(trained), tmp_path / "named.safetensors", class_names=names)
    error = refused(trained, tmp_path, f"qat.start_from={other}")
    assert error.details == ("class 0 is 1 in the file, 0 in the data",)


def test_a_start_that_holds_nan_is_refused(trained, tmp_path) -> None:
    tensors = load_file(deployed(trained))
    tensors["stages.0.conv.weight"][0, 0] = math.nan
    broken = rewrite(deployed(trained), tmp_path / "nan.safetensors", tensors)
    error = refused(trained, tmp_path, f"qat.start_from={broken}")
    assert isinstance(error, CheckpointError)
    assert "1 of 128 values are NaN" in error.details[0]


@pytest.mark.parametrize(("weight", "says"), [(1e38, "not finite"), (0.0, "nothing but zeros")])
def test_activations_without_a_range_are_refused(trained, tmp_path, weight, says) -> None:
    tensors = load_file(deployed(trained))
    for name in ("stem.0.weight", "stem.0.bias"):
        tensors[name].fill_(weight)
    broken = rewrite(deployed(trained), tmp_path / "broken.safetensors", tensors)
    with pytest.raises(TrainingError, match=says) as caught:
        train_recipe(trained / "fine.yaml", workspace=Workspace(tmp_path), overrides=[f"qat.start_from={broken}"])
    assert "no checkpoint of this run" in caught.value.details[-1]


def test_a_run_does_not_go_on_from_another_start(trained, tmp_path) -> None:
    workspace, start = Workspace(tmp_path / "out"), tmp_path / "start.safetensors"
    rewrite(deployed(trained), start)

    def stop(epoch: int, epochs: int, figures: Mapping[str, float]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(
            trained / "fine.yaml", workspace=workspace, overrides=[f"qat.start_from={start}"], on_progress=stop
        )
    other = rewrite(deployed(trained), tmp_path / "other.safetensors", note="another")
    with pytest.raises(InputError, match="of another recipe") as caught:
        train_recipe(trained / "fine.yaml", workspace=workspace, overrides=[f"qat.start_from={other}"], resume=True)
    assert caught.value.details == (f"changed: qat.start_from: {start} then, {other} now",)
    kept = start.read_bytes()
    start.write_bytes(other.read_bytes())
    for give in ({"resume": True}, {}):
        with pytest.raises(InputError):
            train_recipe(trained / "fine.yaml", workspace=workspace, overrides=[f"qat.start_from={start}"], **give)
    with pytest.raises(InputError, match=r"started from another qat.start_from"):
        train_recipe(trained / "fine.yaml", workspace=workspace, overrides=[f"qat.start_from={start}"], resume=True)
    start.unlink()
    gone = train_recipe(trained / "fine.yaml", workspace=workspace, overrides=[f"qat.start_from={start}"], resume=True)
    assert gone.resumed_from == 1
    start.write_bytes(kept)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "stem.0: missing"),
        ("x", "stem.0: missing"),
        ({"stem.0": math.nan}, "stem.0: nan"),
        ({"stem.0": 0.0}, "stem.0: 0.0"),
        ({"elsewhere": 1.0}, "elsewhere: there is no such convolution"),
    ],
)
def test_ranges_that_cannot_be_right_are_refused(trained, tuned, tmp_path, told, says) -> None:
    whole = load_checkpoint(tuned).activation_ranges
    assert whole is not None
    ranges = (whole | told) if isinstance(told, dict) and told else told
    broken = rewrite(deployed(trained), tmp_path / "broken.safetensors", activation_ranges=ranges)
    with pytest.raises(CheckpointError, match="activation ranges") as caught:
        load_checkpoint(broken)
    assert says in caught.value.details


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ranges: ranges.pop("cls.2") and None, "cls.2: missing"),
        (lambda ranges: ranges.update({"stem.0": math.inf}), "stem.0: inf"),
        (lambda ranges: ranges.update({"stem.9": 1.0}), "stem.9: there is no such convolution"),
    ],
)
def test_ranges_of_another_graph_are_refused(graph, change, says) -> None:
    model = read_graph(graph)
    props = metadata(model)
    ranges = json.loads(props[ACTIVATION_RANGES])
    change(ranges)
    onnx.helper.set_model_props(model, props | {ACTIVATION_RANGES: json.dumps(ranges)})
    with pytest.raises(InputError, match="ranges that this graph was trained for") as caught:
        trained_ranges(model)
    assert says in caught.value.details
    onnx.helper.set_model_props(model, props | {ACTIVATION_RANGES: "{"})
    with pytest.raises(InputError, match="is damaged"):
        trained_ranges(model)


def test_a_series_activation_rounds_what_its_convolution_takes() -> None:
    """After the ReLU: what is below 0 counts for nothing."""
    layer = FakeQuantisedSeries(2, 1, deploy=True)
    layer.add_range(2)
    layer.input_range.fill_(1.27)
    plain = SeriesActivation(2, 1, deploy=True)
    grid = torch.tensor([[-5.0, 0.5], [1.27, 9.0]]).expand(1, 2, 2, 2)
    weights = torch.tensor([[1.27, 0.5, -0.01], [0.0, 0.02, 1.0], [-1.27, 0.3, 0.7]]).expand(2, 1, 3, 3)
    for each in (layer, plain):
        each.weight.data.copy_(weights)
        assert each.bias is not None
        each.bias.data.copy_(torch.tensor([0.1234, -0.4321]))
    assert torch.allclose(layer(grid), plain(grid.clamp(max=1.27)), atol=1e-6)


def test_quantize_takes_the_trained_ranges(graph: Path, trained: Path, tmp_path: Path) -> None:
    """And leaves weights and biases as they were trained; with a method it calibrates as ever."""
    images, labels = held_out(trained)
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    ranges = trained_ranges(read_graph(graph))
    assert ranges is not None
    made = {}
    for method in ("auto", "minmax"):
        made[method] = quantize_graph(
            graph,
            workspace=Workspace(tmp_path / method),
            calib=tmp_path / "digits.npz",
            options=QuantizeOptions(images=64, method=method, max_drop=100),
        ).artifact.facts
    found = made["auto"]
    assert (found["method"], found["equalised"], found["bias_corrected"]) == ("trained", False, False)
    scales = {layer["input"]: layer["input_scale"] for layer in found["layers"]}
    assert scales == {name: pytest.approx(ranges[name] / 127, rel=1e-6) for name in scales}
    assert made["minmax"]["method"] == "minmax"
    assert len(made["minmax"]["tried"]) > 1
