"""INT8 graphs in the workspace: calibrated, held against FP32, and only written where they are as good."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from colours import CLASSES, CONVS, prepared, save_graph, save_images
from onnx import numpy_helper
from PIL import Image

import vexport.graph.quantize as quantize_module
from vexport.errors import AccuracyError, InputError, ParityError, WorkspaceError
from vexport.graph.inspect import metadata, read_graph
from vexport.graph.quantize import conv_edges
from vexport.pipeline import quantize_gate, quantize_search
from vexport.pipeline.calibration import QuantizeOptions
from vexport.pipeline.convert import convert_graph
from vexport.pipeline.fewest import fewest_left_out
from vexport.pipeline.graphs import find_graph
from vexport.pipeline.inspect import inspect_artifact
from vexport.pipeline.quantize import QuantizeResult, quantize_graph
from vexport.pipeline.range_picture import bits_lost
from vexport.run.ort import OrtRunner
from vexport.workspace import Workspace, hash_file, load_artifact, read_manifest


@pytest.fixture
def out(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return save_graph(tmp_path / "colours.onnx")


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    """120 labelled images."""
    return save_images(tmp_path / "images")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """96 images without labels."""
    np.save(tmp_path / "plain.npy", prepared(96))
    return tmp_path / "plain.npy"


HOW = {field.name for field in fields(QuantizeOptions)}


def quantized(graph: Path, out: Workspace, calib: Path, **given: Any) -> QuantizeResult:
    options = QuantizeOptions(**{name: value for name, value in given.items() if name in HOW})
    others = {name: value for name, value in given.items() if name not in HOW}
    return quantize_graph(graph, workspace=out, calib=calib, options=options, **{"threads": 1} | others)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_with_labels_the_accuracy_is_held(graph: Path, out: Workspace, calib: Path) -> None:
    seen: list[str] = []
    made = quantized(graph, out, calib, images=64, on_progress=lambda text, _share: seen.append(text))
    assert (made.artifact.path.name, made.artifact.precision, made.up_to_date) == ("colours.int8.onnx", "int8", False)
    facts = made.artifact.facts
    gate = facts["gate"]
    assert (gate["kind"], gate["passed"], gate["top1_percent_fp32"]) == ("accuracy", True, 100.0)
    # All that was not measured: 120 images less 56.
    assert (gate["images"], gate["drop_points"], gate["max_drop_points"]) == (64, 0.0, 0.5)
    assert gate["labelling"] == "folders are classes by name"
    calibration = facts["calibration"]
    assert [calibration[key] for key in ("kind", "found", "measured", "held_out")] == ["folder", 120, 56, 8]
    parts = {part: [e for e in calibration["images"] if e["part"] == part] for part in ("calibration", "held out")}
    assert [len(rows) for rows in parts.values()] == [56, 8]
    assert all(entry["sha256"] == hash_file(calib / entry["name"]) for entry in calibration["images"])
    assert {entry["name"].split("/")[0] for entry in parts["held out"]} == set(CLASSES)
    assert "measuring activations: 56 of 56 images" in seen
    assert made.notes == (
        "only 8 image(s) held out: the figures say little",
        "one of 64 labelled images is 1.6 points: the accuracy says little, and agreement was asked as well",
    )


def test_all_methods_are_tried_and_the_best_is_kept(graph: Path, out: Workspace, calib: Path) -> None:
    facts = quantized(graph, out, calib, images=64).artifact.facts
    rows = facts["tried"]
    methods = ["minmax", "percentile", "entropy", "mse"]
    assert [(row["form"], row["method"]) for row in rows[:8]] == [
        (form, method) for form in ("plain", "equalised") for method in methods
    ]
    assert [row["bias_corrected"] for row in rows] == [False] * 8 + [True]
    best = min(rows, key=lambda row: row["noise"])
    written = (facts["equalised"], facts["method"], facts["bias_corrected"])
    assert written == (best["form"] == "equalised", best["method"], best["bias_corrected"])
    assert len({row["noise"] for row in rows}) > 4
    for row in rows[:4]:
        alone = quantized(
            graph, out, calib, images=64, method=row["method"], equalize=False, correct_biases=False
        ).artifact.facts
        assert alone["tried"] == [row]
        assert not alone["equalised"]


def test_the_report_says_where_the_edges_are(graph: Path, out: Workspace, calib: Path) -> None:
    made = quantized(graph, out, calib, method="minmax", keep=("second",)).artifact
    model = onnx.load(made.path)
    assert made.facts["layers"] == [edges.to_json() for edges in conv_edges(model)]
    assert [layer["quantised"] for layer in made.facts["layers"]] == [True, False, True]
    assert made.facts["kept_fp32"] == {"second": "asked for with --keep"}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    largest = max(
        float(np.abs((np.asarray(Image.open(calib / e["name"]), np.float32) / 255 - 0.5) / 0.25).max())
        for e in made.facts["calibration"]["images"]
        if e["part"] == "calibration"
    )
    assert float(stored["input_scale"]) == pytest.approx(largest / 127, rel=1e-5)
    assert stored["second.weight"].dtype == np.float32
    assert stored["first.weight_quantized"].dtype == np.int8


def test_provenance(graph: Path, out: Workspace, calib: Path) -> None:
    made = quantized(graph, out, calib)
    manifest = read_manifest(made.artifact.path)
    assert manifest is not None
    assert load_artifact(made.artifact.path) is not None
    assert manifest.parent is not None
    assert (manifest.parent.name, manifest.parent.sha256) == ("colours.onnx", hash_file(graph))
    props = metadata(read_graph(made.artifact.path))
    assert props["vexport.precision"] == "int8"
    assert props["vexport.parent_sha256"] == hash_file(graph)
    assert json.loads(props["vexport.class_names"]) == list(CLASSES)
    (parity,) = manifest.parity
    assert (parity["passed"], parity["images"]) == (True, 15)
    assert 0 < parity["max_rel"] < 0.2
    assert "the same class on 100% of 15 images" in inspect_artifact(made.artifact.path).facts["parity"]
    json.dumps(made.to_json(), allow_nan=False)


def test_the_file_is_what_was_compared(graph: Path, out: Workspace, plain: Path) -> None:
    made = quantized(graph, out, plain)
    images = np.load(plain)
    held = [
        int(entry["name"].partition("[")[2].rstrip("]"))
        for entry in made.artifact.facts["calibration"]["images"]
        if entry["part"] == "held out"
    ]
    with OrtRunner(graph) as fp32, OrtRunner(made.artifact.path) as int8:
        before, after = fp32(images[held]), int8(images[held])
    assert made.artifact.manifest.parity[0]["max_abs"] == pytest.approx(np.abs(before - after).max(), rel=1e-3)


def test_without_labels_agreement_is_held_and_says_so(graph: Path, out: Workspace, plain: Path) -> None:
    made = quantized(graph, out, plain)
    gate = made.artifact.facts["gate"]
    assert (gate["kind"], gate["passed"], gate["images"]) == ("agreement", True, 12)
    # Of 12 images one may get another class.
    assert (gate["least_top1_agreement"], gate["least_cosine"]) == (pytest.approx(11 / 12), 0.99)
    assert made.artifact.facts["calibration"]["prepared"] == "as they are in the array"


def test_again_is_up_to_date_and_another_request_is_not(
    graph: Path, out: Workspace, calib: Path, tmp_path: Path
) -> None:
    own = save_images(tmp_path / "val", 5, first=100)
    first = quantized(graph, out, calib, images=64)
    again = quantized(graph, out, calib, images=64)
    assert again.up_to_date
    assert again.artifact == first.artifact
    others: tuple[dict[str, Any], ...] = (
        {"images": 48},
        {"images": 48, "seed": 1},
        {"images": 48, "seed": 1, "method": "mse"},
        {"images": 48, "seed": 1, "method": "mse", "keep": ("last",)},
        {"images": 48, "seed": 1, "method": "mse", "keep": ("last",), "max_drop": 1.0},
        {"images": 48, "seed": 1, "method": "mse", "keep": ("last",), "max_drop": 1.0, "evaluate_on": own},
    )
    for other in others:
        assert not quantized(graph, out, calib, **other).up_to_date
        assert quantized(graph, out, calib, **other).up_to_date
    # An image changes.
    entry = quantized(graph, out, calib, **others[1]).artifact.facts["calibration"]["images"][0]
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(calib / entry["name"])
    assert not quantized(graph, out, calib, **others[1]).up_to_date
    assert left_in(out.root) == ["colours.int8.onnx", "colours.int8.onnx.json"]


def test_statistics_are_measured_once(
    graph: Path, out: Workspace, calib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantized(graph, out, calib, method="minmax")
    with monkeypatch.context() as patched:

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("they are known")

        patched.setattr("vexport.run.calibrate.collect_statistics", never)
        again = quantized(graph, out, calib, method="mse")
        assert again.artifact.sha256 != made.artifact.sha256
        assert quantized(graph, out, calib, keep=("last",)).artifact.facts["kept_fp32"], "all inputs are known"
        for other in (
            {"graph": save_graph(tmp_path / "spread.onnx", spread=2.0)},
            {"seed": 7, "images": 32},
            {"use_cache": False},
        ):
            with pytest.raises(AssertionError, match="they are known"):
                quantized(**{"graph": graph, "out": out, "calib": calib, "method": "entropy"} | other)
    assert quantized(graph, out, calib, method="minmax", use_cache=False).artifact.sha256 == made.artifact.sha256


NAIVE = {"equalize": False, "correct_biases": False, "mixed": False}


def test_a_hostile_network_is_refused_with_the_layer_to_blame(tmp_path: Path, out: Workspace, calib: Path) -> None:
    """One channel's activations are 10,000 times as large; the function is the same, and INT8 cannot hold it."""
    hostile = save_graph(tmp_path / "hostile.onnx", spread=1e4)
    with pytest.raises(AccuracyError, match=r"INT8 loses \d+\.\d\d points of top-1, 0.5 are allowed") as caught:
        quantized(hostile, out, calib, **NAIVE)
    error = caught.value
    assert error.exit_code == 3
    assert error.details[0].startswith("top-1 of 15 labelled images: FP32 100.00 %, INT8 ")
    assert error.details[1].startswith("too few to tell 0.5 points: the held-out answers must agree too: SQNR ")
    assert [line.split(":")[0] for line in error.details[2:6]] == [
        "tried plain, minmax",
        "tried plain, percentile",
        "tried plain, entropy",
        "tried plain, mse",
    ]
    ranked = [line.strip().split(":")[0] for line in error.details[7:]]
    assert ranked[0] == "second"
    assert sorted(ranked) == sorted(CONVS)
    assert "--keep second" in error.hint
    assert left_in(out.root) == []
    kept = quantized(hostile, out, calib, keep=("second",), **NAIVE)
    assert kept.artifact.facts["gate"]["drop_points"] == 0


