"""Images: the same numbers as torchvision and timm, and clear words for what is no image."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.run.images import find_images, load_image, load_images

GRAY = Preprocessing((1, 8, 8), (0.5,), (0.5,), 1.0, "bilinear")


def draw(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    bands = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, bands), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze() if bands == 1 else pixels, mode).save(path)
    return path


def timms(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """What timm's evaluation transform makes of an image."""
    transform = create_transform(
        preprocessing.input_size,
        is_training=False,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
    )
    with Image.open(path) as image:
        return transform(image.convert("L" if preprocessing.input_size[0] == 1 else "RGB")).numpy()


@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (224, 224), (256, 301), (401, 256), (31, 17)])
def test_equals_timm_on_imagenets_settings(
    tmp_path: Path, width: int, height: int, crop_pct: float, interpolation: str
) -> None:
    preprocessing = Preprocessing(crop_pct=crop_pct, interpolation=interpolation)
    path = draw(tmp_path / "image.png", width, height)
    np.testing.assert_allclose(load_image(path, preprocessing), timms(path, preprocessing), atol=1e-6)


@pytest.mark.parametrize("size", [(3, 96, 128), (3, 128, 96), (3, 8, 8), (3, 7, 5), (3, 33, 32), (3, 1, 1)])
@pytest.mark.parametrize(("width", "height"), [(100, 77), (64, 200), (5, 5)])
def test_equals_timm_on_other_input_sizes(tmp_path: Path, size: tuple[int, int, int], width: int, height: int) -> None:
    preprocessing = Preprocessing(input_size=size)
    path = draw(tmp_path / "image.png", width, height)
    ours = load_image(path, preprocessing)
    assert ours.shape == size
    np.testing.assert_allclose(ours, timms(path, preprocessing), atol=1e-6)


def test_an_image_smaller_than_the_crop_is_padded_as_torchvision_does(tmp_path: Path) -> None:
    preprocessing = Preprocessing(input_size=(3, 32, 32), crop_pct=1.3)
    path = draw(tmp_path / "image.png", 40, 41)
    np.testing.assert_allclose(load_image(path, preprocessing), timms(path, preprocessing), atol=1e-6)


def test_one_channel_is_grayscale(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "RGBA"):
        path = draw(tmp_path / f"{mode}.png", 20, 30, mode)
        image = load_image(path, GRAY)
        assert image.shape == (1, 8, 8)
        np.testing.assert_allclose(image, timms(path, GRAY), atol=1e-6)


def test_an_image_of_the_input_size_is_only_normalised(tmp_path: Path) -> None:
    path = draw(tmp_path / "digit.png", 8, 8, "L")
    with Image.open(path) as image:
        expected = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(load_image(path, GRAY)[0], expected, atol=1e-6)


def test_the_choice_is_sorted_spread_and_repeatable(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/2.PNG", "a/1.png", "c.jpg", "b/.hidden.png", ".cache/1.png", "notes.txt"):
        if not name.endswith(".txt"):
            draw(tmp_path / name, 8, 8, "L")
        else:
            (tmp_path / name).write_text("no image")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/1.png", "a/2.PNG", "b/1.png", "c.jpg"]
    images = load_images(tmp_path, GRAY, limit=2)
    assert images.shape == (2, 1, 8, 8)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[1], load_image(tmp_path / "b/1.png", GRAY))
    np.testing.assert_array_equal(images, load_images(tmp_path, GRAY, limit=2))
    assert len(load_images(tmp_path, GRAY)) == 4


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole.png", 64, 64).read_bytes()
    for name, content in {"cut.png": whole[:2000], "text.jpg": b"no image", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_images(tmp_path, GRAY)
        (tmp_path / name).unlink()
    assert len(load_images(tmp_path, GRAY)) == 1


@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (1, 20_000)])
def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "strip.png"
    Image.new("L", (width, height)).save(path)
    assert path.stat().st_size < 200
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=rf"strip\.png is too narrow: {height}x{width} would be") as caught:
            load_image(path, Preprocessing())
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_ordinary_images_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = draw(tmp_path / "narrow.png", 400, 2)
    assert load_image(narrow, Preprocessing()).shape == (3, 224, 224)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 256 * 256)
    large = draw(tmp_path / "large.png", 300, 300)
    np.testing.assert_allclose(load_image(large, Preprocessing()), timms(large, Preprocessing()), atol=1e-6)
    with pytest.raises(InputError, match="too narrow"):
        load_image(narrow, Preprocessing())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(narrow, Preprocessing()).shape == (3, 224, 224)


def test_sixteen_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png has more than 8 bits"):
        load_images(tmp_path, GRAY)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no image"):
        load_images(tmp_path, GRAY)
    with pytest.raises(InputError, match="does not exist"):
        load_images(tmp_path / "none", GRAY)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        load_images(tmp_path / "file", GRAY)
    with pytest.raises(InputError, match="limit"):
        load_images(tmp_path, GRAY, limit=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_size": (4, 8, 8)}, "not 4"),
        ({"mean": (0.5, 0.5, 0.5)}, "as many means"),
        ({"std": (0.0,)}, "positive"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 9.0}, "crop_pct"),
        ({"interpolation": "random"}, "random"),
    ],
)
def test_preprocessing_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    draw(tmp_path / "image.png", 8, 8)
    with pytest.raises(InputError) as caught:
        load_images(tmp_path, replace(GRAY, **changes))
    assert said in str(caught.value)
