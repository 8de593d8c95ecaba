"""Calibration images: folders, tars, arrays; which ones are chosen; what is refused or skipped."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from colours import pixels, prepared, save_images
from PIL import Image

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.run.calibration_images import Loader, describe_images, digest, split_images
from vexport.run.image_sets import open_images

HOW = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, 1.0, "bilinear")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images", 10)


def tar_of(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(file, file.relative_to(folder).as_posix())
        archive.addfile(tarfile.TarInfo("notes.txt"))
    return path


def test_a_folder_and_a_tar_of_it_are_the_same(folder: Path, tmp_path: Path) -> None:
    seen = {}
    for path in (folder, tar_of(folder, tmp_path / "a.tar"), tar_of(folder, tmp_path / "a.tar.gz", "w:gz")):
        with open_images(path, HOW) as images:
            split = split_images(images.names, 12, 0)
            images.fetch((*split.calibration, *split.held_out))
            seen[path.name] = describe_images(images, split)
            image = images.load(split.calibration[0])
            assert (image.shape, image.dtype) == ((3, 8, 8), np.float32)
    assert seen["images"] == seen["a.tar"] == seen["a.tar.gz"]
    assert len(seen["images"]) == 12
    assert {len(entry["sha256"]) for entry in seen["images"]} == {64}


def test_a_tars_members_stay_where_they_are_put(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels(0, 0)).save(content, "png")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("../../escaped.png", "/abs.png", "fine.png"):
            info = tarfile.TarInfo(name)
            info.size = content.getbuffer().nbytes
            archive.addfile(info, io.BytesIO(content.getvalue()))
    before = set(tmp_path.parent.rglob("*"))
    with open_images(tmp_path / "evil.tar", HOW) as images:
        images.fetch(images.names)
        assert all(images.load(name).shape == (3, 8, 8) for name in images.names)
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays(tmp_path: Path, name: str) -> None:
    values = prepared(20)
    if name.endswith("npz"):
        np.savez_compressed(tmp_path / name, images=values, labels=np.arange(20))
    else:
        np.save(tmp_path / name, values)
    with open_images(tmp_path / name, HOW) as images:
        assert images.names[:2] == (f"{name}[00]", f"{name}[01]")
        assert images.names == tuple(sorted(images.names))
        np.testing.assert_array_equal(images.load(f"{name}[07]"), values[7])
        assert images.sha256(f"{name}[07]") != images.sha256(f"{name}[08]")
        assert images.kind == "array"


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    def refused(values: np.ndarray) -> str:
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(InputError) as caught, open_images(tmp_path / "x.npy", HOW):
            pass
        return str(caught.value)

    assert "holds 5x3x9x9, the network takes Nx3x8x8" in refused(np.zeros((5, 3, 9, 9), np.float32))
    assert "holds 5x8x8x3" in refused(np.zeros((5, 8, 8, 3), np.float32))
    assert "holds 3x8x8" in refused(np.zeros((3, 8, 8), np.float32))
    assert "holds uint8, not float32" in refused(np.zeros((5, 3, 8, 8), np.uint8))
    assert "there is no image in" in refused(np.zeros((0, 3, 8, 8), np.float32))
    assert "is not a whole array" in refused(np.array([{}], dtype=object))
    (tmp_path / "x.npy").write_bytes(b"no array")
    (tmp_path / "x.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(tmp_path / "one.npz", anything=prepared(4))
    for name in ("x.npy", "x.npz", "two.npz"):
        with pytest.raises(InputError, match="is not a whole array"), open_images(tmp_path / name, HOW):
            pass
    with open_images(tmp_path / "one.npz", HOW) as images:
        assert len(images.names) == 4


def test_nan_pixels_are_skipped_by_name(tmp_path: Path) -> None:
    values = prepared(20)
    values[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", values)
    with open_images(tmp_path / "x.npy", HOW) as images:
        loader = Loader(images, 4)
        assert sum(len(batch.names) for batch in loader.batches(images.names)) == 19
        assert loader.skipped == {"x.npy[03]": "x.npy[03] holds NaN or infinite pixels"}


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.txt").write_text("no")
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("notes.txt"))
    cases = {
        "missing": "does not exist",
        "empty": "there is no image in",
        "readme.txt": "holds no calibration images",
        "broken.tar": "is not a whole tar",
        "none.tar": "there is no image in",
    }
    for name, says in cases.items():
        with pytest.raises(InputError, match=says) as caught, open_images(tmp_path / name, HOW):
            pass
        assert caught.value.hint


def test_the_choice_is_seeded_and_spread() -> None:
    names = [f"{label}/{index:03}.png" for label in range(10) for index in range(100)]
    split = split_images(names, 160, 0)
    assert (len(split.calibration), len(split.held_out), len(split.unused)) == (140, 20, 840)
    assert sorted((*split.calibration, *split.held_out, *split.unused)) == names
    for part, each in ((split.calibration, 14), (split.held_out, 2)):
        assert set(Counter(name[0] for name in part).values()) == {each}
    assert split == split_images(names, 160, 0)
    assert split != split_images(names, 160, 1)
    everything = split_images(names, 5000, 0)
    assert (len(everything.held_out), everything.unused) == (125, ())
    assert len(split_images([*names, *(f"z/{i}" for i in range(2000))], 5000, 0).held_out) == 128


def test_two_images_are_the_least() -> None:
    split = split_images(["a", "b"], 512, 0)
    assert sorted((*split.calibration, *split.held_out)) == ["a", "b"]
    assert len(split.held_out) == 1
    for names, count in ((["a"], 512), ([], 512)):
        with pytest.raises(InputError, match="to calibrate on"):
            split_images(names, count, 0)
    with pytest.raises(InputError, match="--images 1 is too few"):
        split_images(["a", "b"], 1, 0)


def test_the_digest_is_of_names_contents_and_parts(folder: Path) -> None:
    with open_images(folder, HOW) as images:
        first = digest(describe_images(images, split_images(images.names, 12, 0)))
        assert first == digest(describe_images(images, split_images(images.names, 12, 0)))
        assert first != digest(describe_images(images, split_images(images.names, 12, 1)))
        split = split_images(images.names, 12, 0)
        (folder / split.calibration[0]).write_bytes(b"other")
        assert first != digest(describe_images(images, split))


def test_damaged_images_are_skipped_and_named(folder: Path) -> None:
    for index in range(10):
        (folder / "red" / f"{index:03}.png").write_bytes(b"no image")
    with open_images(folder, HOW) as images:
        loader = Loader(images, 4)
        found = [name for batch in loader.batches(images.names) for name in batch.names]
        assert len(found) == 20
        assert set(loader.skipped) == {f"red/{index:03}.png" for index in range(10)}
        list(loader.batches(images.names))
        assert len(loader.skipped) == 10, "an image counts once, however often it is asked for"
        (folder / "blue" / "000.png").write_bytes(b"no image")
        with pytest.raises(InputError, match="more than 10 calibration images cannot be read") as caught:
            list(Loader(images, 4).batches(images.names))
        assert len(caught.value.details) == 11
        with pytest.raises(InputError, match="none of the images can be read"):
            list(loader.batches([f"red/{index:03}.png" for index in range(10)]))


def test_images_with_nothing_on_them(tmp_path: Path) -> None:
    def load(values: np.ndarray, *, varied: bool = True) -> int:
        np.save(tmp_path / "x.npy", values)
        with open_images(tmp_path / "x.npy", HOW) as images:
            return sum(len(batch.names) for batch in Loader(images, 4).batches(images.names, varied=varied))

    plain = np.broadcast_to(np.arange(30, dtype=np.float32).reshape(10, 3, 1, 1), (10, 3, 8, 8))
    with pytest.raises(InputError, match="of one colour: there is nothing to calibrate on"):
        load(np.ascontiguousarray(plain))
    with pytest.raises(InputError, match="all 10 images are the same"):
        load(np.repeat(prepared(1), 10, axis=0))
    assert load(np.repeat(prepared(1), 10, axis=0), varied=False) == 10
    assert load(prepared(10)) == 10
    mixed = np.ascontiguousarray(plain).copy()
    mixed[9] = prepared(1)[0]
    assert load(mixed) == 10
