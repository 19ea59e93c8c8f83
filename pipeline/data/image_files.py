"""Image files: which there are below a folder, and one of them as an upright RGB image of 8 bits per channel."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError, brief

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# what is inside decides, not the ending; other decoders of Pillow stay out of reach of foreign files
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
# control characters would break the one line that a file has in a message, surrogates are bytes that are no text
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# Pillow's own warning, from 89 megapixels on, would come on top of our sentence
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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


def name_problems(paths: Iterable[Path]) -> list[str]:
    """One sentence for each path that cannot go into a manifest, or that another computer would take for its twin."""
    problems = []
    by_case: dict[str, Path] = {}
    for path in paths:
        if _UNUSABLE.search(str(path)):
            problems.append(f"{str(path)!a} is a name with characters that cannot be shown; rename the file")
            continue
        twin = by_case.setdefault(str(path).casefold(), path)
        if twin is not path:
            problems.append(f"{path} and {twin} differ in case only; rename or remove one of them")
    return problems


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
    """One image file as RGB, turned upright by its EXIF orientation; of 16 bits per channel the upper 8 are kept.

    Transparency is left out, as torchvision's ImageFolder does: the colour below it stays.

    Raises:
        DataError: the file cannot be read, is empty, damaged, of another format, larger than 64 megapixels, or holds
            floats.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels, more than")
            upright = ImageOps.exif_transpose(image)
            return _as_rgb(_upper_8_bits(upright, path))
    except Image.DecompressionBombError:  # Pillow refuses at 179 megapixels, before it tells the size
        raise _too_large(path, "more than") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path} cannot be read ({error.strerror}); make it readable or remove it") from None
        reason = brief(error) if path.stat().st_size else "it is empty"
        raise DataError(f"{path} cannot be decoded ({reason}); replace or remove the file") from None


def decode_at(path: str | Path, size: int) -> NDArray[np.uint8]:
    """One image file as uint8 [size, size, 3]; the rest as for :func:`decode` and :func:`resize`."""
    return np.array(resize(decode(Path(path)), size))  # a writable copy, as torch wants it


def resize(image: Image.Image, size: int) -> Image.Image:
    """The image at ``size`` x ``size`` pixels, bilinear with antialiasing; the aspect ratio is not kept."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path} has {size} {MAX_PIXELS / 1e6:.0f} megapixels; scale it down or remove it")


def _as_rgb(image: Image.Image) -> Image.Image:
    # straight from a palette with transparency Pillow warns, though the colours are the same
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _upper_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey images of 16 bits, which Pillow would cut off at 255; in colour it keeps the upper 8 bits by itself."""
    if image.mode == "F":
        raise DataError(f"{path} holds floats, whose range is not known; convert it to 8 bits per channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{path} has more than 16 bits per channel; convert it to 8")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); allow it or correct data.root") from None
