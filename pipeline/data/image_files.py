"""Image files: which there are below a folder, and one of them as an upright RGB image of 8 bits per channel."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# what is inside decides, not the ending; other decoders of Pillow stay out of reach of foreign files
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000


def list_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted by path; files with other endings are left out, with one warning.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        folders.sort()
        for name in names:
            path = Path(parent) / name
            (found if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    others = [path for path in others if not path.name.startswith(".")]
    if others:
        logging.warning("%s: %d files with other endings were left out, such as %s", folder, len(others), min(others))
    return sorted(found)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        _unreadable(error)


def decode(path: Path) -> Image.Image:
    """One image file as RGB, turned upright by its EXIF orientation; 16 bits per channel are scaled to 8.

    Raises:
        DataError: the file is empty, damaged, of another format, larger than 64 megapixels, or holds floats.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"{path} has {width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down "
                    "or remove it"
                )
            upright = ImageOps.exif_transpose(image)
            return _scaled_to_8_bits(upright, path).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if path.exists() and path.stat().st_size == 0 else " ".join(str(error).split())
        raise DataError(f"{path} cannot be decoded ({reason}); replace or remove the file") from None


def decode_at(path: str | Path, size: int) -> NDArray[np.uint8]:
    """One image file as uint8 [size, size, 3]; the rest as for :func:`decode` and :func:`resize`."""
    return np.array(resize(decode(Path(path)), size))


def resize(image: Image.Image, size: int) -> Image.Image:
    """The image at ``size`` x ``size`` pixels, bilinear with antialiasing; the aspect ratio is not kept."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def _scaled_to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey images of 16 bits, which Pillow would otherwise cut off at 255."""
    if image.mode == "F":
        raise DataError(f"{path} holds floats, whose range is not known; convert it to 8 bits per channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{path} has more than 16 bits per channel; convert it to 8")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); allow it or correct data.root") from None
