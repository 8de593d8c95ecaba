"""What needs a GPU: engines that run, agree, are read back, replay CUDA graphs, reuse timings and are refitted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vexport.artifacts import Manifest
from vexport.engine.build import BuildOptions
from vexport.engine.plan import open_plan
from vexport.engine.runtime import MODULES, RuntimeName, describe_runtime
from vexport.engine.target import find_devices
from vexport.errors import EngineError, InputError
from vexport.pipeline.build import BuildResult, build_engine
from vexport.pipeline.check import check_parity
from vexport.pipeline.export import export_graph
from vexport.pipeline.inspect import inspect_artifact
from vexport.run import open_runner
from vexport.run.compare import random_batches
from vexport.workspace import Workspace, read_manifest, write_manifest

pytestmark = pytest.mark.gpu

Build = Callable[..., BuildResult]
SIZE = (3, 64, 64)


def _installed() -> list[RuntimeName]:
    return [name for name, module in MODULES.items() if find_spec(module) is not None]


# Polygraphy binds to one TensorRT for the life of a process: with both installed, run pytest once for each, -k NAME.
@pytest.fixture(params=_installed()[:1] or ["tensorrt-rtx"])
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    """The TensorRT of this run."""
    name: RuntimeName = request.param
    if find_spec(MODULES[name]) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def build(runtime: RuntimeName, small_checkpoint: Path, tmp_path: Path) -> Build:
    """Build the small network's engine for this GPU."""
    workspace = Workspace(tmp_path / "out")

    def run(**options: object) -> BuildResult:
        graph = export_graph(small_checkpoint, workspace=workspace).artifact.path
        own = {key: options.pop(key) for key in ("precision", "output", "use_cache") if key in options}
        asked = replace(BuildOptions(str(own.get("precision", "fp16"))), **options)  # type: ignore[arg-type]
        return build_engine(graph, workspace=workspace, runtime=runtime, options=asked, **own)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_engine_runs_and_agrees(build: Build, runtime: RuntimeName, precision: str) -> None:
    if precision == "bf16" and not describe_runtime(runtime).strongly_typed:
        pytest.skip("this TensorRT takes no BF16 graphs")
    manifest = build(precision=precision).artifact.manifest
    parity = manifest.parity[0]
    assert (parity["result"], parity["passed"]) == ("run", True)
    read_back = manifest.facts["precision_engine"]
    assert read_back["result"] in (("not asked",) if precision == "fp32" else ("read back", "not readable"))
    assert manifest.facts["precision_engine"]["layers"]


def test_read_back_names_types(build: Build) -> None:
    found = inspect_artifact(build().artifact.path)
    assert "takes" in found.columns
    assert any("fp16" in str(row) for row in found.layers)
    json.dumps(found.to_json())


def test_cuda_graphs_answer_the_same_at_every_batch(build: Build) -> None:
    path = build().artifact.path
    batches = random_batches(SIZE, (1, 4, 8, 4, 1))
    with open_runner(path) as plain, open_runner(path, cuda_graph=True) as graphed:
        for batch in batches:
            np.testing.assert_array_equal(plain(batch), graphed(batch))


def test_batch_outside_the_profile(build: Build) -> None:
    with (
        open_runner(build(max_batch=2).artifact.path) as runner,
        pytest.raises(InputError, match="outside the engine's profile of 1 to 2"),
    ):
        runner(random_batches(SIZE, (3,))[0])


