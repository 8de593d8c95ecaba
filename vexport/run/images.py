"""From a folder of image files to a network's input.

The steps are those of the usual ImageNet evaluation (torchvision's Resize and CenterCrop as timm sets them up): resize
so that the crop is `crop_pct` of the shorter side, crop the centre, normalise. EXIF orientation is ignored there, and
here.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vexport.artifacts import Preprocessing
from vexport.errors import InputError
from vexport.run.runner import Array

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {1: "L", 3: "RGB"}  # by channels
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What Pillow raises on damaged files, by format.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def load_images(folder: Path, preprocessing: Preprocessing, limit: int = 16) -> Array:
    """Load images of a folder and its subfolders.

    Args:
        folder: Where to look.
        preprocessing: How an image becomes the network's input.
        limit: Load at most so many, spread evenly over the sorted paths, so that class folders all get their share.

    Returns:
        float32 (N, C, H, W).

    Raises:
        InputError: there is no such folder, no image in it, one is damaged, or the preprocessing makes no sense.
    """
    require_sound(preprocessing)
    if limit < 1:
        raise InputError(f"{limit} images are no images", hint="give a limit of at least 1")
    return np.stack([load_image(path, preprocessing) for path in choose_images(folder, limit)])


def choose_images(folder: Path, limit: int) -> list[Path]:
    """Which images `load_images` takes: at most so many, spread evenly over the sorted paths.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    found = find_images(folder)
    count = min(limit, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def find_images(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, sorted by path; hidden ones are left out.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    require_folder(folder)
    found = list_images(folder)
    if not found:
        raise InputError(
            f"there is no image in {folder}", hint=f"images end in {' '.join(sorted(SUFFIXES))}; subfolders count"
        )
    return found


def require_folder(folder: Path) -> None:
    """Refuse a path at which there is no folder.

    Raises:
        InputError: it is missing, or a file.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"the image folder {folder} {what}", hint="give a folder of images")


def list_images(folder: Path) -> list[Path]:
    """As `find_images`; an empty list where there is none.

    Raises:
        InputError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}", hint="check its permissions") from error

    found = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if is_image(name)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image; a hidden one's is not."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def load_image(path: Path, preprocessing: Preprocessing) -> Array:
    """Load one image: float32 (C, H, W).

    Raises:
        InputError: it is damaged, too large, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                # Converted to 8 bits, Pillow would clip it to white.
                raise InputError(
                    f"the image {path} has more than 8 bits per channel", hint="convert it to an 8-bit PNG"
                )
            _require_fit(path, image, preprocessing)
            pixels = image.convert(MODES[preprocessing.input_size[0]])
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f"the image {path} cannot be read", details=[str(error)[:200]], hint="remove it or copy it again"
        ) from error
    return prepare(pixels, preprocessing)


def _require_fit(path: Path, image: Image.Image, preprocessing: Preprocessing) -> None:
    """Refuse a narrow strip whose shorter side would be blown up so far that the longer one fills the memory."""
    height, width = resized_size(image.height, image.width, preprocessing)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > max(most, image.height * image.width):
        raise InputError(
            f"the image {path} is too narrow: {image.height}x{image.width} would be resized to {height}x{width}",
            hint="crop it or remove it",
        )


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Array:
    """Resize, crop and normalise a decoded image (mode L or RGB): float32 (C, H, W)."""
    _, height, width = preprocessing.input_size
    new_height, new_width = resized_size(image.height, image.width, preprocessing)
    resized = image.resize((new_width, new_height), FILTERS[preprocessing.interpolation])
    top, left = _crop_offset(new_height, height), _crop_offset(new_width, width)
    cropped = resized.crop((left, top, left + width, top + height))  # outside the image Pillow fills with 0
    pixels_HWC = np.asarray(cropped, dtype=np.float32).reshape(height, width, -1) / np.float32(255)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    return np.ascontiguousarray(((pixels_HWC - mean) / std).transpose(2, 0, 1))


def resized_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of an image before the crop. The roundings are torchvision's and timm's."""
    _, crop_height, crop_width = preprocessing.input_size
    scale_height = math.floor(crop_height / preprocessing.crop_pct)
    scale_width = math.floor(crop_width / preprocessing.crop_pct)
    if scale_height == scale_width:
        short, long = min(height, width), max(height, width)
        new_long = int(scale_height * long / short)
        return (scale_height, new_long) if height <= width else (new_long, scale_height)
    ratio = min(height / scale_height, width / scale_width)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def describe_preparation(preprocessing: Preprocessing) -> str:
    """The steps in words, as `shorter side to 256 (bicubic), centre 224x224 (crop 0.875)`."""
    _, height, width = preprocessing.input_size
    scaled = [math.floor(side / preprocessing.crop_pct) for side in (height, width)]
    target = f"shorter side to {scaled[0]}" if scaled[0] == scaled[1] else f"to cover {scaled[0]}x{scaled[1]}"
    return f"{target} ({preprocessing.interpolation}), centre {height}x{width} (crop {preprocessing.crop_pct:g})"


def _crop_offset(side: int, crop: int) -> int:
    """Where the centre crop begins; below 0 where the image is the smaller one."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def require_sound(preprocessing: Preprocessing) -> None:
    """Refuse preprocessing that no image survives.

    Raises:
        InputError: with every reason.
    """
    channels, height, width = preprocessing.input_size
    problems = []
    if channels not in MODES:
        problems.append(f"an image has 1 or 3 channels, not {channels}")
    if not len(preprocessing.mean) == len(preprocessing.std) == channels:
        problems.append(f"{channels} channels need as many means and deviations")
    if not all(value > 0 for value in preprocessing.std):
        problems.append("deviations are positive")
    if height < 1 or width < 1 or not 0 < preprocessing.crop_pct <= min(height, width):
        problems.append(f"{height}x{width} with crop_pct {preprocessing.crop_pct} leaves no image")
    if preprocessing.interpolation not in FILTERS:
        problems.append(f"interpolation '{preprocessing.interpolation}' is none of {', '.join(FILTERS)}")
    if problems:
        raise InputError(
            "images cannot be prepared like this", details=problems, hint="correct the checkpoint's preprocessing"
        )
