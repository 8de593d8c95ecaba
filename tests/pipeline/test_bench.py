"""The matrix of the benchmark: cells, groups, resuming, and the document that comes of it."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.graph.graphs import vanillanet
from tests.pipeline.tiny_bench import QUICK, SIZE, FixedPeaks, folder_of_images, groups_of, read, recipe, tiny_graph
from vexport.artifacts import Checkpoint
from vexport.bench.clock import Clock
from vexport.bench.page import validate
from vexport.errors import InputError, RecipeError, WorkspaceError
from vexport.pipeline import bench_measure, bench_roofline
from vexport.pipeline.bench import load_recipe, measure_latency, measure_recipe
from vexport.pipeline.bench_artifacts import Artifacts, Made, quantize_for_latency
from vexport.pipeline.bench_count import count_file, count_network
from vexport.pipeline.bench_make import Maker
from vexport.pipeline.bench_matrix import OFFERS, Cell, plan_groups, split_large
from vexport.pipeline.bench_run import Estimate, GroupStore, group_key, not_run
from vexport.pipeline.export import export_graph
from vexport.run.backends import BACKENDS
from vexport.workspace import Workspace, hash_file, read_manifest


def test_a_matrix_of_groups_is_measured_and_written(out: Workspace, made: dict[str, Path]) -> None:
    told: list[str] = []
    shares: list[float] = []
    outcome = measure_recipe(
        recipe(precisions=("fp32", "int8")),
        workspace=out,
        command="vexport bench tiny.yaml",
        tell=told.append,
        on_step=lambda _text, share: shares.append(share) if share is not None else None,
    )
    document = read(out)
    validate(document)
    assert document == json.loads(json.dumps(outcome.document))
    assert [(group["precision"], group["batch"]) for group in document["groups"]] == [
        ("FP32", 1),
        ("INT8", 1),
    ]
    for group in document["groups"]:
        assert [row["label"] for row in group["rows"]] == ["VanillaNet-9", "ResNet-50"]
        nine, fifty = group["rows"]
        assert nine["artifact_sha256"] == hash_file(made[nine["artifact"]])
        assert nine["backend"] == group["backend"] == "onnxruntime CPU"
        assert len(nine["samples_ns"]) == QUICK.rounds
        assert nine["ratio"]["low"] <= nine["ratio"]["value"] <= nine["ratio"]["high"]
        assert fifty["ratio"]["value"] == 1
        assert nine["accuracy"] is None, "figures of another size are not published"
        assert (nine["weights"], nine["notes"]) == ("random", ["a note"])
        assert nine["waiting"]["wall_s"] > 0
        assert len(group["verdicts"]) == 1
        assert group["conditions"]["turns"] == 2 * QUICK.rounds
    assert document["complete"]
    assert document["command"] == "vexport bench tiny.yaml"
    assert document["recipe"]["batches"] == [1]
    assert "process of its own" in document["settings"]["isolation"]
    assert document["groups"][0]["rows"][0]["gmacs"] == pytest.approx(
        count_network("vanillanet_9", (3, 32, 32))["gmacs"]
    )
    assert told[0].startswith("4 cells in 2 groups: about ")
    assert told[-1].startswith("group 2 of 2 done")
    assert shares == sorted(shares)
    assert groups_of(out) == [], "a finished benchmark leaves nothing to go on from"
    assert read_manifest(outcome.artifact.path) is not None
    said = outcome.to_json()
    assert "samples_ns" not in json.dumps(said)
    assert len(said["rows"]) == 4


def test_a_cell_that_fails_costs_itself_alone(out: Workspace, made: dict[str, Path]) -> None:
    outcome = measure_recipe(recipe(networks=("vanillanet_9", "resnet18", "resnet50")), workspace=out)
    assert made
    validate(outcome.document)
    nine, broken, fifty = outcome.document["groups"][0]["rows"]
    assert (nine["error"], fifty["error"]) == (None, None)
    assert broken["median_ms"] is None
    assert "resnet18.fp32" in broken["error"]
    assert broken["failure"]["kind"] == "failed"
    assert any(said.startswith("ResNet-18 failed at FP32") for said in outcome.verdicts)


@pytest.mark.usefixtures("here")
def test_what_cannot_be_made_keeps_its_place(out: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Artifacts, network: str, *_: object) -> Made:
        raise InputError(f"no {network}", details=["a reason"], hint="none")

    monkeypatch.setattr(Artifacts, "graph", refuse)
    outcome = measure_recipe(recipe(), workspace=out)
    assert [row["error"] for row in outcome.document["groups"][0]["rows"]] == [
        "not run: it could not be made: no vanillanet_9: a reason",
        "not run: it could not be made: no resnet50: a reason",
    ]
    assert outcome.document["complete"]


def test_a_missing_backend_is_shown_as_such(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the package 'openvino' is not installed"
    monkeypatch.setattr(bench_measure, "why_not_here", lambda name, _: reason if name == "openvino" else None)
    told: list[str] = []
    outcome = measure_recipe(recipe(backends=("openvino", "onnxruntime")), workspace=out, tell=told.append)
    assert made
    missing, there = outcome.document["groups"]
    assert [row["error"] for row in missing["rows"]] == [f"not run: {reason}"] * 2
    assert all(row["median_ms"] for row in there["rows"])
    assert told[0] == f"openvino is not run: {reason}"
    assert told[1].startswith("2 cells in 2 groups")
    validate(outcome.document)


def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Cell]]:
    """Ctrl-C when so many groups are done; the groups that were measured."""
    measured: list[Sequence[Cell]] = []
    real = bench_measure.measure_group

    def measure(cells: Sequence[Cell], *args: Any, **options: Any) -> Any:
        if len(measured) == count:
            raise KeyboardInterrupt
        measured.append(cells)
        return real(cells, *args, **options)

    monkeypatch.setattr(bench_measure, "measure_group", measure)
    return measured


def test_an_interrupted_benchmark_goes_on(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    wanted = recipe(batches=(1, 2, 4), networks=("vanillanet_9",))
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            measure_recipe(wanted, workspace=out, command="vexport bench 'a b.yaml'", tell=told.append)
    first = read(out, partial=True)
    validate(first)
    assert first["complete"] is False
    assert [group["batch"] for group in first["groups"]] == [1, 2]
    assert len(groups_of(out)) == 2
    assert told[-1] == (
        f"interrupted: 2 of 3 groups are in {out.root / 'bench' / 'tiny' / 'bench.partial.json'}; "
        "go on with: vexport bench 'a b.yaml' --resume"
    )
    with monkeypatch.context() as patch:
        measured = interrupted_after(9, patch)
        measure_recipe(wanted, workspace=out, resume=True)
    second = read(out)
    assert [cells[0].batch for cells in measured] == [4]
    assert second["complete"]
    for before, after in zip(first["groups"], second["groups"][:2], strict=True):
        assert before["rows"][0]["samples_ns"] == after["rows"][0]["samples_ns"]
    assert groups_of(out) == []
    assert made


def test_without_resume_it_measures_anew(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(batches=(1, 2), networks=("vanillanet_9",))
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            measure_recipe(wanted, workspace=out)
    measured = interrupted_after(9, monkeypatch)
    measure_recipe(wanted, workspace=out)
    assert len(measured) == 2
    assert made


def test_ctrl_c_in_the_middle_of_a_turn_leaves_no_process(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexport.bench import worker

    workers: list[worker.Worker] = []
    real = worker.Worker.take_turn

    def take(self: worker.Worker) -> None:
        workers.append(self)
        if len(workers) == 3:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(worker.Worker, "take_turn", take)
    with pytest.raises(KeyboardInterrupt):
        measure_recipe(recipe(), workspace=out)
    assert made
    assert all(one.pid is None for one in workers)
    assert not (out.root / "bench" / "tiny" / "bench.json").exists(), "no group was finished"


def test_what_a_stored_group_belongs_to(tmp_path: Path) -> None:
    made = Made(None, "x", "ab", None, "random")
    cells = [Cell("a", "onnxruntime", "fp32", 1, (3, 8, 8), made)]
    other = [Cell("a", "onnxruntime", "fp32", 1, (3, 8, 8), Made(None, "x", "cd", None, "random"))]
    environment = {"cpu": "Example", "load_average": [1.0]}
    key = group_key(cells, {"rounds": 5}, environment)
    assert group_key(cells, {"rounds": 5}, {**environment, "load_average": [2.0]}) == key
    assert len({key, group_key(other, {"rounds": 5}, environment), group_key(cells, {"rounds": 6}, environment),
                group_key(cells, {"rounds": 5}, {"cpu": "Other"})}) == 4  # fmt: skip
    store = GroupStore(tmp_path)
    store.save(key, [not_run(cells[0], "no GPU")])
    assert store.find(key, cells) is None, "a group of which nothing was measured is measured again"
    (tmp_path / f"group-{key[:24]}.json").write_text("{")
    assert store.find(key, cells) is None


@pytest.mark.parametrize("how", ["a file is in the way", "read-only"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    how: str, out: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("nothing is made")

    monkeypatch.setattr(Artifacts, "graph", refuse)
    if how == "read-only":

        def fail(*_: object, **__: object) -> Any:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    else:
        out.root.mkdir()
        (out.root / "bench").write_text("")
    with pytest.raises(WorkspaceError, match=r"no permission to write|is not a folder"):
        measure_recipe(recipe(), workspace=out)


def test_files_stand_beside_the_networks_of_a_recipe(out: Workspace, made: dict[str, Path], tmp_path: Path) -> None:
    own = tiny_graph(tmp_path / "own.onnx", 9)
    outcome = measure_recipe(recipe(networks=("resnet50",)), [own], workspace=out)
    assert made
    fifty, mine = outcome.document["groups"][0]["rows"]
    assert (fifty["network"], mine["network"], mine["family"]) == ("resnet50", "own", "others")
    assert mine["parameters"] == 9 * 27 + 90
    assert mine["gmacs"] == pytest.approx((30 * 30 * 9 * 27 + 30 * 30 * 90) / 1e9)
    assert mine["depth"] == 2
    assert mine["ratio"] is not None


def test_the_roofline_stands_beside_the_latency(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_roofline, "MeasurePeaks", FixedPeaks)
    outcome = measure_recipe(recipe(roofline=True, networks=("vanillanet_9",)), workspace=out)
    assert made
    validate(outcome.document)
    row = outcome.document["groups"][0]["rows"][0]
    assert outcome.document["peaks"]["operations"]["fp32"]["per_s"] == 1e11
    assert row["roofline"]["measured_ms"] == row["median_ms"]
    assert {layer["name"] for layer in row["roofline"]["layers"]} >= {"conv1", "conv2"}
    assert "peaks" not in row["roofline"]
    assert row["roofline"]["profile"]["runs"] == 10


def test_networks_with_published_figures_alone_have_their_rows(out: Workspace, made: dict[str, Path]) -> None:
    outcome = measure_recipe(recipe(published=("vitae_tiny",)), workspace=out)
    assert made
    validate(outcome.document)
    vitae = outcome.document["groups"][0]["rows"][-1]
    assert (vitae["label"], vitae["median_ms"], vitae["error"]) == ("ViTAE-T", None, None)
    assert (vitae["published_top1"], vitae["published_a100_ms"]) == (75.3, 13.37)
    assert vitae["accuracy"]["source"] == "published"


def test_published_accuracy_is_that_of_floating_point_at_the_published_size(
    out: Workspace, made: dict[str, Path]
) -> None:
    outcome = measure_recipe(
        recipe(precisions=("fp32", "int8"), sizes=(224,), networks=("vanillanet_9",)), workspace=out
    )
    assert made
    assert outcome.document["groups"][0]["rows"][0]["error"] is not None, "the tiny graph takes another size"
    fp32, int8 = (group["rows"][0] for group in outcome.document["groups"])
    assert fp32["accuracy"] == {"top1_percent": 79.87, "source": "published", "images": None, "data": "ImageNet"}
    assert int8["accuracy"] is None
    assert int8["published_top1"] == 79.87


def test_accuracy_is_measured_on_trained_artifacts_only(out: Workspace, made: dict[str, Path], tmp_path: Path) -> None:
    folder_of_images(tmp_path / "images")
    own = tiny_graph(tmp_path / "own.onnx", 9)
    outcome = measure_recipe(recipe(networks=("resnet50",)), [own], workspace=out, data=tmp_path / "images")
    assert made
    fifty, mine = outcome.document["groups"][0]["rows"]
    assert fifty["accuracy"] is None
    assert (mine["accuracy"]["source"], mine["accuracy"]["images"]) == ("measured", 10)
    assert mine["accuracy"]["backend"] == mine["backend"] == "onnxruntime CPU"


def test_in_one_process_the_same_document_comes_out(
    out: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexport.bench import clock

    monkeypatch.setattr(clock, "Clock", partial(Clock, warmup_s=0.01, least_count=5, rounds=2))
    own, broken = tiny_graph(tmp_path / "own.onnx", 9), tmp_path / "broken.onnx"
    outcome = measure_latency([own], workspace=out, duration_s=0.02)
    validate(outcome.document)
    assert "one process" in outcome.document["settings"]["isolation"]
    assert [row.network for row in outcome.report.rows] == ["own"]
    assert json.loads((out.root / "bench.json").read_text())["groups"][0]["rows"][0]["samples_ns"]
    assert not (out.root / "bench").exists()
    broken.write_bytes(b"no graph")
    with pytest.raises(InputError):
        measure_latency([own, broken], workspace=out)


def test_the_forms_of_one_network(out: Workspace, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the quickstart measures them; the network behind a graph is not measured twice."""
    from vexport.bench import clock

    monkeypatch.setattr(clock, "Clock", partial(Clock, warmup_s=0.01, least_count=5, rounds=2))
    graph = export_graph(small_checkpoint, workspace=out).artifact
    deployed = out.newest(Checkpoint)
    assert deployed is not None
    outcome = measure_latency([small_checkpoint, deployed.path, graph.path], workspace=out, duration_s=0.02)
    validate(outcome.document)
    found = {(row.artifact_sha256, row.backend.split()[0], row.error) for row in outcome.report.rows}
    assert found == {
        (hash_file(small_checkpoint), "pytorch", None),
        (deployed.sha256, "pytorch", None),
        (graph.sha256, "onnxruntime", None),
    }
    assert len(outcome.report.rows) == 3
    alone = measure_latency([graph.path], workspace=out, duration_s=0.02)
    assert [row.backend.split()[0] for row in alone.report.rows] == ["onnxruntime", "pytorch"]


