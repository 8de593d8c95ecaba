"""`vexport trt`: real engines for an A100 on any machine; what is refused, and what an accident leaves behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vexport.workspace import hash_file, read_manifest

from .conftest import Invoke, files_of

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")

Refused = Callable[..., str]
GRAPH = Path("vexport-out/ckpt.onnx")
ENGINE = Path("vexport-out/ckpt.fp16.sm80.engine")
A100 = ("--target", "a100")


@pytest.fixture
def graph(invoke: Invoke, ckpt: Path) -> Path:
    """The small network's FP32 graph, in the workspace."""
    assert invoke("onnx", ckpt).exit_code == 0
    return GRAPH


@pytest.fixture
def engine(invoke: Invoke, graph: Path) -> Path:
    """Its FP16 engine for an A100."""
    result = invoke("trt", "--fp16", *A100)
    assert result.exit_code == 0, result.output
    return ENGINE


def small_graph(
    path: Path, *nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = (), batch: object = "n"
) -> Path:
    """A graph from images to 4 classes: the nodes given, then pooling and a flatten."""
    last = nodes[-1].output[0]
    tail = (
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flatten"),
    )
    made = helper.make_graph(
        [*nodes, *tail],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        list(tensors),
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def weight(name: str, dtype: type = np.float32, outputs: int = 4, inputs: int = 3) -> onnx.TensorProto:
    values = np.random.default_rng(0).normal(size=(outputs, inputs, 1, 1)).astype(dtype)
    return numpy_helper.from_array(values, name)


def conv(name: str, source: str, kernel: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, kernel], [name], name=name)


