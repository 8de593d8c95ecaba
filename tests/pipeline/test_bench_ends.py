"""How a benchmark ends early: crashes, Ctrl-C in each phase, a full disk, a GPU that goes away; and how it goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny_bench import folder_of_images, groups_of, read, recipe, tiny_graph
from vexport.bench.clock import Samples
from vexport.bench.page import validate
from vexport.errors import EngineError, WorkspaceError
from vexport.pipeline import bench_matrix, bench_measure, bench_session
from vexport.pipeline.bench import measure_latency, measure_recipe
from vexport.pipeline.bench_accuracy import AccuracyKey, Answered, accuracy_key
from vexport.pipeline.bench_artifacts import Artifacts, Made
from vexport.pipeline.bench_make import AskGpu, Done, MakeArtifact, Maker
from vexport.pipeline.bench_matrix import Cell
from vexport.pipeline.bench_run import GroupStore, Result, group_key
from vexport.workspace import Staging, Workspace, hash_file


@dataclass(frozen=True)
class Tiny(MakeArtifact):
    """Tiny graphs in place of networks; making resnet18's takes its process along."""

    def __call__(self, on_step: object = None) -> Done:
        if self.network == "resnet18":
            os.abort()
        path = tiny_graph(self.root / f"{self.network}.onnx", len(self.network))
        return Done(Made(path, path.name, hash_file(path), path.stat().st_size, "random"), {}, True)

    def before(self) -> MakeArtifact | None:
        return None


def test_a_crash_while_artifacts_are_made_costs_one_cell(out: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_matrix, "MakeArtifact", Tiny)
    told: list[str] = []
    outcome = measure_recipe(
        recipe(networks=("vanillanet_9", "resnet18", "resnet50")), workspace=out, tell=told.append
    )  # fmt: skip
    validate(outcome.document)
    nine, crashed, fifty = outcome.document["groups"][0]["rows"]
    assert (nine["error"], fifty["error"]) == (None, None)
    assert nine["ratio"] is not None
    assert crashed["error"].startswith(
        "not run: it could not be made: making resnet18, onnxruntime FP32: crashed: signal 6 (SIGABRT)"
    )
    assert any(line.startswith("resnet18, onnxruntime FP32: it could not be made") for line in told)


