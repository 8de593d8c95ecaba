"""The exported graph: its operators, names and metadata, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import weights_by_name
from torch import nn

from vexport.errors import ExportError
from vexport.graph import simplify as simplify_module
from vexport.graph.inspect import count_operators
from vexport.graph.opset import set_opset
from vexport.graph.pools import ordinary_pool, ordinary_pools
from vexport.graph.write import write_graph
from vexport.model.build import build_network
from vexport.model.prove import merge_and_prove
from vexport.model.variants import VARIANTS, make_spec
from vexport.pipeline.export import _make_graph
from vexport.pipeline.resolve import stem_of
from vexport.run.ort import OrtRunner

Fill = Callable[..., dict[str, torch.Tensor]]
PLAIN = {"Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten"}


def plain_graph(name: str, *, batch: int | None = None, opset: int = 18) -> tuple[nn.Module, onnx.ModelProto]:
    from vexport.model.variants import published_preprocessing

    torch.manual_seed(0)
    network = build_network(make_spec(name, width=1 / 64, num_classes=10), form="deployed")
    for tensor in network.parameters():
        nn.init.normal_(tensor, std=0.2)
    _, graph, notes = _make_graph(network, published_preprocessing(name), batch, opset)
    assert notes == []
    return network, graph


@pytest.mark.parametrize("name", ["vanillanet_5", "vanillanet_9", "vanillanet_13_x1_5_ada_pool"])
def test_only_five_operators_and_the_same_answers(name: str, tmp_path: Path) -> None:
    network, graph = plain_graph(name)
    stages = len(VARIANTS[name].strides)
    assert count_operators(graph) == {
        "Conv": 2 * stages + 3,
        "Relu": stages + 1,
        "MaxPool": 3,
        "GlobalAveragePool": 1,
        "Flatten": 1,
    }
    assert {node.op_type for node in graph.graph.node} == PLAIN
    if name == "vanillanet_9":
        assert len(graph.graph.node) == 30
    producers = {node.output[0]: node for node in graph.graph.node}
    assert all(producers[node.input[0]].op_type == "Relu" for node in graph.graph.node if node.op_type == "MaxPool")
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    assert {"stem.0", "stem.1", "stages.0.conv", "stages.0.act", "cls.2"} <= set(names)
    write_graph(graph, tmp_path / "net.onnx")
    with OrtRunner(tmp_path / "net.onnx") as runner:
        for batch in (1, 2, 5):
            images = np.random.default_rng(batch).normal(size=(batch, 3, 224, 224)).astype(np.float32)
            with torch.no_grad():
                reference = network(torch.from_numpy(images)).numpy()
            assert np.abs(runner(images) - reference).max() / np.abs(reference).max() < 1e-5


def test_golden_output_through_onnx(fill: Fill, tmp_path: Path) -> None:
    from vexport.model.checkpoint import to_network
    from vexport.model.variants import published_preprocessing

    spec = make_spec("vanillanet_6", num_classes=10)
    image = weights_by_name.image()
    proven = merge_and_prove(fill(spec), spec, {"random": torch.from_numpy(image)})
    network = to_network(spec, "deployed", proven.tensors)
    _, graph, _ = _make_graph(network, published_preprocessing("vanillanet_6"), None, 18)
    write_graph(graph, tmp_path / "net.onnx")
    golden = np.load(Path(__file__).with_name("golden") / "vanillanet_6_c10.npy")
    with OrtRunner(tmp_path / "net.onnx") as runner:
        assert np.abs(runner(image)[0] - golden).max() / np.abs(golden).max() < 1e-5


def test_fixed_batch_opsets_and_no_paths_inside() -> None:
    _, graph = plain_graph("vanillanet_5", batch=3)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["input", "logits"]
    assert b".py" not in graph.SerializeToString()
    for opset in (14, 17, onnx.defs.onnx_opset_version()):
        changed = set_opset(graph, opset)
        assert changed.opset_import[0].version == opset
        onnx.checker.check_model(changed, full_check=True)
    with pytest.raises(ExportError, match="opset 5"):
        set_opset(graph, 5)


def test_external_data_is_found_beside_the_graph(tmp_path: Path) -> None:
    network, graph = plain_graph("vanillanet_5")
    write_graph(graph, tmp_path / "net.onnx", external=True)
    assert (tmp_path / "net.onnx.data").stat().st_size > (tmp_path / "net.onnx").stat().st_size
    images = np.ones((1, 3, 224, 224), dtype=np.float32)
    with OrtRunner(tmp_path / "net.onnx") as runner, torch.no_grad():
        np.testing.assert_allclose(runner(images), network(torch.from_numpy(images)).numpy(), rtol=1e-3, atol=1e-4)


def test_a_simplifier_that_fails_or_disagrees_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    _, graph = plain_graph("vanillanet_5")
    monkeypatch.setattr(onnxsim, "simplify", lambda model: (onnx.ModelProto(), False))
    kept, note = simplify_module.simplify(graph)
    assert kept is graph
    assert note is not None
    monkeypatch.setattr(onnxsim, "simplify", lambda model: 1 / 0)
    kept, note = simplify_module.simplify(graph)
    assert kept is graph
    assert note is not None
    assert "failed" in note


def test_adaptive_pools_as_ordinary_ones() -> None:
    assert [ordinary_pool(75, 38), ordinary_pool(38, 19), ordinary_pool(19, 10)] == [(3, 2, 1), (2, 2, 0), (3, 2, 1)]
    found = 0
    for size in range(2, 40):
        for target in range(1, size + 1):
            numbers = ordinary_pool(size, target)
            if numbers is None:
                continue
            found += 1
            x = torch.randn(1, 1, size, size)
            assert torch.equal(nn.MaxPool2d(*numbers)(x), nn.AdaptiveMaxPool2d(target)(x)), (size, target)
    assert found > 100


def test_an_adaptive_pool_that_is_no_ordinary_one_is_refused_and_restored() -> None:
    module = nn.Sequential(nn.AdaptiveMaxPool2d(7))
    with pytest.raises(ExportError, match="10x10 to 7x7"), ordinary_pools(module, torch.zeros(1, 1, 10, 10)):
        pass
    assert isinstance(module[0], nn.AdaptiveMaxPool2d)


def test_stems() -> None:
    names = {"ckpt.pth": "ckpt", "a.deploy.safetensors": "a", "quickstart.best.ckpt": "quickstart.best", "m.onnx": "m"}
    assert {name: stem_of(Path(name)) for name in names} == names