def test_bare_after_onnx(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", *A100)
    assert result.exit_code == 0, result.output
    assert f"graph: {GRAPH}, the newest" in result.stderr
    assert "against FP32 on 16 random images" in result.stdout
    assert "convolution 9 FP16" in result.stdout
    manifest = read_manifest(ENGINE)
    assert manifest is not None
    assert manifest.parent is not None
    assert manifest.parent.sha256 == hash_file(Path("vexport-out/ckpt.fp16.onnx"))
    assert (manifest.sha256, manifest.facts["targets"]) == (hash_file(ENGINE), [80])
    assert manifest.facts["profile"] == {"min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [8, 3, 64, 64]}
    if not torch.cuda.is_available():
        assert manifest.parity[0]["result"] == "not run"
        assert "built, not run here" in result.stdout
        assert "parity: not run" in result.stdout


def test_again_is_up_to_date(invoke: Invoke, engine: Path) -> None:
    before = engine.stat().st_mtime_ns
    result = invoke("trt", *A100)
    assert "up to date: vexport-out/ckpt.fp16.sm80.engine" in result.stdout
    assert engine.stat().st_mtime_ns == before


def test_the_same_request_elsewhere_comes_from_the_cache(invoke: Invoke, engine: Path) -> None:
    first = hash_file(engine)
    assert invoke("trt", *A100, "--max-batch", "4").exit_code == 0  # writes over it
    assert hash_file(engine) != first
    result = invoke("trt", *A100)
    assert "from the cache: " in result.stdout
    assert hash_file(engine) == first
    told = json.loads(invoke("trt", *A100, "-o", "other.engine", "--json").stdout)
    assert (told["from_cache"], told["manifest"]["sha256"]) == (True, first)
    assert json.loads(invoke("trt", *A100, "-o", "third.engine", "--no-cache", "--json").stdout)["from_cache"] is False


def test_an_altered_cache_is_not_taken(invoke: Invoke, engine: Path) -> None:
    (plan,) = Path(os.environ["VEXPORT_CACHE"]).rglob("*.plan")
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.unlink()  # it is the same file as the engine: only the cache's copy changes
    plan.write_bytes(data)
    engine.unlink()
    assert "built in" in invoke("trt", *A100).stdout


@pytest.mark.parametrize(("flag", "layers"), [("--fp32", "9 FP32"), ("--bf16", "9 BF16")])
def test_other_precisions(invoke: Invoke, graph: Path, flag: str, layers: str) -> None:
    result = invoke("trt", flag, *A100)
    assert result.exit_code == 0, result.output
    assert f"convolution {layers}" in result.stdout


def test_several_targets(invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", "--target", "sm86,a100").exit_code == 0
    assert Path("vexport-out/ckpt.fp16.sm80-sm86.engine").is_file()


def test_two_flags_exclude_each_other(invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", "--fp16", "--fp32").exit_code == 2


def test_a_checkpoint_is_exported_first(invoke: Invoke, ckpt: Path) -> None:
    assert invoke("trt", ckpt, *A100).exit_code == 0
    assert ENGINE.is_file()
    assert GRAPH.is_file()


def test_random_weights_in_an_empty_folder(refused: Refused) -> None:
    assert "there is no checkpoint in vexport-out to take" in refused("trt", *A100)


def test_unsupported_operator_is_named_with_its_node(refused: Refused, folder: Path) -> None:
    odd = helper.make_node("Unheard", ["input"], ["odd"], name="the.odd.one", domain="example")
    graph = small_graph(folder / "odd.onnx", odd, conv("conv", "odd", "w"), tensors=(weight("w"),))
    said = refused("trt", graph, "--fp32", *A100)
    assert "the.odd.one (Unheard)" in said


def test_a_broken_graph(refused: Refused, folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"not a graph")
    assert "is not a whole ONNX graph" in refused("trt", "broken.onnx", *A100)
    assert "no such file" in refused("trt", "nowhere.onnx", *A100)


def test_batch_outside_the_graph(refused: Refused, folder: Path) -> None:
    graph = small_graph(folder / "two.onnx", conv("conv", "input", "w"), tensors=(weight("w"),), batch=2)
    said = refused("trt", graph, "--fp32", *A100, "--max-batch", "4", "--opt-batch", "2", "--min-batch", "2")
    assert "the graph's batch is fixed to 2" in said
    assert "no profile" in refused("trt", graph, *A100, "--min-batch", "3", "--opt-batch", "1")


def test_a_fixed_batch_is_the_profile(invoke: Invoke, folder: Path) -> None:
    graph = small_graph(folder / "two.onnx", conv("conv", "input", "w"), tensors=(weight("w"),), batch=2)
    told = json.loads(invoke("trt", graph, "--fp32", *A100, "--json").stdout)
    assert told["manifest"]["facts"]["profile"]["max"] == [2, 3, 8, 8]


@pytest.mark.parametrize("option", ["--min-batch", "--opt-batch", "--max-batch"])
def test_part_of_a_fixed_batch(invoke: Invoke, folder: Path, option: str) -> None:
    path = small_graph(folder / "two.onnx", conv("a", "input", "w"), tensors=(weight("w"),), batch=2)
    assert invoke("trt", path, option, "2", *A100).exit_code == 0
    result = invoke("trt", path, option, "3", *A100)
    assert result.exit_code == 1
    assert "batch is fixed to 2" in result.stderr


def test_what_the_parser_makes_in_fp32_is_told(invoke: Invoke, folder: Path) -> None:
    norm = helper.make_node("LpNormalization", ["input"], ["normed"], name="norm", axis=1, p=2)
    path = small_graph(folder / "norm.onnx", norm, conv("a", "normed", "w"), tensors=(weight("w"),))
    result = invoke("trt", path, *A100)
    assert result.exit_code == 0, result.output
    assert "in FP32 all the same" in result.stdout
    assert "norm" in result.stdout.split("in FP32 all the same")[1]


def test_a_batch_to_tune_for_is_enough(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", "--opt-batch", "16", *A100)
    assert result.exit_code == 0, result.output
    assert [side[0] for side in read_manifest(ENGINE).facts["profile"].values()] == [1, 16, 16]


def test_layers_whose_weights_suffer_are_named(invoke: Invoke, folder: Path) -> None:
    big, small = weight("big"), weight("small", inputs=4)
    big.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(big) * np.float32(1e5), "big"))
    small.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(small) * np.float32(1e-9), "small"))
    path = small_graph(folder / "wide.onnx", conv("a", "input", "big"), conv("b", "a", "small"), tensors=(big, small))
    result = invoke("trt", path, *A100)
    assert re.search(r"^  a: of 12 values \d+ overflow, 0 become 0; the largest is", result.stdout, re.M), result.output
    assert re.search(r"^  b: of 16 values 0 overflow, 16 become 0; the largest is", result.stdout, re.M)


def test_a_layer_in_the_wrong_precision_fails_with_its_name(invoke: Invoke, folder: Path) -> None:
    to = {"fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
    nodes = (
        helper.make_node("Cast", ["input"], ["half"], name="down", to=to["fp16"]),
        conv("first", "half", "w16"),
        helper.make_node("Cast", ["first"], ["full"], name="up", to=to["fp32"]),
        conv("fell.back", "full", "w32"),
    )
    tensors = (weight("w16", np.float16, 64), weight("w32", outputs=2, inputs=64))
    graph = small_graph(folder / "mixed.onnx", *nodes, tensors=tensors)
    model = onnx.load(graph)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(model, graph)
    result = invoke("trt", graph, "--fp16", *A100)
    assert result.exit_code == 3, result.output
    assert "1 of 2 computing layers are not fp16" in result.stderr
    assert "fell.back (convolution) is fp32" in result.stderr
    assert not list(folder.rglob("*.engine"))


def test_int8_needs_a_quantised_graph(refused: Refused, graph: Path) -> None:
    assert "there is no int8 graph in vexport-out" in refused("trt", "--int8", *A100)
    assert "is fp32, the engine shall be int8" in refused("trt", graph, "--int8", *A100)


def test_a_quantised_graph_is_built(invoke: Invoke, graph: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        left = iter([{"input": np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(
        str(graph),
        "quantised.int8.onnx",
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "DedicatedQDQPair": True, "QuantizeBias": False},
    )
    told = json.loads(invoke("trt", "quantised.int8.onnx", "--int8", *A100, "--json").stdout)
    assert told["path"].endswith("quantised.int8.sm80.engine")
    kinds = [layer["kind"] for layer in told["manifest"]["facts"]["build"]["network_layers"]]
    assert kinds.count("QUANTIZE") >= 9


def test_no_tensorrt(refused: Refused, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    said = refused("trt", "--fp16", *A100)
    assert "tensorrt-rtx" in said
    assert "hint: pip install tensorrt-rtx" in said


def test_no_classic_tensorrt(refused: Refused, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "hint: pip install 'vexport[trt]'" in refused("trt", "--runtime", "tensorrt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--target", "voodoo2"), "names no GPU"),
        (("--target", "h100"), "does not build for sm90"),
        (("--target", "a100", "--version-compatible"), "no version-compatible engines"),
        (("--target", "a100", "--opt-level", "9"), "does not exist"),
        (("--target", "a100", "--size", "32"), "fixed to 64x64"),
        (("--target", "a100", "--size", "0"), "is no size"),
        (("--target", "a100", "-o", "engine.bin"), "neither .engine nor .plan"),
        (("--target", "a100", "--model", "vanillanet_55"), "vanillanet_5"),
    ],
)
def test_options_that_cannot_be(
    refused: Refused, graph: Path, invoke: Invoke, options: tuple[str, ...], says: str
) -> None:
    if "--size" in options:
        assert invoke("trt", *A100).exit_code == 0  # the FP16 graph that it would write on the way
    assert says in refused("trt", "--fp16", *options, *(("--no-cache",) if "--size" in options else ()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver(refused: Refused, engine: Path, graph: Path) -> None:
    assert "there is no GPU with a driver here" in refused("trt", "--target", "current")
    assert "compiled while they are built" in refused("trt", *A100, "--strip", "--no-cache")
    said = refused("check", graph, engine)
    assert "cannot run here: no GPU with a driver here; built for sm80" in said


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_an_altered_plan_is_not_opened(refused: Refused, engine: Path, graph: Path, command: str) -> None:
    before = (graph,) if command == "check" else ()
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    assert f"{engine} is altered" in refused(command, *before, engine)
    engine.write_bytes(data[:-100])
    assert f"{engine} is truncated" in refused(command, *before, engine)
    engine.with_name(engine.name + ".json").unlink()
    said = refused(command, *before, engine)
    assert f"{engine} is unknown" in said
    assert "--trust" in said


def test_a_foreign_file_is_not_opened_even_when_trusted(refused: Refused, graph: Path, folder: Path) -> None:
    (folder / "notes.engine").write_text("no plan at all")
    assert "is not a TensorRT plan" in refused("check", graph, "notes.engine", "--trust")


def test_a_file_in_the_way(refused: Refused, invoke: Invoke, graph: Path) -> None:
    assert invoke("trt", *A100, "-o", "made.engine").exit_code == 0  # the FP16 graph
    Path("mine.engine").write_text("mine")
    assert "was not written by vexport" in refused("trt", *A100, "-o", "mine.engine")


def test_inspect_shows_the_engine(invoke: Invoke, engine: Path) -> None:
    told = json.loads(invoke("inspect", engine, "--json").stdout)
    assert (told["kind"], told["known"], told["facts"]["precision"]) == ("engine", True, "fp16")
    if not torch.cuda.is_available():
        kinds = {row["layer"]: row for row in told["layers"]}
        assert kinds["stem.0"]["gives"] == "fp16"
        assert any("cannot be read" in note for note in told["notes"])


def in_a_process(code: str, *args: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


RUN = "import sys; sys.argv[0] = 'vexport'; from vexport.__main__ import main; main()"
SLOW = """
import sys, time
import vexport.{module} as module
def slowly(*args, **kwargs):
    print("{what}", flush=True)
    time.sleep(60)
{where} = slowly
"""


def test_two_builds_at_once(graph: Path, folder: Path) -> None:
    both = [in_a_process(RUN, "trt", "--fp16", *A100, "--json") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    told = [json.loads(out) for out, _ in said]
    assert told[0]["manifest"]["sha256"] == told[1]["manifest"]["sha256"] == hash_file(ENGINE)
    built = [not (one["from_cache"] or one["up_to_date"]) for one in told]
    assert sum(built) == 1
    assert not [name for name in files_of(folder) if ".vexport-" in name]


@pytest.mark.parametrize(
    ("module", "where"),
    [("engine.build", "module._build"), ("workspace", "module.Staging.publish")],
    ids=["in the builder", "before the engine stands"],
)
def test_killed_during_a_build(invoke: Invoke, graph: Path, folder: Path, module: str, where: str) -> None:
    assert invoke("trt", "--fp16", *A100, "-o", "other.engine", "--max-batch", "2").exit_code == 0
    before = files_of(folder)
    code = SLOW.format(module=module, what="under way", where=where) + RUN
    process = in_a_process(code, "trt", "--fp16", *A100)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    after = {name: sha for name, sha in files_of(folder).items() if "/.vexport-" not in name}
    assert after == before
    assert "from the cache" in invoke("trt", "--fp16", *A100, "-o", "again.engine", "--max-batch", "2").stdout
    result = invoke("trt", "--fp16", *A100)
    assert "built in" in result.stdout


def test_interrupted_in_the_builder(graph: Path, folder: Path, invoke: Invoke) -> None:
    assert invoke("trt", "--fp16", *A100, "-o", "other.engine", "--max-batch", "2").exit_code == 0
    before = files_of(folder)
    code = """
import os, signal, threading
import vexport.engine.build as build
class Monitor(build._Monitor):
    def step(self, phase, step):
        if not self.cancelled and not hasattr(self, "told"):
            self.told = True
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)
        return super().step(phase, step)
build._Monitor = Monitor
"""
    process = in_a_process(code + RUN, "trt", "--fp16", *A100)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert files_of(folder) == before


def test_full_disk(invoke: Invoke, graph: Path, folder: Path) -> None:
    assert invoke("trt", "--fp16", *A100, "-o", "other.engine", "--max-batch", "2").exit_code == 0
    before = files_of(folder)
    limit = 50_000

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = in_a_process(RUN, "trt", "--fp16", *A100, preexec_fn=small_files)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "no space left to write vexport-out/ckpt.fp16.sm80.engine" in said
    assert "hint: free some space" in said
    assert files_of(folder) == before


def test_what_a_killed_process_left_long_ago_is_removed(invoke: Invoke, graph: Path) -> None:
    old, new = (graph.parent / f".vexport-{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    past = time.time() - 2 * 24 * 3600
    os.utime(old, (past, past))
    assert invoke("trt", *A100).exit_code == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_triton(invoke: Invoke, graph: Path) -> None:
    result = invoke("trt", *A100, "--triton", "models")
    assert result.exit_code == 0, result.output
    assert "opens no plans of TensorRT for RTX" in result.stderr
    model = Path("models/ckpt")
    assert hash_file(model / "1" / "model.onnx") == hash_file(Path("vexport-out/ckpt.fp16.onnx"))
    assert "max_batch_size: 8" in (model / "config.pbtxt").read_text()
    assert json.loads((model / "vexport.json").read_text())["engine"]["sha256"] == hash_file(ENGINE)
