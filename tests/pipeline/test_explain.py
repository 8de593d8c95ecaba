"""Attention maps of checkpoints: which images, which figures, which files, and every way to be refused."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vexport.errors import InputError, WorkspaceError
from vexport.model.variants import NetworkSpec
from vexport.pipeline import explain as module
from vexport.pipeline.explain import Explanation, explain
from vexport.pipeline.explain_looks import spread_of
from vexport.pipeline.explain_notes import collect_notes
from vexport.pipeline.explain_pictures import SIDE, enlarge, overlay
from vexport.pipeline.export import export_graph
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.run.attention_check import ProbabilityLost
from vexport.workspace import Workspace, hash_file

NAMES = tuple(f"c{label}" for label in range(10))
Save = Callable[..., Path]
Run = Callable[..., Explanation]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten class folders, `c0` to `c9`, with three images each."""
    random = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            tint = random.integers(0, 256, 3)
            pixels = (random.integers(0, 256, (66, 72, 3)) + 2 * tint) // 3
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def save(tmp_path: Path, fill: Any, small_spec: NetworkSpec) -> Save:
    """Save a checkpoint that always answers `c3`, with what it says of itself."""

    def write(name: str = "own.pth", *, size: int = 64, answer: int = 3, **facts: Any) -> Path:
        state = fill(small_spec)
        state["cls2.0.bias"][answer] += 1000
        args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, input_size=size)
        told = {"class_names": list(NAMES)} | facts
        torch.save({"model": state, "epoch": 299, "args": args, "vexport": told}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "work")