def test_the_int8_graph_for_latency(tmp_path: Path) -> None:
    source = tiny_graph(tmp_path / "tiny.random.onnx")
    workspace = Workspace(tmp_path / "made")
    found, was_there = quantize_for_latency(source, workspace, SIZE)
    assert not was_there
    assert found.path.name == "tiny.random.latency.int8.onnx"
    assert found.facts["notes"][0].startswith("for latency only: INT8 ranges of noise images")
    assert found.facts["notes"][1] == "quantised in the graph: 2 of 2 convolutions"
    assert found.precision == "int8"
    before = found.path.stat().st_mtime_ns
    again, was_there = quantize_for_latency(source, workspace, SIZE)
    assert was_there
    assert again.path.stat().st_mtime_ns == before


def test_the_estimate_learns_from_what_is_done() -> None:
    estimate = Estimate([20, 20, 40])
    assert estimate.rest_s() == 80
    estimate.finish(40)
    assert estimate.rest_s() == 120, "twice as slow as planned"
    assert estimate.rest_s(0.5) == 100
    assert estimate.share() == pytest.approx(0.25)
    estimate.finish(None)
    assert estimate.rest_s() == 80
    estimate.finish(80)
    assert (estimate.rest_s(), estimate.share()) == (0, 1)


def test_large_groups_are_split_with_the_baseline_in_each() -> None:
    cells = [Cell(name, "onnxruntime", "fp32", 1, (3, 8, 8)) for name in ("resnet50", "a", "b", "c", "d")]
    parts = split_large(cells, 3, "resnet50")
    assert [[cell.network for cell in part] for part in parts] == [["a", "b", "resnet50"], ["c", "d", "resnet50"]]
    assert split_large(cells, 5, "resnet50") == [cells]