def test_equalisation_saves_the_hostile_network(tmp_path: Path, out: Workspace, calib: Path) -> None:
    facts = quantized(save_graph(tmp_path / "hostile.onnx", spread=1e4), out, calib).artifact.facts
    assert facts["equalised"]
    assert facts["gate"]["drop_points"] == 0
    assert facts["kept_fp32"] == {}
    found = facts["equalisation"]
    assert (found["pairs"], found["exact"]) == (2, True)
    assert found["float64_error"] < 1e-9
    assert found["fp32_error"] < 1e-5
    assert found["largest_scale"] / found["least_scale"] > 1000
    plain, equalised = facts["tried"][0], facts["tried"][4]
    assert plain["max_rel"] > 10 * equalised["max_rel"]


def test_the_layer_to_blame_is_left_in_floating_point(tmp_path: Path, out: Workspace, calib: Path) -> None:
    hostile = save_graph(tmp_path / "hostile.onnx", spread=1e4)
    made = quantized(hostile, out, calib, equalize=False)
    assert made.artifact.facts["kept_fp32"] == {"second": "the gate is missed with it in INT8"}
    assert [layer["quantised"] for layer in made.artifact.facts["layers"]] == [True, False, True]
    assert made.artifact.facts["gate"]["drop_points"] == 0
    assert made.artifact.facts["tried"][-1]["left_out"] == ["second"]
    assert "left in floating point, or the gate would be missed: second" in made.notes


