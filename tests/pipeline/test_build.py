"""Real engines for an A100 from any machine: full-size networks, FP32 and FP16, precision and size."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from vexport.pipeline.build import build_engine
from vexport.pipeline.export import export_graph
from vexport.workspace import Workspace, hash_file

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")

# Layers that compute: convolutions and matrix products, counted from the architectures.
NETWORKS = {
    "vanillanet_5": {"convolution": 9},
    "vanillanet_9": {"convolution": 17},
    "vanillanet_13_x1_5_ada_pool": {"convolution": 25},
    "resnet50": {"convolution": 53, "matrix_multiply": 1},
    "swin_tiny": {"convolution": 1, "matrix_multiply": 76},
}
KERNELS_BYTES = 4_000_000  # code and tables beside the weights


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    return {name: Workspace(tmp_path_factory.mktemp(name)) for name in NETWORKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_engines_for_an_a100(workspaces: dict[str, Workspace], name: str) -> None:
    workspace = workspaces[name]
    exported = export_graph(workspace=workspace, model=name, weights="random")
    parameters = exported.artifact.facts["parameters"]
    del exported
    gc.collect()
    for precision, width in (("fp32", 4), ("fp16", 2)):
        built = build_engine(workspace=workspace, model=name, precision=precision, target="a100")  # type: ignore[arg-type]
        facts, manifest = built.artifact.facts, built.artifact.manifest
        assert built.artifact.path.name == f"{name}.random.{precision}.sm80.engine"
        assert (facts["precision"], facts["targets"], facts["tf32"]) == (precision, [80], False)
        counted = {kind: {precision: count} for kind, count in NETWORKS[name].items()}
        assert facts["build"]["precision_network"] == counted
        weights = parameters * width
        assert weights <= manifest.size_bytes <= 1.25 * weights + KERNELS_BYTES
        if built.converted is not None:
            graph = built.converted.artifact
            assert manifest.parent == graph.as_parent()
            assert (facts["kept_fp32"], graph.manifest.parity[0]["passed"]) == ({}, True)
        again = build_engine(workspace=workspace, model=name, precision=precision, target="a100")  # type: ignore[arg-type]
        assert again.up_to_date
        built.artifact.path.unlink()
        cached = build_engine(workspace=workspace, model=name, precision=precision, target="a100")  # type: ignore[arg-type]
        assert cached.from_cache
        assert hash_file(cached.artifact.path) == manifest.sha256
        cached.artifact.path.unlink()


def test_layers_that_overflow_stay_in_fp32_in_the_engine(small_checkpoint: Path, tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    workspace = Workspace(tmp_path / "out")
    source = export_graph(small_checkpoint, workspace=workspace).artifact.path
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    # From the first convolution to the next everything is a million times larger; ReLU does not mind.
    for name, factor in (("stem.0.weight", 1e6), ("stem.0.bias", 1e6), ("stem.1.weight", 1e-6)):
        if name in weights:
            values = numpy_helper.to_array(weights[name]) * np.float32(factor)
            weights[name].CopyFrom(numpy_helper.from_array(values, name))
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    built = build_engine(path, workspace=workspace, precision="fp16", target="a100")
    kept = built.artifact.facts["kept_fp32"]
    assert "stem.0" in kept
    assert "stages.1.conv" not in kept
    counts = built.artifact.facts["build"]["precision_network"]["convolution"]
    assert counts["fp32"] == sum(name.startswith(("stem", "stages", "cls")) and "relu" not in name for name in kept)
    assert counts["fp16"] + counts["fp32"] == 9