def test_only_what_goes_together_is_planned() -> None:
    groups = plan_groups(
        recipe(backends=("onnxruntime", "pytorch-fp16", "tensorrt"), precisions=("fp32", "fp16", "int8"))
    )
    assert [(cells[0].backend, cells[0].precision) for cells in groups] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("pytorch-fp16", "fp16"),
        ("tensorrt", "fp32"),
        ("tensorrt", "fp16"),
        ("tensorrt", "int8"),
    ]
    assert OFFERS.keys() == BACKENDS.keys()


@pytest.mark.parametrize("name", ["quick", "paper_cpu", "paper_a100", "paper_gpu", "throughput_gpu"])
def test_shipped_recipes(name: str) -> None:
    from vexport.recipe.load import find_recipe

    found = load_recipe(name)
    assert found.name == name
    assert plan_groups(found)
    assert "resnet50" in found.networks
    first = find_recipe(name, "bench").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# vexport bench {name}"


def test_every_error_of_a_recipe_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "inherits: bench/quick\nnetworks: [vanillanet_9, resnet5]\nbackends: [onnxrutime]\nbatches: [1, 1]\n"
        "published: [vitae]\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.details == (
        f"{path}:2: networks.1: there is no resnet5; did you mean resnet50?",
        f"{path}:3: backends.0: there is no onnxrutime; did you mean onnxruntime?",
        f"{path}:4: batches.1: 1 is given before",
        f"{path}:5: published.0: there is no vitae; did you mean vitae_tiny?",
    )
    path.write_text("networks: [vanillanet_9]\nclock: {round: 3}\nprecisions: [fp8]\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["batches=[0]"])
    said = "\n".join(caught.value.details)
    assert ":2: clock.round: no such field; did you mean rounds?" in said
    assert ":3: precisions.0: " in said
    assert "--set batches.0: " in said or "--set batches" in said


def test_counted_as_published() -> None:
    counted = count_network("vanillanet_9", (3, 224, 224))
    assert (counted["depth"], round(counted["parameters"] / 1e6, 1), round(counted["gmacs"], 1)) == (9, 41.4, 8.6)
    for name, depth in (("repvgg_a0", 23), ("resnet50", 50)):
        assert count_network(name, (3, 224, 224))["depth"] == depth


@pytest.mark.parametrize(("said", "depth"), [("vanillanet_5", 5), ("alexnet", 5), ("mine", 9), (None, 9)])
def test_series_activations_of_a_file_are_no_layers(said: str | None, depth: int, tmp_path: Path) -> None:
    """By what the file says of itself; without that they are depthwise convolutions like others."""
    model = vanillanet([8, 8, 16, 16], [2, 2, 2], classes=10)
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(np.zeros(list(weight.dims), np.float32), weight.name))
    onnx.helper.set_model_props(model, {"vexport.model": said} if said else {})
    onnx.save(model, tmp_path / "own.onnx")
    assert count_file(tmp_path / "own.onnx", (3, 224, 224), 1)["depth"] == depth


def test_why_a_backend_is_not_here_is_asked_of_the_table(out: Workspace) -> None:
    with closing(Maker(out)) as maker:
        assert bench_measure.why_not_here("onnxruntime", maker) is None