def test_where_leaving_layers_out_does_not_help_either(
    graph: Path, out: Workspace, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_gate, "LEAST_COSINE", 1.1)
    with pytest.raises(ParityError) as caught:
        quantized(graph, out, plain, method="minmax")
    assert "tried up to 2 of 3 layers in floating point: still missed" in caught.value.details
    assert left_in(out.root) == []


def test_an_equalisation_that_is_not_exact_is_not_used(
    tmp_path: Path, out: Workspace, calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_search, "EXACT", 0.0)
    made = quantized(save_graph(tmp_path / "hostile.onnx", spread=1e4), out, calib)
    assert not made.artifact.facts["equalised"]
    assert any(note.startswith("equalisation was not used: it changes the answers by ") for note in made.notes)


def test_the_picture_of_the_ranges(tmp_path: Path, out: Workspace, calib: Path) -> None:
    hostile = save_graph(tmp_path / "hostile.onnx", spread=1e4)
    for name in ("ranges.png", "ranges.svg"):
        quantized(hostile, out, calib, plot=tmp_path / name)
        assert (tmp_path / name).stat().st_size > 10_000
    assert quantized(hostile, out, calib, plot=tmp_path / "ranges.svg").up_to_date
    (tmp_path / "ranges.svg").unlink()
    assert not quantized(hostile, out, calib, plot=tmp_path / "ranges.svg").up_to_date, "the picture is made again"
    with pytest.raises(InputError, match=r"ends in none of \.png, \.svg, \.pdf"):
        quantized(hostile, out, calib, plot=tmp_path / "ranges.txt")
    with pytest.raises(InputError, match="nowhere is no folder"):
        quantized(hostile, out, calib, plot=tmp_path / "nowhere" / "ranges.png")


