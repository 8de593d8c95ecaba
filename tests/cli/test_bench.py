"""`vexport bench`: recipes and their errors, comparing with an earlier result, JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.bench.page.document import synthetic_document
from vexport.pipeline.bench_compare import read_document

from .conftest import Invoke

RECIPE = """\
networks: []
sizes: [8]
roofline: false
clock: {warmup_s: 0, warmup_most_s: 0, duration_s: 0.05, least_count: 5, rounds: 5}
"""


@pytest.fixture
def graph(folder: Path) -> Path:
    """A network of one convolution."""
    weight = np.random.default_rng(0).standard_normal((5, 3, 1, 1), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], "pool"),
        helper.make_node("Flatten", ["b"], ["logits"], "flatten"),
    ]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "tiny.onnx")
    return Path("tiny.onnx")


@pytest.fixture
def recipe(folder: Path) -> Path:
    (folder / "mine.yaml").write_text(RECIPE)
    return Path("mine.yaml")


@pytest.fixture
def measured(invoke: Invoke, graph: Path, recipe: Path) -> Path:
    """A document, measured once."""
    result = invoke("bench", recipe, graph)
    assert result.exit_code == 0, result.output
    return Path("vexport-out/bench/mine/bench.json")


def slowed(document: Path, factor: float, name: str = "old.json") -> Path:
    """The same document with other latencies."""
    data = json.loads(document.read_text())
    changed = copy.deepcopy(data)
    for group in changed["groups"]:
        for row in group["rows"]:
            row["samples_ns"] = [[round(value * factor) for value in part] for part in row["samples_ns"]]
            row["median_ms"] *= factor
    Path(name).write_text(json.dumps(changed))
    return Path(name)


def test_a_recipe_with_a_file(invoke: Invoke, graph: Path, recipe: Path) -> None:
    result = invoke("bench", recipe, graph, "--report", "page")
    assert result.exit_code == 0, result.output
    assert "onnxruntime CPU, FP32, batch 1, 3x8x8" in result.stdout
    assert "publ. A100 PyTorch ms" in result.stdout
    assert "raw samples: vexport-out/bench/mine/bench.json" in result.stdout
    assert "report: page/report.html" in result.stdout
    assert "1 cell in 1 group: about " in result.stderr
    assert Path("page/report.html").read_text().startswith("<!")
    document = json.loads(Path("vexport-out/bench/mine/bench.json").read_text())
    assert (document["schema"], document["complete"], document["recipe"]["name"]) == (2, True, "mine")


def test_json_is_one_document(invoke: Invoke, graph: Path, recipe: Path) -> None:
    result = invoke("bench", recipe, graph, "--json")
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["path"] == "vexport-out/bench/mine/bench.json"
    assert said["groups"][0]["rows"][0]["network"] == "tiny"
    assert said["report"][0] == "vexport-out/bench/mine/report.html"


def test_slower_than_allowed_exits_with_3(invoke: Invoke, measured: Path) -> None:
    old = slowed(measured, 0.5)
    result = invoke("bench", measured, "--compare", old, "--max-regression", "5%")
    assert result.exit_code == 3, result.output
    assert "error: 1 of 1 rows is more than 5.0% slower" in result.stderr
    assert "slower than allowed" in result.stdout
    assert "hint: rule: slower than allowed: the whole interval" in result.stderr
    as_json = invoke("bench", measured, "--compare", old, "--max-regression", "0.05", "--json")
    assert as_json.exit_code == 3
    said = json.loads(as_json.stdout)["comparison"]
    assert (said["passed"], said["max_regression"]) == (False, 0.05)
    assert said["changes"][0]["regressed"] is True
    assert said["changes"][0]["ratio"]["value"] == pytest.approx(2, rel=0.01)


def test_not_slower_exits_with_0(invoke: Invoke, measured: Path) -> None:
    same = slowed(measured, 1.0)
    result = invoke("bench", measured, "--compare", same, "--max-regression", "5%")
    assert result.exit_code == 0, result.output
    assert "no row is more than 5.0% slower by the whole of its interval" in result.stdout
    shown = invoke("bench", measured, "--compare", slowed(measured, 0.5))
    assert shown.exit_code == 0, "without a bound nothing is asked"
    assert "slower, +" in shown.stdout


def test_the_earlier_result_may_be_the_one_that_is_replaced(
    invoke: Invoke, graph: Path, recipe: Path, measured: Path
) -> None:
    result = invoke("bench", recipe, graph, "--compare", measured)
    assert result.exit_code == 0, result.output
    assert "Now against before:" in result.stdout


def test_a_gate_never_replaces_what_it_compares_with(invoke: Invoke, graph: Path, recipe: Path, measured: Path) -> None:
    """Refused before anything is measured, by whatever path it is named."""
    before = measured.read_bytes()
    for old in (measured, measured.resolve()):
        result = invoke("bench", recipe, graph, "--compare", old, "--max-regression", "5%")
        assert result.exit_code == 1, result.output
        assert "which it compares with" in result.stderr
        assert "hint: give --output, or keep the earlier result elsewhere" in result.stderr
        assert "1 cell in 1 group" not in result.stderr, "nothing was planned"
    bare = invoke("bench", graph, "--compare", measured, "--max-regression", "5%", "--output", measured)
    assert "which it compares with" in bare.stderr
    assert measured.read_bytes() == before
    result = invoke("bench", recipe, graph, "--compare", measured, "--max-regression", "900%", "--output", "now.json")
    assert result.exit_code == 0, result.output
    assert measured.read_bytes() == before


def test_another_machine_is_no_ground_for_a_gate(invoke: Invoke, measured: Path) -> None:
    other = slowed(measured, 0.5)
    data = json.loads(other.read_text())
    data["environment"]["cpu"] = "Another"
    other.write_text(json.dumps(data))
    result = invoke("bench", measured, "--compare", other, "--max-regression", "5%")
    assert result.exit_code == 1
    assert "measured otherwise" in result.stderr
    assert "processor: Another before" in result.stderr
    shown = invoke("bench", measured, "--compare", other)
    assert shown.exit_code == 0
    assert "warning: measured otherwise" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing_like_it"], "unknown recipe 'nothing_like_it'"),
        (["paper_gp"], "did you mean paper_gpu?"),
        (["gone.yaml"], "there is no recipe gone.yaml"),
        (["quick", "paper_cpu"], "one recipe or document at a time"),
        (["quick", "--batch", "2"], "--batch and a recipe exclude each other"),
        (["quick", "--set", "batches=[0]"], "--set"),
        (["--set", "batches=[1]"], "--set goes with a recipe"),
        (["quick", "--max-regression", "5%"], "--max-regression goes with --compare"),
        (["quick", "--compare", "gone.json"], "no such file: gone.json"),
        (["quick", "--output", "x.txt"], "x.txt does not end in .json"),
        (["quick", "--data", "gone"], "gone"),
        (["gone.json"], "no such file: gone.json"),
        (["gone.onnx"], "no such file: gone.onnx"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, refused: Any) -> None:
    assert said in refused("bench", *arguments)


def test_a_share_that_is_none(invoke: Invoke, measured: Path) -> None:
    for text in ("five", "-1%", "nan", "inf"):
        result = invoke("bench", measured, "--compare", measured, "--max-regression", text)
        assert result.exit_code == 1
        assert f"--max-regression {text} is no share" in result.stderr


def test_a_document_that_is_none(invoke: Invoke, folder: Path) -> None:
    documents = {
        "list.json": ("[]", "give a bench.json"),
        "old.json": ('{"schema": 1, "tool": "vexport"}', "measure again"),
        "new.json": ('{"schema": 3, "tool": "vexport"}', "a newer vexport wrote it"),
        "cut.json": ("{", "give a bench.json"),
    }
    for name, (text, hint) in documents.items():
        (folder / name).write_text(text)
        result = invoke("bench", name)
        assert result.exit_code == 1, result.output
        assert f"error: {name}" in result.stderr
        assert hint in result.stderr


NEEDED = {"schema", "tool", "baseline", "groups"}
NEEDED_OF_GROUP = {"backend", "precision", "batch", "input_size", "rows"}
NEEDED_OF_ROW = {"network", "artifact_sha256", "median_ms", "samples_ns", "ratio", "p90_ms", "p99_ms"}


@pytest.fixture
def old(folder: Path) -> Path:
    """A document of the schema's first days: what the schema does not ask for is not there."""
    full = synthetic_document(rounds=6, calls=5)
    for group in full["groups"]:
        group["rows"] = [{key: row[key] for key in NEEDED_OF_ROW | {"error"} if key in row} for row in group["rows"]]
        group["rows"][0]["published_top1"] = 79.8
    full["groups"] = [{key: group[key] for key in NEEDED_OF_GROUP} for group in full["groups"]]
    (folder / "early.json").write_text(json.dumps({key: full[key] for key in NEEDED}))
    return Path("early.json")


