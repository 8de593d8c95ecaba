"""Calibration images: folders, tars, arrays; which ones are chosen; what is refused or skipped."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from colours import pixels, prepared, save_images
from PIL import Image

from vexport.artifacts import Preprocessing
from vexport.errors import InputError, WorkspaceError
from vexport.run.calibration_images import Loader, Split, describe_images, digest, split_images
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


def test_a_tar_of_a_folder_from_within_has_the_same_names(folder: Path, tmp_path: Path) -> None:
    """`tar -C images .` puts `./` before every name, and takes what is hidden."""
    for name in (".cache/x.png", "red/.thumbs/deep/x.png", "red/.x.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels(0, 0)).save(folder / name)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, ".")
        assert "./.cache/x.png" in archive.getnames()
    seen = []
    for path in (folder, tmp_path / "a.tar"):
        with open_images(path, HOW) as images:
            images.fetch(images.names)
            split = split_images(images.names, 12, 0)
            seen.append((images.names, digest(describe_images(images, split))))
            assert images.load("red/000.png").shape == (3, 8, 8)
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 30


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_a_damaged_tar_is_named(folder: Path, tmp_path: Path, mode: str) -> None:
    path = tar_of(folder, tmp_path / f"a.tar.{mode}", f"w:{mode}")
    content = path.read_bytes()
    rng, said = np.random.default_rng(0), []
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with open_images(path, HOW) as images:
                images.fetch(images.names)
        except InputError as error:
            said.append(error.message)
    assert len(said) > 10
    assert all("is not a whole tar" in message or "no image in" in message for message in said)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is not a whole tar"), open_images(path, HOW) as images:
        images.fetch(images.names)


def test_a_tar_with_a_header_of_nonsense_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.png")
        member.pax_headers = {"GNU.sparse.map": "here,there"}
        archive.addfile(member)
    with pytest.raises(InputError, match="is not a whole tar"), open_images(tmp_path / "a.tar", HOW):
        pass


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


@pytest.mark.parametrize(
    ("dtype", "says"),
    [("<f8", "float64"), ("<f2", "float16"), (">f4", r"float32 in another byte order \(>f4\)")],
)
def test_other_floating_types_are_to_be_converted(tmp_path: Path, dtype: str, says: str) -> None:
    np.save(tmp_path / "x.npy", prepared(4).astype(dtype))
    with pytest.raises(InputError, match=f"holds {says}, not float32") as caught, open_images(tmp_path / "x.npy", HOW):
        pass
    assert "astype(np.float32)" in caught.value.hint
    assert "255" not in caught.value.hint


def test_pixels_are_not_to_be_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 8, 8), np.uint8))
    with pytest.raises(InputError, match="holds uint8, not float32") as caught, open_images(tmp_path / "x.npy", HOW):
        pass
    assert "normalised" in caught.value.hint
    assert "astype" not in caught.value.hint


def patched(content: bytes, before: bytes, after: bytes) -> bytes:
    assert before in content
    return content.replace(before, after)


def test_damaged_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", prepared(4))
    np.savez(tmp_path / "x.npz", images=prepared(4))
    npy, npz = ((tmp_path / name).read_bytes() for name in ("x.npy", "x.npz"))
    broken = {
        "header.npy": patched(npy, b"'shape': (4, ", b"'shape': (((("),
        "indented.npy": patched(npy, b"{'descr'", b"\n  a\n b "),
        "huge.npy": patched(npy, b"(4, 3, 8, 8), }", b"(4, 3, 8, 9**9"),
        "cut.npy": npy[:-1],
        "cut.npz": npz[: len(npz) // 2],
    }
    # A flag says that it is encrypted; a number names a compression that there is none of.
    place = npz.index(b"PK\x01\x02")
    secret, unknown = bytearray(npz), bytearray(npz)
    secret[place + 8] |= 1
    secret[6] |= 1
    unknown[place + 10] = unknown[8] = 77
    broken["secret.npz"], broken["unknown.npz"] = bytes(secret), bytes(unknown)
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="is not a whole array") as caught, open_images(tmp_path / name, HOW):
            pass
        assert caught.value.hint, name


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 8, 1" + "0" * 22 + ")}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3, 8, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3, 8, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,)}",
        "{'descr': ('<f4',), 'fortran_order': False, 'shape': (4, 3, 8, 8)}",
        "{'descr': '<f4', 1: 2}",
        "{[]: 1}",
    ],
    ids=["long", "negative", "truth", "deep", "lookup", "keys", "unhashable"],
)
def test_odd_headers_of_arrays(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(3072)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match="is not a whole array"), open_images(tmp_path / "x.npy", HOW):
        pass


def test_an_archive_of_another_compression(tmp_path: Path) -> None:
    """numpy reads what zipfile does; damaged, each decompressor has errors of its own."""
    buffer = io.BytesIO()
    np.save(buffer, prepared(4))
    path = tmp_path / "x.npz"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("images.npy", buffer.getvalue())
        with open_images(path, HOW) as images:
            assert len(images.names) == 4
        content = bytearray(path.read_bytes())
        content[80:120] = b"\xff" * 40
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a whole array"), open_images(path, HOW):
            pass


def test_flipped_bits_of_an_array_raise_nothing_else(tmp_path: Path) -> None:
    for name, save in (("x.npy", np.save), ("x.npz", np.savez_compressed)):
        path = tmp_path / name
        save(path, prepared(2))  # type: ignore[operator]
        content, rng = path.read_bytes(), np.random.default_rng(0)
        ends = [*range(128), *range(len(content) - 128, len(content))]
        for place in (*ends, *rng.integers(0, len(content), 64)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with suppress(InputError), open_images(path, HOW) as images:
                images.load(images.names[0])


def test_a_full_disk_is_not_a_damaged_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "x.npz", images=prepared(4))
    tar_of(folder, tmp_path / "a.tar")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "scratch").mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    for name in ("x.npz", "a.tar"):
        says = f"no space left to unpack .*{name}"
        with pytest.raises(WorkspaceError, match=says) as caught, open_images(tmp_path / name, HOW) as images:
            images.fetch(images.names)
        assert str(tmp_path / "scratch") in caught.value.hint
        assert "TMPDIR" in caught.value.hint
    assert not list((tmp_path / "scratch").iterdir())


def test_a_broken_link_is_skipped_as_a_damaged_image_is(folder: Path) -> None:
    (folder / "red" / "000.png").unlink()
    (folder / "red" / "000.png").symlink_to("nowhere.png")
    with open_images(folder, HOW) as images:
        split = split_images(images.names, 30, 0)
        described = {entry["name"]: entry["sha256"] for entry in describe_images(images, split)}
        assert [name for name, sha256 in described.items() if sha256 is None] == ["red/000.png"]
        assert len(digest(describe_images(images, split))) == 64
        loader = Loader(images, 4)
        assert sum(len(batch.names) for batch in loader.batches(images.names)) == 29
        assert list(loader.skipped) == ["red/000.png"]
        assert "No such file" in loader.skipped["red/000.png"]


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
    assert set(split_images(names, 5000, 1).held_out) != set(everything.held_out)
    assert split_images(names, 5000, 0) == everything
    assert (len(everything.held_out), everything.unused) == (125, ())
    assert len(split_images([*names, *(f"z/{i}" for i in range(2000))], 5000, 0).held_out) == 128


@pytest.mark.parametrize("count", [2, 3, 16, 500, 1000, 2000])
def test_the_held_out_images_are_drawn_one_of_each_stretch(count: int) -> None:
    names = [f"{index:04}" for index in range(count)]
    splits = [split_images(names, 4096, seed) for seed in range(20)]
    held = min(128, max(1, count // 8))
    edges = [index * count // held for index in range(held + 1)]
    for split in splits:
        places = [int(name) for name in split.held_out]
        assert all(first <= place < last for place, (first, last) in zip(places, pairwise(edges), strict=True))
        assert sorted((*split.calibration, *split.held_out)) == names
        assert split.unused == ()
    assert len({split.held_out for split in splits}) == {2: 2, 3: 3, 16: 16}.get(count, 20)
    if count == 500:
        # Every place has its turn.
        first = {int(split_images(names, 4096, seed).held_out[0]) for seed in range(100)}
        assert first == set(range(edges[1]))


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
        (one, *others), (held, *rest) = split.calibration, split.held_out
        swapped = Split((held, *others), (one, *rest), split.unused)
        entries = [describe_images(images, each) for each in (split, swapped)]
        contents = [{(entry["name"], entry["sha256"]) for entry in each} for each in entries]
        assert contents[0] == contents[1]
        assert digest(entries[0]) != digest(entries[1])
        by_name = [sorted(each, key=lambda entry: entry["name"]) for each in entries]
        assert digest(by_name[0]) != digest(by_name[1]), "not only by the order"
        assert {entry["name"]: entry["part"] for entry in entries[0]} == {
            **dict.fromkeys(split.calibration, "calibration"),
            **dict.fromkeys(split.held_out, "held out"),
        }
        assert first == digest(entries[0])
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