def test_bits_that_channels_lose() -> None:
    np.testing.assert_array_equal(bits_lost(np.array([0.25, 1.0, 1e-9, 0.0, 0.5])), [0, 1, 2, 8, 8])
    np.testing.assert_array_equal(bits_lost(np.zeros(3)), [8, 8, 8])


def test_step_by_step(tmp_path: Path, out: Workspace, calib: Path) -> None:
    """What each step gives, on the same images: naive INT8 collapses, the written one does not."""
    made = quantized(save_graph(tmp_path / "hostile.onnx", spread=1e4), out, calib, images=60, steps=True)
    steps = made.artifact.facts["steps"]
    assert [step["step"].split(" (")[0] for step in steps[:4]] == [
        "FP32",
        "FP16",
        "INT8, per-tensor, min-max",
        "INT8, per-channel, min-max",
    ]
    assert steps[-1]["step"].startswith("written: equalised, ")
    drops = {step["step"]: step["gate"]["drop_points"] for step in steps[1:]}
    assert drops["FP16"] == 0
    assert drops["INT8, per-channel, min-max"] > 10
    assert list(drops.values())[-1] == 0
    assert {step["gate"]["images"] for step in steps[1:]} == {made.artifact.facts["gate"]["images"]}
    assert steps[-1]["size_bytes"] == made.artifact.path.stat().st_size
    assert all(step["size_bytes"] > 0 for step in steps)
    json.dumps(made.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("share", "classes", "images", "guessing"),
    [
        (0.995, 2, 200, False),  # a good network of two classes
        (0.52, 2, 200, True),
        (0.66, 3, 500, False),
        (0.36, 3, 60, True),
        (0.0015, 1000, 5000, True),
        (0.15, 1000, 5000, False),
    ],
)
def test_what_counts_as_guessing(share: float, classes: int, images: int, guessing: bool) -> None:
    assert quantize_gate.is_guessing(share, classes, images) == guessing


def test_the_interval_of_the_drop() -> None:
    """By images that one of the two alone gets right: 30 against 10 of 1000 is 2 points, give or take 1.2."""
    low, high = quantize_gate.drop_interval(30, 10, 1000)
    assert (low + high) / 2 == pytest.approx(2)
    assert high - low == pytest.approx(2 * 1.25, abs=0.02)
    low, high = quantize_gate.drop_interval(0, 0, 50)
    assert low == -high < 0, "no difference on 50 images is no proof of none"


