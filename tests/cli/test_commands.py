"""The commands on a small checkpoint: what they write, print and answer when asked again."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image

from vexport.bench import clock
from vexport.model.build import expected_shapes
from vexport.model.variants import NetworkSpec
from vexport.workspace import hash_file, read_manifest

from .conftest import Invoke, Save, State, files_of

OUT = Path("vexport-out")
DEPLOYED, GRAPH = OUT / "ckpt.deploy.safetensors", OUT / "ckpt.onnx"
COMMANDS = ("models", "fuse", "onnx", "quantize", "check", "eval", "bench", "ablate", "explain")


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".json" and path.is_file()}


@pytest.fixture
def fused(invoke: Invoke, ckpt: Path) -> Path:
    """The deployed checkpoint."""
    done(invoke("fuse", ckpt))
    return DEPLOYED


def test_fuse_prints_its_blocks_and_writes(invoke: Invoke, ckpt: Path, folder: Path) -> None:
    before = hash_file(ckpt)
    result = done(invoke("fuse", ckpt))
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert [rows[name][1] for name in ("stem", "stages.0", "head")] == ["16x3x4x4", "32x16x1x1", "10x128x1x1"]
    assert all(float(rows[name][2]) < 1e-9 for name in ("stem", "stages.1", "head"))
    assert "random image(s)" in result.stdout
    assert result.stderr == "weights: ckpt.pth\n"
    assert set(files_of(folder)) == {"ckpt.pth", str(DEPLOYED), f"{DEPLOYED}.json"}
    manifest = read_manifest(DEPLOYED)
    assert manifest is not None
    assert manifest.sha256 == hash_file(DEPLOYED)
    assert manifest.parent is not None
    assert (manifest.parent.name, manifest.parent.sha256) == ("ckpt.pth", before)
    assert hash_file(ckpt) == before
    assert manifest.sha256[:12] in result.stdout


def test_fuse_again_is_up_to_date(invoke: Invoke, ckpt: Path, fused: Path, folder: Path) -> None:
    before = times(folder)
    for _ in range(2):
        assert f"up to date: {fused}" in done(invoke("fuse", ckpt)).stdout
    assert times(folder) == before
    assert json.loads(done(invoke("fuse", ckpt, "--json")).stdout)["up_to_date"] is True


def test_fuse_anew_when_the_parent_changed(invoke: Invoke, save: Save, state: State, fused: Path) -> None:
    old = hash_file(fused)
    state["cls2.0.bias"] = state["cls2.0.bias"] + 1
    assert "up to date" not in done(invoke("fuse", save(state))).stdout
    manifest = read_manifest(fused)
    assert manifest is not None
    assert manifest.replaces == old != manifest.sha256


def test_fuse_anew_when_the_options_changed(invoke: Invoke, ckpt: Path, fused: Path) -> None:
    assert "up to date" not in done(invoke("fuse", ckpt, "--from", "model")).stdout


def test_fuse_to_the_references_format(invoke: Invoke, ckpt: Path, small_spec: NetworkSpec) -> None:
    done(invoke("fuse", ckpt, "--format", "pth"))
    content = torch.load(OUT / "ckpt.deploy.pth", weights_only=True)
    assert set(content) == {"model", "vexport"}
    shapes = {name: tuple(tensor.shape) for name, tensor in content["model"].items()}
    assert shapes == dict(expected_shapes(small_spec, "deployed"))
    assert {"stem.1.bias", "stages.0.conv.weight", "stages.2.act.bias", "cls.2.weight"} <= set(shapes)


@pytest.mark.parametrize("written", ["safetensors", "pth"])
def test_a_deployed_file_is_said_to_be_deployed(invoke: Invoke, ckpt: Path, folder: Path, written: str) -> None:
    done(invoke("fuse", ckpt, "--format", written))
    path = OUT / f"ckpt.deploy.{written}"
    before = files_of(folder)
    assert "the file is deployed already" in done(invoke("fuse", path, "--format", written)).stderr
    assert files_of(folder) == before


def test_a_deployed_file_elsewhere_is_carried_over(invoke: Invoke, fused: Path) -> None:
    path = fused.rename("net.safetensors")
    assert "deployed already" in done(invoke("fuse", path, "--workspace", "w")).stderr
    assert Path("w/net.deploy.safetensors").is_file()


def test_fuse_on_images(invoke: Invoke, ckpt: Path, folder: Path) -> None:
    (folder / "photos" / "cats").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(3):
        pixels = random.integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / "cats" / f"{index}.png")
    result = done(invoke("fuse", ckpt, "--images", "photos"))
    assert "logits on 3 real image(s)" in result.stdout
    manifest = read_manifest(DEPLOYED)
    assert manifest is not None
    assert [entry["inputs"] for entry in manifest.parity] == ["random", "images"]
    assert all(entry["passed"] for entry in manifest.parity)
    assert "up to date" in done(invoke("fuse", ckpt, "--images", "photos")).stdout
    (folder / "photos" / "cats" / "2.png").unlink()
    assert "up to date" not in done(invoke("fuse", ckpt, "--images", "photos")).stdout


def test_fuse_to_a_named_file(invoke: Invoke, ckpt: Path, folder: Path) -> None:
    done(invoke("fuse", ckpt, "--output", "deep/net.safetensors"))
    assert set(files_of(folder)) == {"ckpt.pth", "deep/net.safetensors", "deep/net.safetensors.json"}


def test_the_average_is_preferred(invoke: Invoke, state: State) -> None:
    torch.save({"model": state, "model_ema": {n: t * 1 for n, t in state.items()}}, "two.pth")
    found = {}
    for options in ((), ("--from", "ema"), ("--from", "model")):
        said = json.loads(done(invoke("fuse", "two.pth", *options, "--json")).stdout)
        found[options] = said["manifest"]["facts"]["weights"]
        assert "assumed to be 1" in said["notes"][0]
    assert list(found.values()) == ["ema", "ema", "model"]


def test_bare_one_after_another(
    invoke: Invoke, ckpt: Path, fused: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(invoke("onnx"))
    assert "the newest that fits" in first.stderr
    assert "18 nodes: 9 Conv, 4 Relu, 3 MaxPool, 1 GlobalAveragePool, 1 Flatten" in first.stdout
    manifest = read_manifest(GRAPH)
    assert manifest is not None
    assert manifest.parent is not None
    assert manifest.parent.sha256 == hash_file(fused)
    assert manifest.sha256 == hash_file(GRAPH)
    before = times(folder)
    again = done(invoke("onnx"))
    assert f"up to date: {GRAPH}" in again.stdout
    said = json.loads(done(invoke("onnx", "--json")).stdout)
    assert (said["up_to_date"], said["path"]) == (True, str(GRAPH))
    assert said["manifest"] == manifest.to_json()
    assert times(folder) == before

    check = done(invoke("check", ckpt, GRAPH))
    assert check.stdout.splitlines()[-1] == "they agree"
    parity = json.loads(done(invoke("check", fused, GRAPH, "--json")).stdout)["parity"]
    assert parity["passed"]
    assert parity["max_rel"] < 1e-5

    monkeypatch.setattr(clock, "Clock", partial(clock.Clock, warmup_s=0.01, least_count=5, rounds=2))
    assert "raw samples" in done(invoke("bench", "--duration", "0.05")).stdout
    raw = json.loads((OUT / "bench.json").read_text())
    rows = [row for group in raw["groups"] for row in group["rows"]]
    assert {row["backend"].split()[0] for row in rows} == {"onnxruntime", "pytorch"}
    assert {row["network"] for row in rows} == {"ckpt"}, "baselines stand beside full-size networks only"
    assert all(len(row["samples_ns"]) == 2 and sum(map(len, row["samples_ns"])) == row["count"] for row in rows)
    assert read_manifest(OUT / "bench.json") is not None


def test_onnx_fuses_first(invoke: Invoke, ckpt: Path, folder: Path) -> None:
    result = done(invoke("onnx", ckpt))
    assert f"deployed checkpoint written first: {DEPLOYED}" in result.stderr
    assert {f"{path}{end}" for path in (DEPLOYED, GRAPH) for end in ("", ".json")} <= set(files_of(folder))
    again = done(invoke("onnx", ckpt))
    assert "deployed checkpoint was up to date" in again.stderr
    assert f"up to date: {GRAPH}" in again.stdout


def test_onnx_options(invoke: Invoke, fused: Path) -> None:
    said = json.loads(
        done(invoke("onnx", fused, "--batch", "2", "--opset", "17", "--size", "96", "-o", "x.onnx", "--json")).stdout
    )
    assert said["path"] == "x.onnx"
    model = onnx.load("x.onnx")
    assert [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 96, 96]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "logits")
    assert {node.op_type for node in model.graph.node} == {"Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten"}
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["vexport.parent_sha256"] == hash_file(fused)
    assert json.loads(props["vexport.preprocessing"])["input_size"] == [3, 96, 96]


def test_onnx_of_the_named_model_only(invoke: Invoke, fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert invoke("onnx", "--model", "vanillanet_6").exit_code == 1, "a checkpoint of vanillanet_5 does not fit"


def test_check_fails_with_3(invoke: Invoke, save: Save, state: State, ckpt: Path) -> None:
    state["cls2.0.bias"] = state["cls2.0.bias"] + 1
    other = save(state, "other.pth")
    result = invoke("check", ckpt, other)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: other.pth disagrees with ckpt.pth\n  max|a - b| / max|a| is ")
    assert "\nhint: " in result.stderr
    assert "they agree" not in result.stdout
    as_json = json.loads(invoke("check", ckpt, other, "--json").stdout)
    assert as_json["parity"]["passed"] is False
    assert invoke("check", ckpt, other, "--tolerance", "10").exit_code == 0


def test_check_against_a_graph_of_other_weights(invoke: Invoke, save: Save, state: State, ckpt: Path) -> None:
    done(invoke("onnx", ckpt))
    state["cls2.0.bias"] = state["cls2.0.bias"] + 1
    assert invoke("check", save(state, "other.pth"), GRAPH).exit_code == 3


def test_check_of_networks_that_take_other_images(invoke: Invoke, save: Save, state: State, ckpt: Path) -> None:
    result = invoke("check", ckpt, save(state, "large.pth", input_size=96))
    assert result.exit_code == 1
    assert "3x96x96" in result.stderr


def test_bench_has_nothing_to_measure(invoke: Invoke) -> None:
    result = invoke("bench")
    assert result.exit_code == 1
    assert "there is no VanillaNet graph" in result.stderr


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_a_path_and_weights_exclude_each_other(invoke: Invoke, ckpt: Path, command: str, folder: Path) -> None:
    result = invoke(command, ckpt, "--weights", "random")
    assert result.exit_code == 1
    assert "exclude each other" in result.stderr
    assert set(files_of(folder)) == {"ckpt.pth"}


@pytest.mark.parametrize("command", ["fuse", "onnx"])
def test_weights_need_a_network(invoke: Invoke, command: str) -> None:
    result = invoke(command, "--weights", "random")
    assert result.exit_code == 1
    assert "--model" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("fuse", "--no-such-option"),
        ("fuse", "a.pth", "b.pth"),
        ("fuse", "--format", "bin"),
        ("fuse", "--from", "teacher"),
        ("onnx", "--batch", "many"),
        ("onnx", "--weights", "best"),
        ("check", "a.onnx"),
        ("bench", "--duration", "long"),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_usage_errors(invoke: Invoke, args: tuple[str, ...]) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(invoke: Invoke, command: str, flag: str) -> None:
    result = done(invoke(command, flag))
    assert "Usage: " in result.stdout
    assert "--json" in result.stdout


def test_the_list_of_commands(invoke: Invoke) -> None:
    listed = invoke("--help").stdout
    assert all(command in listed for command in COMMANDS)


def test_version(invoke: Invoke) -> None:
    assert done(invoke("--version")).stdout.startswith("vexport ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['vexport', '--help']\n"
        "from vexport.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = ('torch', 'timm', 'numpy', 'onnx', 'onnxruntime', 'lightning', 'pydantic', 'yaml', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_models(invoke: Invoke) -> None:
    rows = {row["name"]: row for row in json.loads(done(invoke("models", "--json")).stdout)}
    assert len([name for name in rows if name.startswith("vanillanet_")]) == 11
    assert {"resnet50", "swin_tiny", "swin_small"} <= set(rows)
    assert rows["vanillanet_9"]["params_m"] == pytest.approx(rows["vanillanet_9"]["published"]["params_m"], rel=0.02)
    table = done(invoke("models")).stdout
    assert all(name in table for name in rows)


def test_json_is_one_document_and_nothing_else(invoke: Invoke, ckpt: Path) -> None:
    result = done(invoke("onnx", ckpt, "--json"))
    said = json.loads(result.stdout)
    assert said["fused"]["path"] == str(DEPLOYED)
    assert said["manifest"]["facts"]["operators"]["Conv"] == 9
    assert result.stderr == ""


def test_the_table_is_readable_when_piped(ckpt: Path) -> None:
    """No colours, no progress bar, nothing cut off."""
    done = subprocess.run(
        [sys.executable, "-m", "vexport", "fuse", str(ckpt)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stderr
    assert done.stderr == f"weights: {ckpt}\n"
