"""List the image files of a folder, decode a file to an upright RGB image, and bring it into the form of networks."""

import logging
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import DataError
from pipeline.portable.text import brief
from pipeline.store.documents import ImageFormat

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
# Pillow detects the format by the content, not by the suffix, and tries no other decoder on untrusted files
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
# control characters would break a message into several lines; surrogates are bytes outside of UTF-8
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

# Pillow warns from 89 megapixels on, in addition to the error below
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def list_images(folder: Path) -> list[Path]:
    """List all image files below ``folder``, sorted by path; skip files with other suffixes, with one warning.

    Raises:
        DataError: a folder cannot be read.
    """
    images, others = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        folders.sort()
        for name in names:
            path = Path(parent) / name
            (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    others = [path for path in others if not path.name.startswith(".")]
    if others:
        logging.warning("%s: skipped %d files without an image suffix, such as %s", folder, len(others), min(others))
    return sorted(images)


def name_problems(paths: Iterable[Path]) -> list[str]:
    """Describe in one sentence each path that has control characters or differs from another path in case only."""
    problems = []
    by_case: dict[str, Path] = {}
    for path in paths:
        if _UNUSABLE.search(str(path)):
            problems.append(f"{str(path)!a} is a file name with characters that cannot be shown; rename the file")
            continue
        other = by_case.setdefault(str(path).casefold(), path)
        if other is not path:
            problems.append(f"{path} and {other} differ in case only; rename or remove one of them")
    return problems


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in ``folder``, sorted. Raises DataError: it cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        _unreadable(error)


def decode(path: Path, least: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to RGB, upright by its EXIF orientation; 16-bit channels keep their upper 8 bits.

    The alpha channel is dropped and the colours stay, as in torchvision's ImageFolder.

    Args:
        least: width and height that are needed, in pixels; a large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size,
            which takes a fraction of the time, but not below these.

    Raises:
        DataError: the file is unreadable, empty, damaged, of another format, above 64 megapixels, or contains floats.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels, more than")
            if least is not None:
                image.draft(None, least[::-1] if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE else least)
            upright = _upper_8_bits(ImageOps.exif_transpose(image), path)
            # by way of RGBA, because Pillow warns when it converts a palette with transparency directly
            return (upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB")
    except Image.DecompressionBombError:  # Pillow raises from 179 megapixels on, before the size is known
        raise _too_large(path, "more than") from None
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path} cannot be read ({error.strerror}); make it readable or remove it") from None
        reason = brief(error) if path.stat().st_size else "it is empty"
        raise DataError(f"{path} cannot be decoded ({reason}); replace or remove the file") from None


def decode_at(path: str | Path, form: ImageFormat) -> NDArray[np.uint8]:
    """Decode an image file to the pixels of :func:`pixels_at`."""
    # twice the size, from which the antialiased resize makes the same pixels but for rounding: 0.3 of 255 on average
    return pixels_at(decode(Path(path), (2 * form.width, 2 * form.height)), form)


def pixels_at(image: Image.Image, form: ImageFormat) -> NDArray[np.uint8]:
    """An RGB image in the form that networks see: uint8 [height, width, channels]; predict.py.txt does the same."""
    image, size = image.convert(_MODES[form.channels]), (form.width, form.height)
    method = Image.Resampling[form.interpolation.upper()]
    match form.resize:
        case "squash":
            image = image.resize(size, method)
        case "crop":
            image = ImageOps.fit(image, size, method)
        case "letterbox":
            image = ImageOps.pad(image, size, method, color=0)
    # a writable copy, because torch warns about read-only arrays
    return np.array(image).reshape(form.height, form.width, form.channels)


def _too_large(path: Path, size: str) -> DataError:
    return DataError(f"{path} has {size} {MAX_PIXELS / 1e6:.0f} megapixels; scale it down or remove it")


def _upper_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Reduce 16-bit grey images to 8 bits; Pillow would clip them at 255. It reduces 16-bit colours by itself."""
    if image.mode == "F":
        raise DataError(f"{path} holds floats of an unknown range; convert it to 8 bits per channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(f"{path} has more than 16 bits per channel; convert it to 8")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable or fix data.root") from None