def test_a_picture_of_another_graph_is_not_drawn_over(graph: Path, out: Workspace, calib: Path, tmp_path: Path) -> None:
    other = save_graph(tmp_path / "other.onnx", spread=2.0)
    picture = tmp_path / "ranges.png"
    quantized(graph, out, calib, plot=picture)
    before = picture.read_bytes()
    with pytest.raises(InputError, match=r"ranges\.png is there already"):
        quantized(other, out, calib, plot=picture)
    assert picture.read_bytes() == before
    quantized(other, out, calib, plot=picture, force=True)
    assert picture.read_bytes() != before
    assert not quantized(graph, out, calib, plot=tmp_path / "own.png").up_to_date


def test_the_picture_is_there_where_the_gate_is_missed(tmp_path: Path, out: Workspace, calib: Path) -> None:
    hostile = save_graph(tmp_path / "hostile.onnx", spread=1e4)
    with pytest.raises(AccuracyError):
        quantized(hostile, out, calib, plot=tmp_path / "ranges.png", **NAIVE)
    assert (tmp_path / "ranges.png").stat().st_size > 10_000


def test_a_layer_named_twice_counts_once() -> None:
    assert QuantizeOptions(keep=("a", "b", "a")).keep == ("a", "b")


def test_damaged_images_are_not_listed_as_used(graph: Path, out: Workspace, calib: Path) -> None:
    (calib / "red" / "003.png").write_bytes(b"no image")
    calibration = quantized(graph, out, calib).artifact.facts["calibration"]
    (entry,) = [entry for entry in calibration["images"] if entry["name"] == "red/003.png"]
    assert entry["part"] == "skipped"
    assert calibration["measured"] + calibration["held_out"] == 119


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        ({"c"}, ["c"]),
        ({"a"}, ["a"]),
        ({"a", "d"}, ["a", "d"]),
        ({"b", "c", "e"}, ["b", "c", "e"]),
        (set("abcdef"), None),
    ],
)
def test_the_fewest_layers_are_left_out(bad: set[str], wanted: list[str] | None) -> None:
    """The gate holds as soon as all bad layers are left out, however they were ranked."""
    asked: list[tuple[str, ...]] = []

    def passes(layers: Sequence[str]) -> bool:
        asked.append(tuple(layers))
        return bad <= set(layers)

    assert fewest_left_out("abcdef", passes) == wanted
    assert len(asked) == len(set(asked)), "nothing is measured twice"
    assert fewest_left_out("a", passes) is None


def test_without_labels_it_is_refused_too(tmp_path: Path, out: Workspace, plain: Path) -> None:
    hostile = save_graph(tmp_path / "hostile.onnx", spread=1e4)
    with pytest.raises(ParityError, match="disagrees with the FP32 graph") as caught:
        quantized(hostile, out, plain, method="minmax", **NAIVE)
    assert caught.value.details[2] == f"this is not accuracy: {plain} is no folder with one subfolder per class"
    assert left_in(out.root) == []