def test_an_early_document_is_read_and_concluded_anew(invoke: Invoke, old: Path) -> None:
    result = invoke("bench", old, "--report", "page", "--compare", old)
    assert result.exit_code == 0, result.output
    assert "vanillanet_9" in result.stdout
    assert "slower than floating point" not in result.stdout
    assert "INT8 in onnxruntime CPU is faster, but its accuracy is not known" in result.stdout
    page = Path("page/report.html").read_text()
    assert "7.64" in page, "the paper's figure of a network that the document calls published"
    assert "2.91" not in page, "no word of VanillaNet-9 being the published one"
    table = result.stdout[result.stdout.index("onnxruntime CPU, INT8") :]
    assert "x its FP32" in table
    assert "publ. A100 PyTorch ms" in table


def test_a_document_of_today_is_read_as_it_is(measured: Path) -> None:
    assert read_document(measured) == json.loads(measured.read_text())


@pytest.mark.parametrize("field", ["environment", "device", "label", "notes", "samples_ns", "run", "accuracy"])
def test_no_field_that_the_schema_spares_is_missed(field: str, invoke: Invoke, folder: Path) -> None:
    document = synthetic_document(rounds=5, calls=3)
    document["groups"] = document["groups"][:1]
    rows = document["groups"][0]["rows"] = document["groups"][0]["rows"][2:4]
    for part in (document, *document["groups"], *rows):
        part.pop(field, None)
    (folder / "some.json").write_text(json.dumps(document))
    result = invoke("bench", "some.json", "--report", "page")
    assert result.exit_code == 0, result.output
    assert "62." in result.stdout


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (KeyboardInterrupt(), "interrupted: nothing was left half-written"),
        (
            KeyboardInterrupt("1 of 4 groups are in bench.json; go on with: vexport bench quick --resume"),
            "interrupted: 1 of 4 groups are in bench.json; go on with: vexport bench quick --resume",
        ),
    ],
    ids=["with nothing", "with a way on"],
)
def test_ctrl_c_says_one_thing(
    stop: KeyboardInterrupt, said: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexport.pipeline import bench as pipeline

    def measure(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(pipeline, "measure_recipe", measure)
    result = invoke("bench", "quick")
    assert result.exit_code == 130
    assert [line for line in result.stderr.splitlines() if "interrupted" in line] == [said]


def test_ctrl_c_between_two_groups_says_how_to_go_on_and_no_more(
    invoke: Invoke, graph: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexport.pipeline import bench_measure

    done = []
    real = bench_measure.measure_group

    def measure(*args: Any, **options: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(real(*args, **options))
        return done[0]

    monkeypatch.setattr(bench_measure, "measure_group", measure)
    monkeypatch.setattr("sys.argv", ["vexport", "bench", "mine.yaml", "tiny.onnx"])
    result = invoke("bench", recipe, graph, "--set", "batches=[1, 2]")
    assert result.exit_code == 130, result.output
    (said,) = [line for line in result.stderr.splitlines() if "interrupted" in line]
    assert said.startswith("interrupted: 1 of 2 groups are in ")
    assert said.endswith("bench.partial.json; go on with: vexport bench mine.yaml tiny.onnx --resume")
    assert "half-written" not in result.stderr
