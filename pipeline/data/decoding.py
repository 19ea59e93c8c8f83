"""Decodes an image file and brings it into the form that networks see.

Delivered beside predict.py too, so that a device decodes as training does; needs numpy and Pillow alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow detects the format by the content, not by the suffix, and tries no other decoder on untrusted files
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
_READ = "JPEG, PNG, WebP, BMP, TIFF or PPM"
# what else is found under the name of an image, by its first bytes; the first match counts
_CONVERT = "convert it to JPEG or PNG, for example with ImageMagick"
_OTHERS = {
    rb".{4}ftyp.{0,24}avi[fs]": ("an AVIF file", _CONVERT),
    rb".{4}ftyp(hei|hev|mif1|msf1)": ("a HEIC file", _CONVERT),
    rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3": ("a video", "take the wanted frames out of it as JPEG or PNG"),
    rb"GIF8": ("a GIF file", _CONVERT),
    rb"\xff\x0a|.{4}JXL ": ("a JPEG XL file", _CONVERT),
    rb".{4}jP  |\xff\x4f\xff\x51": ("a JPEG 2000 file", _CONVERT),
    rb"8BPS": ("a Photoshop file", _CONVERT),
    rb"\x00\x00[\x01\x02]\x00": ("an icon", _CONVERT),
    rb"%PDF": ("a PDF file", _CONVERT),
    rb"%!PS": ("a PostScript file", _CONVERT),
    rb"\s*(<\?xml[^>]*>\s*)?<svg": ("an SVG drawing", _CONVERT),
    rb"(?i)\s*<(!doctype html|html)": ("a saved web page", "download the file behind its link"),
    rb"version https://git-lfs": ("a pointer of Git LFS", "run `git lfs pull`"),
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!": ("an archive", "unpack it"),
}
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# about odd metadata and large images: what matters ends in an error below
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A file that cannot be used; the message is one sentence that begins with its path."""


def read_pixels(
    path: str | Path, *, image_size: Sequence[int], channels: int, resize: str, interpolation: str
) -> NDArray[np.uint8]:
    """Decode an image file to the pixels of :func:`pixels_of`; errors as of :func:`decode`."""
    # twice the size, from which the antialiased resize makes the same pixels but for rounding: 0.3 of 255 on average
    image = decode(path, (2 * image_size[1], 2 * image_size[0]))
    return pixels_of(image, image_size=image_size, channels=channels, resize=resize, interpolation=interpolation)


def pixels_of(
    image: Image.Image, *, image_size: Sequence[int], channels: int, resize: str, interpolation: str
) -> NDArray[np.uint8]:
    """An RGB image in the form that networks see: uint8 [height, width, channels].

    Args:
        image_size: height and width, pixels.
        channels: 3 for RGB, 1 for grey.
        resize: squash, crop or letterbox.
        interpolation: bilinear or bicubic.
    """
    (height, width), method = image_size, Image.Resampling[interpolation.upper()]
    image = image.convert(_MODES[channels])
    if resize == "squash":
        image = image.resize((width, height), method)
    elif resize == "crop":
        image = ImageOps.fit(image, (width, height), method)
    else:
        image = ImageOps.pad(image, (width, height), method, color=0)
    # a writable copy, because torch warns about read-only arrays
    return np.array(image).reshape(height, width, channels)


def decode(path: str | Path, least: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image file to RGB, upright by its EXIF orientation; 16-bit channels keep their upper 8 bits.

    The alpha channel is dropped and the colours stay, as in torchvision's ImageFolder.

    Args:
        least: width and height that are needed, in pixels; a large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size,
            which takes a fraction of the time, but not below these.

    Raises:
        ImageError: the file is unreadable, empty, damaged, of another format, above 64 megapixels, or contains floats.
    """
    path = Path(path)
    try:
        if (problem := file_problem(path)) is not None:
            raise ImageError(problem)
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height} pixels, more than")
            orientation = _orientation(image)
            if least is not None:
                image.draft(None, least[::-1] if orientation in _ON_ITS_SIDE else least)
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            upright = _upper_8_bits(upright, path)
            # by way of RGBA, because Pillow warns when it converts a palette with transparency directly
            return (upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB")
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow raises from 179 megapixels on, before the size is known
        raise _too_large(path, "more than") from None
    except Exception as error:  # decoders raise errors of all types on damaged bytes
        raise ImageError(f"{path} {_cause(path, error)}") from None


def file_problem(path: Path) -> str | None:
    """One sentence about a path that is there but leads to no file, as a broken link; else None. Opens nothing."""
    if path.is_file():
        return None
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {str(path.readlink())!a}, which is missing; restore that file or remove the link"
    return f"{path} is no regular file; remove it" if path.exists() else None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, if the block is damaged, because the pixels need not be."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata of cameras is damaged in every way
        return 1


def _upper_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Reduce 16-bit grey images to 8 bits; Pillow would clip them at 255. It reduces 16-bit colours by itself."""
    if image.mode == "F":
        raise ImageError(f"{path} holds floats of an unknown range; convert it to 8 bits per channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ImageError(f"{path} has more than 16 bits per channel; convert it to 8")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(f"{path} has {size} {MAX_PIXELS / 1e6:.0f} megapixels; scale it down or remove it")


def _cause(path: Path, error: Exception) -> str:
    """Why a file cannot be decoded, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); make it readable or remove it"
    with path.open("rb") as file:
        start = file.read(256)
    if isinstance(error, UnidentifiedImageError):
        for pattern, (what, remedy) in _OTHERS.items():
            if re.match(pattern, start, re.DOTALL):
                return f"is {what}, not {_READ}; {remedy}"
        reason = f"it is no {_READ} file"
    else:
        reason = ascii(str(error))[1:-1][:200] or type(error).__name__  # without control characters
    return f"cannot be decoded ({reason if start else 'it is empty'}); replace or remove the file"