def interrupt(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


def ends_with_ctrl_c(out: Workspace, **changes: Any) -> list[str]:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        measure_recipe(recipe(**changes), workspace=out, command="vexport bench x.yaml", tell=told.append)
    return told


def test_ctrl_c_while_artifacts_are_made(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Artifacts.graph

    def graph(self: Artifacts, network: str, precision: str, size: int) -> Made:
        return interrupt() if network == "resnet50" else real(self, network, precision, size)

    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "graph", graph)
        told = ends_with_ctrl_c(out)
    assert told[-1] == "interrupted: what was made so far stays, and the same command goes on from there"
    assert list(made) == ["vanillanet_9.fp32.onnx"]
    assert not (out.root / "bench" / "tiny" / "bench.json").exists()


def test_ctrl_c_while_artifacts_are_made_keeps_finished_groups(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an earlier run: without --resume the first new group takes their place, and not before."""
    store = GroupStore(out.root / "bench" / "tiny")
    store.require_writable()
    (store.folder / "group-old.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "graph", interrupt)
        told = ends_with_ctrl_c(out)
    assert told[0] == "an earlier run left 1 group: measured anew, since --resume was not given"
    assert [path.name for path in groups_of(out)] == ["group-old.json"]
    measure_recipe(recipe(), workspace=out)
    assert groups_of(out) == []
    assert made


@pytest.mark.parametrize("phase", ["measure_accuracies", "measure_rooflines"])
def test_ctrl_c_while_accuracy_or_peaks_are_measured(
    phase: str, out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every latency is in the document, and what was found before Ctrl-C too."""
    images = folder_of_images(tmp_path / "images")

    def accuracies(results: Sequence[Result], found: dict[AccuracyKey, Answered], **_: object) -> None:
        for result in results[:1]:
            key = accuracy_key(result.cell)
            assert key is not None
            found[key] = Answered({"top1_percent": 50.0, "source": "measured", "images": 10, "data": "x"})
        if phase == "measure_accuracies":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench_session, "measure_accuracies", accuracies)
        patch.setattr(bench_session, "measure_rooflines", interrupt)
        told = ends_with_ctrl_c(out, roofline=True, data=str(images))
    document = read(out, partial=True)
    validate(document)
    nine, fifty = document["groups"][0]["rows"]
    assert document["complete"] is False
    assert min(nine["median_ms"], fifty["median_ms"]) > 0
    assert (nine["accuracy"]["top1_percent"], fifty["accuracy"]) == (50.0, None)
    assert told[-1].endswith("go on with: vexport bench x.yaml --resume")
    assert len(groups_of(out)) == 1
    assert made


def test_an_interrupted_run_leaves_the_complete_document_of_an_earlier_one(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is stands beside it, until a run is complete."""
    measure_recipe(recipe(networks=("vanillanet_9",)), workspace=out)
    target = out.root / "bench" / "tiny" / "bench.json"
    before, partial = target.read_bytes(), target.with_name("bench.partial.json")
    with monkeypatch.context() as patch:
        patch.setattr(bench_session, "measure_rooflines", interrupt)
        told = ends_with_ctrl_c(out, networks=("vanillanet_9",), roofline=True)
    assert target.read_bytes() == before
    assert read(out, partial=True)["complete"] is False
    assert f"interrupted: 1 of 1 group are in {partial}; go on with" in told[-1]
    measure_recipe(recipe(networks=("vanillanet_9",)), workspace=out, resume=True)
    assert read(out)["complete"]
    assert target.read_bytes() != before
    assert sorted(path.name for path in target.parent.iterdir()) == ["bench.json", "bench.json.json"]
    assert made


def test_ctrl_c_while_the_report_is_written(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vexport.bench import page

    monkeypatch.setattr(page, "write_report", interrupt)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        measure_recipe(recipe(), workspace=out, report=tmp_path / "my page", tell=told.append)
    target = out.root / "bench" / "tiny" / "bench.json"
    assert read(out)["complete"]
    assert told[-1] == (
        f"the result is in {target}, its report is not written; write it with: "
        f"vexport bench {target} --report '{tmp_path / 'my page'}'"
    )
    assert made


def full_disk(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("when", ["a group", "the document"])
def test_a_full_disk_loses_no_finished_group(
    when: str, out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    wanted = recipe(batches=(1, 2), networks=("vanillanet_9",))
    real_save, saved = GroupStore.save, list[str]()

    def save(self: GroupStore, key: str, results: Sequence[Result]) -> None:
        if when == "a group" and saved:
            raise WorkspaceError("no space left to write x", hint="free some")
        saved.append(key)
        real_save(self, key, results)

    with monkeypatch.context() as patch:
        patch.setattr(GroupStore, "save", save)
        if when == "the document":
            patch.setattr(Staging, "publish", full_disk)
        with pytest.raises(WorkspaceError, match="no space left to write"):
            measure_recipe(wanted, workspace=out, command="vexport bench t.yaml", tell=told.append)
    kept = 1 if when == "a group" else 2
    assert told[-1] == (
        f"{kept} group{'s' * (kept > 1)} are kept; when that is mended, go on with: vexport bench t.yaml --resume"
    )
    assert len(groups_of(out)) == kept
    assert not (out.root / "bench" / "tiny" / "bench.json").exists()
    outcome = measure_recipe(wanted, workspace=out, resume=True)
    assert outcome.document["complete"]
    assert made


def failing(cells: Sequence[Cell], *, of: Callable[[Cell], bool]) -> list[Result]:
    """Results of a group, of which some cells fail."""
    return [
        Result(
            cell, Samples(cell.name, (), "the GPU failed while it ran x"),
            failure={"kind": "failed", "text": "the GPU failed while it ran x", "stderr": []},
        )
        if of(cell)
        else Result(cell, Samples(cell.name, ((1_000_000, 1_100_000),) * 5), facts={"backend": cell.backend})
        for cell in cells
    ]  # fmt: skip


def with_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: Sequence[str | None], fails: Callable[[Cell, int], bool]
) -> list[tuple[str, int]]:
    """A GPU in name: what is measured on it, and what it answers when it is asked whether it is there."""
    answers, measured = list(asked), list[tuple[str, int]]()

    def make(*given: Any, **options: Any) -> Maker:
        maker = Maker(*given, **{**options, "own_process": False})
        real = maker.ask

        def ask(question: Any, what: str) -> str | None:
            return answers.pop(0) if isinstance(question, AskGpu) else real(question, what)

        maker.ask = ask  # type: ignore[method-assign]
        return maker

    def measure(cells: Sequence[Cell], *_: object, **__: object) -> list[Result]:
        measured.append((cells[0].backend, cells[0].batch))
        return failing(cells, of=lambda cell: fails(cell, len(measured)))

    monkeypatch.setattr(bench_session, "Maker", make)
    monkeypatch.setattr(bench_measure, "why_not_here", lambda *_: None)
    monkeypatch.setattr(bench_measure, "measure_group", measure)
    return measured


GPU = recipe(backends=("onnxruntime-cuda", "onnxruntime"), batches=(1, 2))
ORDER = [("onnxruntime-cuda", 1), ("onnxruntime", 1), ("onnxruntime-cuda", 2), ("onnxruntime", 2)]


def test_a_gpu_that_goes_away_costs_what_needs_it(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with monkeypatch.context() as patch:
        measured = with_gpu(patch, ["no CUDA-capable device is detected"], lambda cell, _: cell.on_gpu)
        with pytest.raises(EngineError, match="the GPU went away: no CUDA-capable device") as caught:
            measure_recipe(GPU, workspace=out, command="vexport bench g.yaml", tell=told.append)
    assert measured == [ORDER[0], ORDER[1], ORDER[3]], "the other group on the GPU is not tried"
    assert caught.value.hint == "when `nvidia-smi` lists it again, go on with: vexport bench g.yaml --resume"
    assert caught.value.details[0].startswith("2 of 4 groups are in ")
    document = read(out, partial=True)
    validate(document)
    assert document["complete"] is False
    errors = [group["rows"][0]["error"] for group in document["groups"]]
    gone = "not run: the GPU went away: no CUDA-capable device is detected"
    assert errors == ["the GPU failed while it ran x", None, gone, None]
    with monkeypatch.context() as patch:
        measured = with_gpu(patch, [], lambda *_: False)
        outcome = measure_recipe(GPU, workspace=out, resume=True)
    assert measured == [ORDER[0], ORDER[2]], "what was measured is taken, the rest is measured"
    assert outcome.document["complete"]
    assert groups_of(out) == []
    assert made


@pytest.mark.parametrize("images", [True, False])
def test_a_gpu_that_goes_away_leaves_no_published_accuracy_without_a_note(
    images: bool, out: Workspace, tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was timed before that cannot be answered on it any more; on the processor it is."""
    own, data = tiny_graph(tmp_path / "own.onnx", 9), folder_of_images(tmp_path / "images") if images else None
    with_gpu(monkeypatch, ["no CUDA-capable device is detected"], lambda cell, _: cell.on_gpu and cell.batch == 2)
    answered: list[Cell] = []
    monkeypatch.setattr(
        bench_session, "measure_accuracies", lambda results, *_, **__: answered.extend(one.cell for one in results)
    )  # fmt: skip
    with pytest.raises(EngineError, match="the GPU went away"):
        measure_recipe(GPU, [own], workspace=out, data=data)
    document = read(out, partial=True)
    notes = {
        (group["rows"][0]["backend_name"], group["batch"], row["network"]): row["notes"]
        for group in document["groups"]
        for row in group["rows"]
    }
    note = "accuracy not measured: the GPU does not answer: no CUDA-capable device is detected"
    assert (note in notes["onnxruntime-cuda", 1, "own"]) is images
    assert note not in notes["onnxruntime", 1, "own"]
    assert note not in notes["onnxruntime-cuda", 1, "resnet50"], "random weights have no accuracy"
    assert bool(answered) is images
    assert not any(cell.on_gpu for cell in answered)
    assert made


def test_a_failure_with_the_gpu_still_there_costs_its_cell(
    out: Workspace, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with monkeypatch.context() as patch:
        measured = with_gpu(
            patch, [None], lambda cell, which: which == 1 and cell.network == "resnet50"
        )  # fmt: skip
        outcome = measure_recipe(GPU, workspace=out, command="vexport bench g.yaml", tell=told.append)
    assert measured == ORDER
    assert outcome.document["complete"]
    assert told[-1] == "1 cell failed; to measure its groups again: vexport bench g.yaml --resume"
    with monkeypatch.context() as patch:
        measured = with_gpu(patch, [], lambda *_: False)
        again = measure_recipe(GPU, workspace=out, resume=True)
    assert measured == [ORDER[0]], "a group of which a cell failed is measured again, all of it: they take turns"
    assert all(row["error"] is None for group in again.document["groups"] for row in group["rows"])
    assert groups_of(out) == []
    assert made


def test_what_shapes_a_figure_is_part_of_what_a_stored_group_belongs_to() -> None:
    from vexport.bench.cell import OpenArtifact

    opener = OpenArtifact(Path("x.engine"), "tensorrt", 1, (3, 8, 8))
    cell = Cell("a", "tensorrt", "fp16", 1, (3, 8, 8), Made(None, "x", "ab", None, "random"), opener)
    replayed = replace(cell, opener=replace(opener, cuda_graph=True))
    environment = {"cpu": "Example", "variables": {"OMP_NUM_THREADS": "1"}}
    keys = {
        group_key([cell], {}, environment),
        group_key([replayed], {}, environment),
        group_key([cell], {}, {**environment, "variables": {}}),
    }
    assert len(keys) == 3


@pytest.mark.usefixtures("made")
def test_a_file_that_a_network_was_found_as_is_measured_once(out: Workspace, made: dict[str, Path]) -> None:
    measure_recipe(recipe(networks=("resnet50",)), workspace=out)
    (path,) = made.values()
    named = path.with_name("resnet50.onnx")
    named.write_bytes(path.read_bytes())
    outcome = measure_recipe(recipe(networks=("resnet50",)), [named], workspace=out)
    assert [row["network"] for row in outcome.document["groups"][0]["rows"]] == ["resnet50"]


def test_named_files_are_looked_at_in_a_process_of_their_own(
    out: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that crashes a library is refused, and this process lives."""
    from vexport.errors import VexportError
    from vexport.pipeline import bench_files

    monkeypatch.setattr(bench_files, "LookAt", Crashes)
    with pytest.raises(VexportError, match=r"opening .*own\.onnx: crashed: signal 6"):
        measure_latency([tiny_graph(tmp_path / "own.onnx")], workspace=out, own_processes=True)


class Crashes:
    def __init__(self, *_: object) -> None: ...

    def __call__(self) -> None:
        os.abort()
