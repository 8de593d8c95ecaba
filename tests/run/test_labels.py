"""Class folders: where they are, which class each is, and which images a limit takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vexport.errors import InputError
from vexport.run.labels import (
    ClassFolders,
    label_by_name,
    label_by_order,
    read_class_folders,
    require_classes,
)


def make(root: Path, *files: str) -> Path:
    """Files with the names of images; nothing here decodes them. A name that ends in / is a folder."""
    for name in files:
        if name.endswith("/"):
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    return root


def folders(**images: int) -> ClassFolders:
    """Class folders with so many images each."""
    names = sorted(images)
    return ClassFolders(
        Path("data"), tuple(names), tuple(tuple(f"{i}.png" for i in range(images[name])) for name in names)
    )


def test_folders_are_sorted_and_their_subfolders_count(tmp_path: Path) -> None:
    make(tmp_path, "dog/2.png", "dog/1.JPEG", "cat/deep/er/1.png", "cat/0.png", "empty/", ".git/1.png", "cat/notes.txt")
    found = read_class_folders(tmp_path)
    assert found.names == ("cat", "dog", "empty")
    assert found.files == (("0.png", "deep/er/1.png"), ("1.JPEG", "2.png"), ())
    assert (found.images, found.filled, found.notes) == (4, ("cat", "dog"), ())


def test_images_beside_the_folders_are_told(tmp_path: Path) -> None:
    found = read_class_folders(make(tmp_path, "a/1.png", "b/1.png", "stray.png"))
    assert found.images == 2
    assert found.notes == (f"1 image(s) lie beside the class folders of {tmp_path}: they belong to no class",)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (("train/a/1.png", "val/a/1.png", "val/b/1.png", "test/a/1.png"), "val"),
        (("train/a/1.png", "validation/a/1.png", "test/a/1.png"), "validation"),
        (("train/a/1.png", "test/a/1.png"), "test"),
        (("val/1.png", "test/a/1.png"), "test"),
    ],
)
def test_the_held_out_part_is_taken_and_told(tmp_path: Path, files: tuple[str, ...], taken: str) -> None:
    found = read_class_folders(make(tmp_path, *files))
    assert found.root == tmp_path / taken
    assert found.notes == (f"images: {tmp_path / taken} (in {tmp_path} itself there are no class folders)",)


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    assert read_class_folders(make(tmp_path, "bus/1.png", "train/1.png")).names == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "there is no image in"),
        (("a/", "b/notes.txt"), "there is no image in"),
        (("1.png", "2.png"), "has no class folders with images in them\n  2 image(s) lie elsewhere in it"),
        (("val/1.png", "train/a/1.png"), "2 image(s) lie elsewhere in it\n  folder: train\n  folder: val"),
        (("train/a/1.png",), "has no class folders"),
    ],
)
def test_no_class_folders(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_class_folders(make(tmp_path, *files))
    assert said in str(caught.value)
    assert "DIR/<class>/<image>" in caught.value.hint


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_class_folders(tmp_path / "none")
    with pytest.raises(InputError, match="is a file"):
        read_class_folders(make(tmp_path, "file") / "file")


def test_by_name_in_the_networks_order() -> None:
    found = label_by_name(folders(cat=1, zebra=1), ["zebra", "ant", "cat"], artifact="net.onnx")
    assert found.class_names == ("zebra", "ant", "cat")
    assert [(s.path, s.label) for s in found.samples(folders(cat=1, zebra=1))] == [("cat/0.png", 2), ("zebra/0.png", 0)]


def test_an_unknown_folder_is_listed_with_the_names() -> None:
    with pytest.raises(InputError) as caught:
        label_by_name(folders(cats=1, dog=1, fish=0), ["cat", "dog"], artifact="net.onnx")
    assert caught.value.message == "2 folder(s) of data are no class of net.onnx"
    assert caught.value.details == ("no class: cats, fish", "its classes: cat, dog")


def test_many_names_are_shortened() -> None:
    with pytest.raises(InputError) as caught:
        label_by_name(folders(x=1), [f"n{i}" for i in range(1000)], artifact="net.onnx")
    assert caught.value.details[1].endswith("n19 ... (1000 in all)")


def test_two_classes_of_one_name() -> None:
    names = ["crane", "dog", "crane"]
    assert label_by_name(folders(dog=1), names, artifact="net.onnx").numbers == {"dog": 1}
    with pytest.raises(InputError, match="same name") as caught:
        label_by_name(folders(crane=1, dog=1), names, artifact="net.onnx")
    assert caught.value.details == ("the name of several: crane",)


def test_by_order_the_number_must_be_the_networks() -> None:
    found = label_by_order(folders(a=1, b=0, c=2), 3, artifact="net.onnx")
    assert found.numbers == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(InputError) as caught:
        label_by_order(folders(a=1, b=0, c=2), 10, artifact="net.onnx")
    assert caught.value.message == "data has 3 class folder(s), net.onnx tells 10 classes apart"
    assert caught.value.details == ("folders: a, b, c", "without images: b")


def test_one_class_says_nothing() -> None:
    require_classes(folders(a=1, b=1))
    with pytest.raises(InputError, match="accuracy over one class says nothing"):
        require_classes(folders(a=5, b=0))


def test_a_limit_is_spread_over_the_classes() -> None:
    ten = folders(**{f"c{i}": 7 for i in range(10)})
    assert len(list(ten.choose())) == len(list(ten.choose(1000))) == 70
    chosen = list(ten.choose(20))
    assert len(chosen) == len(set(chosen)) == 20
    assert [name for name, _ in chosen] == sorted(name for name in ten.names for _ in range(2))
    assert list(ten.choose(20)) == chosen
    assert [name for name, _ in folders(a=2, b=0, c=2).choose(2)] == ["a", "c"]
