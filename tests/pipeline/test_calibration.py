"""Statistics from before in the pipeline: taken for the same request only, and true of today's files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from colours import colour_graph, save_graph, save_images

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.pipeline import calibration
from vexport.pipeline.calibration import Job, QuantizeOptions, find_statistics
from vexport.pipeline.quantize import quantize_graph
from vexport.run import image_sets
from vexport.run.calibration_images import Loader, describe_images, split_images
from vexport.run.image_sets import open_images
from vexport.workspace import Workspace

HOW = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, 1.0, "bilinear")
Asked = tuple[bool, dict[str, str]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Ask for the statistics of a folder: whether they were measured, and what was skipped."""
    monkeypatch.setattr(calibration, "default_folder", lambda: tmp_path / "cache")

    def find(folder: Path, how: Preprocessing = HOW, tensors: tuple[str, ...] = ("input", "pooled")) -> Asked:
        told: list[str] = []
        with ExitStack() as stack:
            images = stack.enter_context(open_images(folder, how))
            split = split_images(images.names, 64, 0)
            # Of a job only this is read; a whole one takes a graph opened by the pipeline.
            job: Any = SimpleNamespace(
                chosen=describe_images(images, split), how=how, split=split, images=images, threads=1
            )
            assert set(vars(job)) <= set(Job.__dataclass_fields__)
            loader = Loader(images, 4)
            find_statistics(job, colour_graph(), list(tensors), loader, True, lambda text, _: told.append(text))
        return bool(told), loader.skipped

    return find


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", 10)


def test_known_statistics_need_the_same_request(
    ask: Callable[..., Asked], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(folder) == (True, {})
    assert ask(folder) == (False, {})
    assert ask(folder, how=replace(HOW, std=(0.5,) * 3)) == (True, {})
    assert ask(folder, tensors=("input",)) == (True, {})
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "tool_versions", lambda *names: dict.fromkeys(names, "0"))
        assert ask(folder) == (True, {})
    assert ask(folder) == (False, {})


def test_what_was_skipped_is_named_as_it_is_called_today(ask: Callable[..., Asked], folder: Path) -> None:
    for name in ("gone.png", "lost.png"):
        (folder / "red" / name).symlink_to("nowhere.png")
    for name in ("blue/000.png", "blue/001.png", "blue/002.png"):
        (folder / name).write_bytes(b"no image, " + name.encode())
    measured, before = ask(folder)
    assert measured
    # Of eight images in a row one is held out, so some of either kind are measured.
    assert {name.partition("/")[0] for name in before} == {"blue", "red"}
    assert all(str(folder / name) in reason for name, reason in before.items())
    renamed = folder.rename(folder.with_name("renamed"))
    for file in sorted(renamed.rglob("*.png")):
        file.rename(file.with_name(f"new-{file.name}"))
    measured, after = ask(renamed)
    assert not measured
    new = {f"{name.rpartition('/')[0]}/new-{name.rpartition('/')[2]}" for name in before}
    assert set(after) == new
    assert all((renamed / name).is_symlink() or (renamed / name).is_file() for name in after)
    assert all(str(renamed / name) in reason for name, reason in after.items())


def test_known_images_are_not_read_again(
    ask: Callable[..., Asked], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "red" / "000.png").write_bytes(b"no image")
    (folder / "red" / "001.png").write_bytes(b"no image")
    _, skipped = ask(folder)
    assert skipped
    loaded: list[str] = []

    def count(path: Path, _: Preprocessing) -> None:
        loaded.append(path.relative_to(folder).as_posix())
        raise InputError("still damaged", hint="none")

    monkeypatch.setattr(image_sets, "load_image", count)
    assert ask(folder) == (False, dict.fromkeys(skipped, "still damaged"))
    assert loaded == list(skipped)


def test_the_manifest_says_every_option(tmp_path: Path) -> None:
    """One that is missing there would make another request "up to date"."""
    options = QuantizeOptions(images=16, seed=3, method="minmax", equalize=False, correct_biases=False)
    graph, calib = save_graph(tmp_path / "colours.onnx"), save_images(tmp_path / "images", 10)
    made = quantize_graph(graph, workspace=Workspace(tmp_path / "out"), calib=calib, options=options, threads=1)
    told = made.artifact.manifest.options
    assert told.items() >= (asdict(options) | {"keep": []}).items()
    assert told["seed"] == 3