@pytest.fixture
def run(tmp_path: Path, workspace: Workspace) -> Run:
    """Explain into `out`."""

    def explained(network: Path | str, *images: Path, **asked: Any) -> Explanation:
        return explain(str(network), images, workspace=workspace, **{"out": tmp_path / "out", **asked})

    return explained


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "explain.json").read_text())
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_right_and_wrong_samples(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    checkpoint = save()
    found = run(checkpoint, data=data, samples=2)
    groups = [(row.image.group, row.image.label, row.looks[0].is_right) for row in found.rows]
    assert groups[:2] == [("correct", 3, True)] * 2
    assert [(group, right) for group, _, right in groups[2:]] == [("misclassified", False)] * 2
    assert all(label != 3 for _, label, _ in groups[2:])
    said = read(tmp_path / "out")
    assert said["networks"][0]["weights"] == {"name": "own.pth", "sha256": hash_file(checkpoint)}
    assert (said["networks"][0]["layer"], said["networks"][0]["map"]) == ("stages.2", [2, 2])
    for told, row in zip(said["images"], found.rows, strict=True):
        path = data / told["image"]
        assert told["sha256"] == hash_file(path)
        assert (told["true"], told["networks"][0]["answer"]) == (path.parent.name, "c3")
        assert row.image.path == path
    assert files(tmp_path / "out") == {*found.files, "explain.files.json"}
    assert len(found.files) == 1 + 4 + 1
    for name in found.files[:-1]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 2 * SIDE


def test_the_seed_decides(run: Run, save: Save, data: Path) -> None:
    checkpoint = save()
    picks = [[r.image.shown for r in run(checkpoint, data=data, samples=3, seed=s).rows] for s in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]


def test_the_figures(run: Run, save: Save, data: Path) -> None:
    found = run(save(), data=data, samples=1, measured=3, beside=[str(save("other.pth", answer=5))])
    assert len(found.rows) == 6
    assert len(found.files) == 1 + 2 + 1, "one of each group is drawn"
    said = found.to_json()
    for summary in said["summary"]:
        place = [one["name"] for one in said["networks"]].index(summary["network"])
        rows = [one["networks"] for one in said["images"] if one["group"] == summary["group"]]
        for name in said["measures"]:
            values = [row[place][name] for row in rows if row[place][name] is not None]
            assert summary[name]["images"] == len(values)
            assert summary["without_map"] == sum(row[place]["map"] != "map" for row in rows)
            assert summary[name]["mean"] == pytest.approx(np.mean(values))
            assert summary[name]["deviation"] == pytest.approx(np.std(values, ddof=1))
            both = [row for row in rows if row[place][name] is not None and row[0][name] is not None]
            pairs = [row[place][name] - row[0][name] for row in both]
            if place:
                assert summary["minus_first"][name]["mean"] == pytest.approx(np.mean(pairs))
            else:
                assert summary["minus_first"] is None
    assert {one["network"] for one in said["summary"]} == {"own.pth", "other.pth"}


def test_what_hiding_costs(run: Run, save: Save, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is always the same, whatever is hidden."""
    checkpoint = save()
    assert not any("hiding" in note for note in run(checkpoint, data=data, samples=3, label="c5").notes)
    monkeypatch.setattr("vexport.pipeline.explain_notes.ENOUGH", 3)
    found = run(checkpoint, data=data, samples=3, label="c5")
    told = (
        "own.pth: hiding what the maps of stages.2 show cannot be told from hiding what other images' maps show (+0.0 "
    )
    assert any(note.startswith(told) for note in found.notes)
    measured = 0
    for row, said in zip(found.rows, found.to_json()["images"], strict=True):
        lost, one = row.looks[0].lost, said["networks"][0]
        own, other, difference = (one[f"probability_lost_{key}"] for key in ("own_map", "other_map", "difference"))
        if lost is None:
            assert own is other is difference is None
            continue
        measured += 1
        assert (own, other, difference) == (lost.own, lost.other, pytest.approx(own - other))
    assert measured >= 3


def test_each_image_beside_the_next_map_of_its_group(
    run: Run, save: Save, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from one batch to the next, around images without a map, and from the last to the first."""
    from vexport.run import attention, attention_check

    real = attention.attend

    def peak(image: np.ndarray) -> int:
        return int(1e6 * abs(float(image.mean()))) % image[0].size

    def attend(*given: Any) -> list[attention.Attention]:
        """Maps of one place, which the image decides; some images have none."""
        found = []
        for image, one in zip(given[2], real(*given), strict=True):
            values = np.zeros(image[0].size, np.float32)
            values[peak(image)] = 1
            state: Any = "not positive" if peak(image) % 4 == 0 else "map"
            found.append(replace(one, values=values.reshape(image.shape[1:]), label=7, state=state))
        return found

    def probability_lost(
        _: Any, images: np.ndarray, labels: list[int], own: list[Any], others: list[Any]
    ) -> list[ProbabilityLost]:
        """The first places, which tell whose maps were given."""
        assert labels == [7] * len(images)
        assert [int(one.places[0]) for one in own] == list(map(peak, images))
        assert [one.positive for one in own] == [1] * len(images)
        return [ProbabilityLost(float(a.places[0]), float(b.places[0])) for a, b in zip(own, others, strict=True)]

    monkeypatch.setattr("vexport.pipeline.explain_looks.BATCH", 2)
    monkeypatch.setattr(attention, "attend", attend)
    monkeypatch.setattr(attention_check, "probability_lost", probability_lost)
    found = run(save(), data=data, samples=3, measured=11)
    groups = []
    for group in ("correct", "misclassified"):
        looks = [row.looks[0] for row in found.rows if row.image.group == group]
        mapped = [look.lost for look in looks if look.attention.state == "map"]
        assert all(look.lost is None for look in looks if look.attention.state != "map")
        places = [one.own for one in mapped if one is not None]
        assert len(set(places)) == len(mapped) > 1, "each has its own place"
        assert [one.other for one in mapped if one is not None] == [*places[1:], places[0]]
        groups.append((len(mapped), len(looks)))
    assert groups[1][1] == 11 > groups[1][0] > 2, "several batches, and some without a map"


def test_without_another_map_nothing_is_said_of_hiding(run: Run, save: Save, data: Path) -> None:
    checkpoint = save()
    alone = "own.pth: what hiding costs is not measured for 1 of {} images: no other image of their group has a map"
    found = run(checkpoint, data / "c3" / "0.png")
    (look,) = found.rows[0].looks
    assert (look.attention.state, look.lost, look.probability_lost_difference) == ("map", None, None)
    assert any(note.startswith(alone.format(1)) for note in found.notes)
    assert found.to_json()["summary"][0]["probability_lost_difference"]["images"] == 0
    two = run(checkpoint, data / "c3" / "0.png", data / "c3" / "1.png")
    assert all(row.looks[0].lost is not None for row in two.rows)
    assert not any("hiding" in note for note in two.notes)


def test_what_is_said_of_what_hiding_costs(run: Run, save: Save, data: Path) -> None:
    found = run(save(), data / "c3" / "0.png")
    seen = replace(found.rows[0].looks[0].attention, state="map")

    def notes(*lost: ProbabilityLost | None, name: str = "own.pth") -> list[str]:
        look = replace(found.rows[0].looks[0], attention=seen)
        rows = [replace(found.rows[0], looks=(replace(look, lost=one),)) for one in lost]
        networks = [replace(found.networks[0], name=name)]
        return [note for note in collect_notes(networks, found.choice, rows) if "hid" in note]

    def some(other: float, count: int = 40) -> list[ProbabilityLost]:
        """Half the probability lost, a tenth more and less; by another's map as given."""
        return [ProbabilityLost(0.5 + sign / 10, other) for sign in (-1, 1) * (count // 2)]

    assert notes(*some(0.2)) == []
    assert notes(*some(0.46)) == [], "+4 points: beyond two standard errors of 1.6"
    for name in ("own.pth", "resnet50"):
        (said,) = notes(*some(0.49), name=name)
        error = 100 * np.std([0.4, 0.6] * 20, ddof=1) / 40**0.5
        figures = f"(+1.0 points, standard error {error:.1f}, 40 images)"
        shown = f"{name}: hiding what the maps of stages.2 show "
        assert said == f"{shown}cannot be told from hiding what other images' maps show {figures}"
        (said,) = notes(*some(0.6), name=name)
        assert said.startswith(f"{shown}costs the class less than hiding what other images' maps show (-10.0 points")
    assert notes(*some(0.5, 28)) == [], "too few to say"
    (said,) = notes(*some(0.2), None, None)
    assert said.startswith("own.pth: what hiding costs is not measured for 2 of 42 images")


def test_spreads() -> None:
    assert spread_of([]).to_json() == {"images": 0, "mean": None, "deviation": None}
    assert spread_of([0.5]).to_json() == {"images": 1, "mean": 0.5, "deviation": None}
    assert spread_of([1.0, 3.0]).to_json() == {"images": 2, "mean": 2.0, "deviation": pytest.approx(2**0.5)}


def test_both_forms_agree(run: Run, save: Save, data: Path, workspace: Workspace) -> None:
    checkpoint = save()
    deployed = fuse_checkpoint(checkpoint, workspace=workspace).artifact.path
    found = run(checkpoint, data=data, samples=3, beside=[str(deployed)])
    for row in found.rows:
        a, b = (look.attention for look in row.looks)
        assert (a.state, a.answer, a.label) == (b.state, b.answer, b.label)
        np.testing.assert_allclose(a.values, b.values, atol=1e-4)
    assert any(look.attention.state == "map" for row in found.rows for look in row.looks)


def test_named_images_and_their_classes(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    unknown = tmp_path / "photo.png"
    Image.new("RGB", (80, 90), "red").save(unknown)
    checkpoint = save()
    found = run(checkpoint, data / "c3" / "0.png", data / "c4" / "0.png", unknown)
    assert [row.image.label for row in found.rows] == [3, 4, None]
    assert [row.looks[0].is_right for row in found.rows] == [True, False, None]
    assert [row.looks[0].attention.label for row in found.rows] == [3, 3, 3]
    assert read(tmp_path / "out")["images"][2]["true"] is None
    with pytest.raises(InputError, match=r"the true class of 1 image\(s\) is not known"):
        run(checkpoint, unknown, label="true")
    true = run(checkpoint, data / "c4" / "0.png", label="true")
    assert true.rows[0].looks[0].attention.label == 4
    for label in ("c7", "7"):
        found = run(checkpoint, unknown, label=label)
        assert (found.rows[0].looks[0].attention.label, found.explains) == (7, "c7")
    with pytest.raises(InputError, match="there is no class c77") as caught:
        run(checkpoint, unknown, label="c77")
    assert "did you mean c7" in caught.value.hint
    with pytest.raises(InputError, match="there is no class 10"):
        run(checkpoint, unknown, label="10")


def test_no_image_is_misclassified(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    for name in NAMES:
        for image in (data / name).iterdir():
            if name != "c3":
                image.unlink()
    found = run(save(), data=data, samples=2)
    assert [row.image.group for row in found.rows] == ["correct"] * 2
    assert "own.pth answers no image wrongly of all 3: 2 were wanted" in found.notes
    assert {one.group for one in found.summaries} == {"correct"}
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_damaged_images_are_left_out_of_samples(run: Run, save: Save, data: Path) -> None:
    (data / "c3" / "1.png").write_bytes(b"no image")
    found = run(save(), data=data, samples=3)
    assert sum(row.image.group == "correct" for row in found.rows) == 2
    assert any(note.startswith("skipped: c3/1.png: ") for note in found.notes)
    with pytest.raises(InputError, match="cannot be read"):
        run(save(), data / "c3" / "1.png")


def test_layers(run: Run, save: Save, data: Path) -> None:
    first, other, image = save(), str(save("other.pth")), data / "c3" / "0.png"
    assert [one.layer.name for one in run(first, image, beside=[other], layers=["stages.0"]).networks] == [
        "stages.0"
    ] * 2
    found = run(first, image, beside=[other], layers=["default", "stages.1"])
    assert [one.layer.name for one in found.networks] == ["stages.2", "stages.1"]
    assert any(note.startswith("the maps differ in size (own.pth 2x2, other.pth 4x4)") for note in found.notes)
    with pytest.raises(InputError, match=r"3 layers for 2 network\(s\)"):
        run(first, image, beside=[other], layers=["a", "b", "c"])
    with pytest.raises(InputError, match=r"own.pth has no layer stages.9"):
        run(first, image, layers=["stages.9"])


def test_a_last_map_of_one_place(run: Run, save: Save, data: Path) -> None:
    small, image = save("small.pth", size=32), data / "c3" / "0.png"
    found = run(small, image)
    assert (found.networks[0].layer.name, found.networks[0].layer.height) == ("stages.1", 2)
    assert any("the last feature map, of stages.2, is 1x1" in note for note in found.notes)
    with pytest.raises(InputError, match=r"the map of stages\.2 of small\.pth is 1x1") as caught:
        run(small, image, layers=["stages.2"])
    assert "--layer stages.1" in caught.value.hint


def test_networks_of_one_file_name_are_told_apart(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        folder = tmp_path / name / "vexport-out"
        folder.mkdir(parents=True)
        paths.append(save().rename(folder / "own.pth"))
    found = run(paths[0], data / "c3" / "0.png", beside=[str(paths[1])])
    assert [one.name for one in found.networks] == ["a/.../own.pth", "b/.../own.pth"]


def test_what_is_no_network(run: Run, save: Save, data: Path, workspace: Workspace, tmp_path: Path) -> None:
    image, checkpoint = data / "c3" / "0.png", save()
    graph = export_graph(checkpoint, workspace=workspace).artifact.path
    with pytest.raises(InputError, match="is a graph: attention maps need the gradients") as caught:
        run(graph, image)
    assert "it was made from own.deploy.safetensors" in caught.value.details[0]
    assert caught.value.hint == f"give {workspace.root / 'own.deploy.safetensors'} instead"
    engine = tmp_path / "x.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(InputError, match="is an engine") as caught:
        run(engine, image)
    assert caught.value.hint == "give the checkpoint that it was made from"
    with pytest.raises(InputError, match="resnet50 is a network's name: which weights"):
        run("resnet50", image)
    with pytest.raises(InputError, match="resnet5 is neither a file nor a network's name") as caught:
        run("resnet5", image)
    assert "did you mean resnet50" in caught.value.hint
    with pytest.raises(InputError, match=r"no such file: none\.pth"):
        run("none.pth", image)
    with pytest.raises(InputError, match="--weights random needs a network's name"):
        run(checkpoint, image, weights="random")
    with pytest.raises(InputError, match="is given twice"):
        run(checkpoint, image, beside=[str(checkpoint)])
    other = save("other.pth", class_names=["x", *NAMES[1:]])
    with pytest.raises(InputError, match="do not have the same classes in the same order"):
        run(checkpoint, image, beside=[str(other)])
    assert not (tmp_path / "out").exists()


def test_options(run: Run, save: Save, data: Path) -> None:
    image, checkpoint = data / "c3" / "0.png", save()
    for asked, problem in (
        ({}, "there is nothing to explain"),
        ({"data": data, "samples": 0}, "--samples 0 is not within"),
        ({"data": data, "samples": 4, "measured": 3}, "--measure 3 does not fit"),
        ({"data": data, "seed": -1}, "--seed -1 is negative"),
    ):
        with pytest.raises(InputError, match=problem):
            run(checkpoint, **asked)
    with pytest.raises(InputError, match="exclude each other"):
        run(checkpoint, image, data=data)
    with pytest.raises(InputError, match="are too many for one sheet"):
        run(checkpoint, *[image] * 33)
    with pytest.raises(InputError, match="no such file"):
        run(checkpoint, data / "none.png")


def test_foreign_files_stay(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "out", save()
    out.mkdir()
    (out / "sheet.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match=r"sheet\.png is in the way"):
        run(checkpoint, data / "c3" / "0.png")
    assert files(out) == {"sheet.png", "notes.txt"}
    run(checkpoint, data / "c3" / "0.png", force=True)
    assert (out / "notes.txt").read_text() == "mine"
    first = files(out)
    run(checkpoint, data / "c3" / "1.png", data / "c3" / "2.png")
    assert files(out) == {
        "sheet.png", "explain.json", "explain.files.json", "notes.txt", "given-01-1.png", "given-02-2.png",
    }  # fmt: skip
    assert "given-01-0.png" in first
    (out / "given-01-1.png").write_text("changed")
    before = {path: hash_file(path) for path in out.iterdir()}
    with pytest.raises(WorkspaceError, match=r"given-01-1\.png is in the way"):
        run(checkpoint, data / "c3" / "1.png")
    assert {path: hash_file(path) for path in out.iterdir()} == before
    run(checkpoint, data / "c3" / "0.png")
    assert (out / "given-01-1.png").read_text() == "changed", "changed by another hand: not removed"
    assert not (out / "given-02-2.png").exists()


def test_a_file_where_the_folder_should_be(run: Run, save: Save, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(WorkspaceError, match="out is a file"):
        run(save(), data / "c3" / "0.png")
    with pytest.raises(WorkspaceError, match="is a file"):
        run(save(), data / "c3" / "0.png", out=tmp_path / "out" / "deeper" / "still")


def test_an_interrupt_leaves_nothing(
    run: Run, save: Save, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    checkpoint = save()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, data / "c3" / "0.png")
    assert not (tmp_path / "out").exists()
    run(checkpoint, data / "c3" / "0.png")
    kept = {path.name: hash_file(path) for path in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("vexport.pipeline.explain_files._write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, data / "c4" / "0.png")
    assert {path.name: hash_file(path) for path in (tmp_path / "out").iterdir()} == kept


def test_the_workspace_has_a_folder_for_it(run: Run, save: Save, data: Path, workspace: Workspace) -> None:
    found = run(save(), data / "c3" / "0.png", out=None)
    assert found.folder == workspace.root / "own.explain"
    assert (found.folder / "sheet.png").is_file()


def test_one_colour_channel(run: Run, tmp_path: Path, fill: Any) -> None:
    from vexport.model.variants import make_spec

    spec = make_spec("vanillanet_5", width=1 / 64, num_classes=4, in_chans=1, stem_stride=2)
    args = argparse.Namespace(model="vanillanet_5", decay_epochs=100, decay_linear=True, input_size=32)
    torch.save({"model": fill(spec), "epoch": 299, "args": args}, tmp_path / "grey.pth")
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    found = run(tmp_path / "grey.pth", tmp_path / "a.png")
    picture = found.rows[0].looks[0].picture
    assert picture is not None
    assert picture.shape == (32, 32, 3)
    assert (picture == 90).all()
    assert found.choice.class_names == ("class 0", "class 1", "class 2", "class 3")


def test_pictures() -> None:
    flat = np.full((20, 30, 3), 100, np.uint8)
    rising = np.repeat(np.linspace(0, 1, 30, dtype=np.float32)[None], 20, axis=0)
    painted = overlay(flat, rising)
    assert painted.shape == (20, 30, 3)
    lightness = painted.astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[0]) > -0.5).all(), "lighter is more, without colours too"
    assert lightness[0, -1] - lightness[0, 0] > 80
    assert enlarge(flat).size == (30 * (SIDE // 30), 20 * (SIDE // 30)), "whole multiples"
    assert set(np.asarray(enlarge(flat)).ravel()) == {100}
    assert enlarge(np.zeros((448, 224, 3), np.uint8)).size == (SIDE // 2, SIDE)


def test_pictures_of_unusual_names() -> None:
    from vexport.pipeline.explain_pictures import Block, Column, draw

    picture = draw([Block("Correct by ネット", (), "none of 5 images")], [Column("x" * 200, "层")], ["猫"])
    with Image.open(io.BytesIO(picture)) as opened:
        assert opened.size[0] > 2 * SIDE