def test_a_missed_gate_leaves_what_was_there(
    graph: Path, out: Workspace, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(graph, out, plain)
    before = {path.name: path.read_bytes() for path in out.root.iterdir()}
    monkeypatch.setattr(quantize_gate, "LEAST_COSINE", 1.1)
    with pytest.raises(ParityError):
        quantized(graph, out, plain, method="minmax")
    assert {path.name: path.read_bytes() for path in out.root.iterdir()} == before


def always_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 is made to answer `red` whatever it sees."""
    real = quantize_module.quantize

    def spoilt(*given: Any, **options: Any) -> onnx.ModelProto:
        model = real(*given, **options)
        for tensor in model.graph.initializer:
            if tensor.name == "last.weight_quantized":
                values = np.zeros_like(numpy_helper.to_array(tensor))
                values[0] = 1
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(quantize_module, "quantize", spoilt)


def test_the_drop_is_measured_in_points(
    graph: Path, out: Workspace, calib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third is right."""
    always_red(monkeypatch)
    with pytest.raises(AccuracyError, match=r"INT8 loses 66.67 points of top-1, 0.5 are allowed"):
        quantized(graph, out, calib, images=60, evaluate_on=save_images(tmp_path / "val", 20, first=100), **NAIVE)
    passed = quantized(graph, out, calib, images=60, evaluate_on=tmp_path / "val", max_drop=67, **NAIVE).artifact.facts[
        "gate"
    ]
    assert (passed["top1_percent_fp32"], passed["only_fp32_right"], passed["only_int8_right"]) == (100.0, 40, 0)
    assert passed["top1_percent_int8"] == pytest.approx(100 / 3)


def test_images_of_their_own_for_the_accuracy(graph: Path, out: Workspace, calib: Path, tmp_path: Path) -> None:
    own = save_images(tmp_path / "data" / "val", 5, first=100)
    gate = quantized(graph, out, calib, evaluate_on=own.parent).artifact.facts["gate"]
    assert (gate["folder"], gate["images"], gate["left_out"]) == (str(own), 15, 0)
    # What was calibrated on does not count, if it is there again.
    made = quantized(graph, out, calib, evaluate_on=calib)
    gate = made.artifact.facts["gate"]
    assert (gate["images"], gate["left_out"]) == (15, 105)
    assert any(note.startswith("105 labelled image(s) were calibrated on") for note in made.notes)


def test_folders_that_are_no_classes_are_not_labels(tmp_path: Path, out: Workspace, calib: Path, graph: Path) -> None:
    unnamed = save_graph(tmp_path / "unnamed.onnx", named=False)
    assert quantized(unnamed, out, calib).artifact.facts["gate"]["kind"] == "agreement"
    (calib / "red").rename(calib / "crimson")
    assert quantized(graph, out, calib).artifact.facts["gate"]["kind"] == "agreement"
    with pytest.raises(InputError, match="no class of"):
        quantized(graph, out, calib, evaluate_on=calib)


def test_a_network_that_guesses_proves_nothing(
    tmp_path: Path, out: Workspace, calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(save_graph(tmp_path / "guess.onnx"))
    for entry in model.metadata_props:
        if entry.key == "vexport.class_names":
            entry.value = json.dumps(["blue", "red", "green"])
    onnx.save(model, tmp_path / "guess.onnx")
    made = quantized(tmp_path / "guess.onnx", out, calib)
    gate = made.artifact.facts["gate"]
    assert (gate["kind"], gate["passed"]) == ("agreement", True)
    assert gate["why"].startswith("FP32 is right on 0.0 % of 15 labelled images, hardly better than guessing (33.3 %)")
    assert gate["why"] in made.notes
    # What would pass as no drop at all.
    always_red(monkeypatch)
    with pytest.raises(ParityError, match="disagrees") as caught:
        quantized(tmp_path / "guess.onnx", out, calib, use_cache=False, seed=1, **NAIVE)
    assert "hardly better than guessing" in caught.value.details[2]


def test_fp32_answers_that_are_no_numbers(graph: Path, out: Workspace, calib: Path) -> None:
    """A NaN behind the last convolution is in no activation that is measured."""
    model = onnx.load(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), "bias"))
    model.graph.node[4].input.append("bias")
    onnx.save(model, graph)
    with pytest.raises(InputError, match=r"colours\.onnx itself answers NaN or infinite"):
        quantized(graph, out, calib)
    assert left_in(out.root) == []


def test_fp32_answers_that_never_change(graph: Path, out: Workspace, calib: Path) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "last.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((3, 6, 1, 1), np.float32), tensor.name))
    onnx.save(model, graph)
    with pytest.raises(InputError, match="answers the same to all held-out images"):
        quantized(graph, out, calib)


def test_a_common_offset_does_not_hide_noise(graph: Path, out: Workspace, plain: Path) -> None:
    """With 1000 added to every logit the cosine is 1 whatever INT8 does; without their mean it is not."""
    model = onnx.load(save_graph(graph.with_name("offset.onnx"), spread=1e4))
    model.graph.initializer.append(numpy_helper.from_array(np.full(3, 1000, np.float32), "bias"))
    model.graph.node[4].input.append("bias")
    onnx.save(model, graph)
    with pytest.raises(ParityError) as caught:
        quantized(graph, out, plain, method="minmax", **NAIVE)
    (figures,) = [line for line in caught.value.details if line.startswith("tried plain, minmax")]
    assert float(figures.partition("cosine ")[2].partition(",")[0]) < 0.99