def test_threads_have_contexts_of_their_own(build: Build) -> None:
    batches = random_batches(SIZE, (1, 2, 4, 8))
    wrong: list[int] = []
    with open_runner(build().artifact.path) as runner:
        expected = [runner(batch) for batch in batches]

        def work(index: int) -> None:
            for _ in range(20):
                if not np.array_equal(runner(batches[index]), expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_closed_runner_answers_no_more(build: Build) -> None:
    runner = open_runner(build().artifact.path)
    runner.close()
    with pytest.raises(InputError, match="is closed"):
        runner(random_batches(SIZE, (1,))[0])


def test_an_engine_from_elsewhere_is_proven_at_the_first_check(build: Build) -> None:
    built = build()
    path, manifest = built.artifact.path, built.artifact.manifest
    not_run = {"result": "not run", "reason": "built elsewhere", "with": built.graph.name}
    write_manifest(path, replace(manifest, parity=[not_run]))
    result = check_parity(built.graph, path)
    assert (result.parity.passed, result.proven) == (True, (path.name,))
    recorded = read_manifest(path)
    assert recorded is not None
    assert recorded.parity[0]["result"] == "run"
    assert check_parity(built.graph, path).proven == ()


def test_layer_by_layer(build: Build) -> None:
    built = build()
    layers = check_parity(built.graph, built.artifact.path, layers=True).layers
    assert layers
    assert max(layer.max_rel for layer in layers) < 2e-2


def test_a_plan_for_another_gpu(build: Build) -> None:
    built = build()
    manifest = built.artifact.manifest
    write_manifest(built.artifact.path, _moved(manifest, targets=[75]))
    with pytest.raises(EngineError, match=f"built for sm75; .* is sm{find_devices()[0].capability}"):
        open_plan(built.artifact.path)
    runtime = {**manifest.facts["runtime"], "version": "1.0.0"}
    write_manifest(built.artifact.path, _moved(manifest, runtime=runtime))
    with pytest.raises(EngineError, match=r"built with .* 1\.0\.0"):
        open_plan(built.artifact.path)


def _moved(manifest: Manifest, **facts: object) -> Manifest:
    return replace(manifest, facts={**manifest.facts, **facts})


def test_stripped_engines_take_their_weights_from_the_graph(build: Build, runtime: RuntimeName) -> None:
    if not describe_runtime(runtime).has_strip:
        pytest.skip("this TensorRT makes no stripped plans")
    whole = build()
    expected_bytes, graph = whole.artifact.manifest.size_bytes, whole.graph
    stripped = build(strip=True, output=whole.artifact.path.with_name("stripped.engine"))
    assert stripped.artifact.manifest.size_bytes < expected_bytes
    assert stripped.artifact.manifest.parity[0]["passed"]
    graph.rename(graph.with_name("gone.onnx"))
    with pytest.raises(EngineError, match="which is not beside it"):
        open_runner(stripped.artifact.path)


def test_refit(build: Build, runtime: RuntimeName) -> None:
    from vexport.engine.refit import refit_engine

    built = build(refit=True)
    engine, which, _ = open_plan(built.artifact.path)
    refit_engine(engine, which, built.graph)
    plain = build(refit=False, output=built.artifact.path.with_name("fixed.engine"))
    fixed, which, _ = open_plan(plain.artifact.path)
    with pytest.raises(EngineError, match="not refittable"):
        refit_engine(fixed, which, plain.graph)


def test_the_timing_cache_is_written_and_read(
    build: Build, runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not describe_runtime(runtime).has_timing_cache:
        pytest.skip("TensorRT for RTX times nothing at build time")
    import os

    import vexport.engine.build as module

    build()
    (cache,) = (Path(os.environ["VEXPORT_CACHE"]) / "timing").glob("*.cache")
    assert cache.stat().st_size > 100
    taken: list[bool] = []
    load = module.load_timing_cache
    monkeypatch.setattr(module, "load_timing_cache", lambda *args: taken.append(load(*args)))
    build(use_cache=False, max_batch=4)
    assert taken == [True]


def test_version_and_hardware_compatible(build: Build, runtime: RuntimeName) -> None:
    if describe_runtime(runtime).has_version_compatible:
        assert build(version_compatible=True).artifact.manifest.parity[0]["passed"]
    if find_devices()[0].capability >= 80:
        assert build(hardware_compatible=True).artifact.manifest.parity[0]["passed"]