def test_images_of_one_class_are_no_proof(graph: Path, out: Workspace, calib: Path, tmp_path: Path) -> None:
    only = save_images(tmp_path / "val", 5, first=100)
    for name in ("green", "blue"):
        for path in (only / name).iterdir():
            path.unlink()
        (only / name).rmdir()
    with pytest.raises(InputError, match="of one class"):
        quantized(graph, out, calib, evaluate_on=only)


def test_what_was_calibrated_on_is_known_by_its_content(
    graph: Path, out: Workspace, calib: Path, tmp_path: Path
) -> None:
    """The same images as a tar and under other names."""
    copied = tmp_path / "copied"
    for path in calib.rglob("*.png"):
        (copied / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copied / path.parent.name / f"other-{path.name}").write_bytes(path.read_bytes())
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(calib, "images")
    for source in (calib, tmp_path / "images.tar"):
        gate = quantized(graph, out, source, images=64, evaluate_on=copied).artifact.facts["gate"]
        assert (gate["images"], gate["left_out"]) == (64, 56)


def labelled_array(path: Path, count: int, **arrays: np.ndarray) -> Path:
    np.savez(path, **({"images": prepared(count), "labels": np.arange(count) % 3} | arrays))
    return path


def test_labels_of_an_array(graph: Path, out: Workspace, plain: Path, tmp_path: Path) -> None:
    both = labelled_array(tmp_path / "both.npz", 120)
    gate = quantized(graph, out, both, images=60).artifact.facts["gate"]
    assert (gate["kind"], gate["images"], gate["top1_percent_fp32"]) == ("accuracy", 67, 100.0)
    # The first 96 images are those of `plain`: what was measured of them is left out.
    gate = quantized(graph, out, plain, evaluate_on=both).artifact.facts["gate"]
    assert (gate["images"], gate["left_out"], gate["folder"]) == (36, 84, str(both))
    labelled_array(both, 120, labels=(np.arange(120) + 1) % 3)
    gate = quantized(graph, out, plain, evaluate_on=both).artifact.facts["gate"]
    assert gate["kind"] == "agreement", "FP32 is always wrong"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"labels": np.arange(12)[:5]}, "are int64 (5,), not 12 class numbers"),
        ({"labels": np.ones(12)}, "are float64 (12,), not 12 class numbers"),
        ({"labels": np.full(12, 3)}, "go from 3 to 3, the network has classes 0 to 2"),
        ({"labels": np.zeros(12, int)}, "were not calibrated on are of one class"),
    ],
)
def test_labels_that_do_not_fit(
    graph: Path, out: Workspace, plain: Path, tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    odd = labelled_array(tmp_path / "odd.npz", 12, **arrays)
    with pytest.raises(InputError, match=re.escape(says)):
        quantized(graph, out, plain, evaluate_on=odd)
    np.savez(odd, images=prepared(12))
    with pytest.raises(InputError, match="holds no `labels`"):
        quantized(graph, out, plain, evaluate_on=odd)


def test_the_graph_itself_is_never_replaced(graph: Path, out: Workspace, calib: Path) -> None:
    before = graph.read_bytes()
    with pytest.raises(InputError, match="is the FP32 graph itself"):
        quantized(graph, out, calib, output=graph, force=True)
    assert graph.read_bytes() == before


def test_other_images_for_the_gate_are_another_request(graph: Path, out: Workspace, calib: Path) -> None:
    """Not those that are calibrated on: those that the accuracy is counted on."""
    first = quantized(graph, out, calib, images=20)
    used = {entry["name"] for entry in first.artifact.facts["calibration"]["images"]}
    (unused, *_) = sorted(path for path in calib.rglob("*.png") if str(path.relative_to(calib)) not in used)
    assert quantized(graph, out, calib, images=20).up_to_date
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(unused)
    assert not quantized(graph, out, calib, images=20).up_to_date


def test_the_share_of_the_work_in_int8(graph: Path, out: Workspace, calib: Path) -> None:
    made = quantized(graph, out, calib)
    assert made.artifact.facts["int8_share_of_macs"] == 1
    # 8x8 pixels of 6x3, 4x4 of 6x9, 4x4 of 3x6 multiply-accumulates.
    made = quantized(graph, out, calib, keep=("first",))
    assert made.artifact.facts["int8_share_of_macs"] == pytest.approx((864 + 288) / (1152 + 864 + 288))
    made = quantized(graph, out, calib, keep=("first", "last"))
    assert "only 38% of the multiply-accumulates are in INT8" in made.notes


def test_a_fixed_batch(tmp_path: Path, out: Workspace, calib: Path) -> None:
    fixed = save_graph(tmp_path / "four.onnx", batch=4)
    made = quantized(fixed, out, calib, images=50)
    assert made.artifact.facts["batch"] == 4
    assert made.artifact.facts["calibration"]["measured"] == 44
    assert made.artifact.facts["gate"]["images"] == 76


def test_damaged_images_are_named(graph: Path, out: Workspace, calib: Path) -> None:
    for index in range(3):
        (calib / "red" / f"{index:03}.png").write_bytes(b"no image")
    made = quantized(graph, out, calib)
    skipped = set(made.artifact.facts["calibration"]["skipped"]) | set(made.artifact.facts["gate"]["skipped"])
    assert skipped == {f"red/{index:03}.png" for index in range(3)}
    for index in range(20):
        (calib / "red" / f"{index:03}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="more than 10 calibration images cannot be read"):
        quantized(graph, out, calib)


def test_what_is_no_fp32_graph_is_refused(graph: Path, out: Workspace, plain: Path) -> None:
    made = quantized(graph, out, plain)
    with pytest.raises(InputError, match=r"colours.int8.onnx is quantised already"):
        quantized(made.artifact.path, out, plain)
    half = convert_graph(find_graph(graph, workspace=out), "fp16", workspace=out).artifact
    with pytest.raises(InputError, match=r"colours.fp16.onnx is fp16, not FP32"):
        quantized(half.path, out, plain)


def test_nan_activations(graph: Path, out: Workspace, plain: Path) -> None:
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[1, 0, 0, 0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, graph)
    with pytest.raises(InputError, match="the activation second is NaN in image batch 1"):
        quantized(graph, out, plain)
    assert left_in(out.root) == []


def test_a_foreign_file_is_in_the_way(graph: Path, out: Workspace, plain: Path) -> None:
    out.root.mkdir()
    (out.root / "colours.int8.onnx").write_text("mine")
    with pytest.raises(WorkspaceError, match="was not written by vexport"):
        quantized(graph, out, plain)
    assert quantized(graph, out, plain, force=True).artifact.path.stat().st_size > 100


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"images": 1}, "--images 1 is too few"),
        ({"max_drop": -1.0}, "--max-drop -1 is not within"),
        ({"max_drop": float("nan")}, "--max-drop nan is not within"),
        ({"output": Path("x.engine")}, "does not end in .onnx"),
        ({"keep": ("nowhere",)}, "no convolution nowhere"),
        ({"keep": CONVS}, "no convolution left to quantise"),
        ({"evaluate_on": Path("nowhere")}, "nowhere does not exist"),
        ({"calib": Path("nowhere")}, "nowhere does not exist"),
        ({"threads": 0}, "0 threads"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options(graph: Path, out: Workspace, plain: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        quantized(**{"graph": graph, "out": out, "calib": plain} | options)
    assert left_in(out.root) == []


def test_it_builds_for_an_a100(graph: Path, out: Workspace, calib: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT for RTX for this platform")
    from vexport.pipeline.build import build_engine

    with pytest.raises(InputError, match="is fp32, the engine shall be int8") as caught:
        build_engine(graph, workspace=out, precision="int8", target="a100")
    assert "vexport quantize --calib DIR" in caught.value.hint
    quantized(graph, out, calib, keep=("last",))
    built = build_engine(None, workspace=out, precision="int8", target="a100")
    assert built.graph == out.root / "colours.int8.fp16.onnx"
    assert built.graph.is_file()
    kinds = [layer["kind"] for layer in built.artifact.facts["build"]["network_layers"]]
    # An input, and a weight that is INT8 already: the depthwise one stays in FP16 where no GPU was asked.
    assert (kinds.count("QUANTIZE"), kinds.count("DEQUANTIZE"), kinds.count("CONVOLUTION")) == (1, 2, 3)
