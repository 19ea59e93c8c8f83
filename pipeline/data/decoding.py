"""Decodes an image file and brings it into the form that networks see.

Delivered beside predict.py too, so that a device decodes as training does; needs numpy and Pillow alone.
"""

from __future__ import annotations

import re
import stat
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
    rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\x00": ("a camera's raw file", _CONVERT),
    rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3": ("a video", "take the wanted frames out of it as JPEG or PNG"),
    rb"GIF8": ("a GIF file", _CONVERT),
    rb"\xff\x0a|.{4}JXL ": ("a JPEG XL file", _CONVERT),
    rb".{4}jP  |\xff\x4f\xff\x51": ("a JPEG 2000 file", _CONVERT),
    rb"8BPS": ("a Photoshop file", _CONVERT),
    rb"\x00\x00\x01\x00": ("an icon", _CONVERT),
    rb"%PDF": ("a PDF file", _CONVERT),
    rb"%!PS": ("a PostScript file", _CONVERT),
    rb"\s*(<\?xml[^>]*>\s*)?<svg": ("an SVG drawing", _CONVERT),
    rb"(?i)\s*<(!doctype html|html)": ("a saved web page", "download the file behind its link"),
    rb"version https://git-lfs": ("a pointer of Git LFS", "run `git lfs pull`"),
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!": ("an archive", "unpack it"),
}
_BEGINS_AS_OURS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|II[*+]|MM\x00[*+]|RIFF.{4}WEBP", re.DOTALL)
# would move the cursor or end the line; surrogates are bytes outside of UTF-8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
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
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # tags of TIFF

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
    """Decode an image file to RGB, upright by its EXIF orientation; channels of 12 or 16 bits keep their upper 8.

    The alpha channel is dropped and the colours stay, as in torchvision's ImageFolder.

    Args:
        least: width and height that are needed, in pixels; a large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size,
            which takes a fraction of the time, but not below these.

    Raises:
        ImageError: the file is unreadable, empty, damaged, of another format, above 64 megapixels, or holds floats or
            integers of an unknown range.
    """
    path = Path(path)
    try:
        if (problem := file_problem(path)) is not None:
            raise ImageError(problem)
        # a file, because of a path Pillow maps the file into memory, and then mixes up the pixels of turned TIFF files
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width} x {image.height} pixels, more than")
            orientation = _orientation(image)
            if least is not None:
                image.draft(None, least[::-1] if orientation in _ON_ITS_SIDE else least)
            image.load()  # turns TIFF files, whose size is another one then
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            upright = _upper_8_bits(upright, path)
            # by way of RGBA, because Pillow warns when it converts a palette with transparency directly
            return (upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB")
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:  # Pillow raises from 179 megapixels on, before the size is known
        raise _too_large(path, "more than") from None
    except Exception as error:  # decoders raise errors of all types on damaged bytes
        raise ImageError(f"{shown(path)} {_cause(path, error)}") from None


def shown(path: str | Path) -> str:
    """A path on one line, which every terminal and every UTF-8 file can hold: control characters are escaped."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(path))


def file_problem(path: Path) -> str | None:
    """One sentence about a path that is there but leads to no file, as a broken link; else None. Opens nothing."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return None
        return (
            f"{shown(path)} is a link to {str(path.readlink())!a} ({error.strerror}); restore that or remove the link"
        )
    if stat.S_ISDIR(mode):
        return f"{shown(path)} is a folder; name the images in it"
    return None if stat.S_ISREG(mode) else f"{shown(path)} is no regular file; leave it out"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, if the block is damaged, because the pixels need not be."""
    for key in ("xmp", "XML:com.adobe.xmp"):  # some versions of Pillow take the orientation from XMP instead
        image.info.pop(key, None)
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata of cameras is damaged in every way
        return 1


def _upper_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Reduce grey images of 12 and 16 bits to 8; Pillow would clip them at 255. It reduces 16-bit colours by itself."""
    tags = getattr(image, "tag_v2", {})  # only TIFF files have them
    bits = tags.get(_BITS, (16,))[0]
    if image.mode == "F":
        raise ImageError(f"{shown(path)} holds floats of an unknown range; convert it to 8 bits per channel")
    if tags.get(_PLANES) == 2 and bits == 16:
        raise ImageError(f"{shown(path)} has 16 bits per channel in planes, which Pillow mixes up; convert it to 8")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if bits > 16 or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ImageError(f"{shown(path)} holds integers that are signed or of more than 16 bits; convert it to 8 bits")
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds up to 8 bits
        values = 2**bits - 1 - values
    return Image.fromarray((values >> bits - 8).astype(np.uint8))


def _too_large(path: Path, size: str) -> ImageError:
    return ImageError(f"{shown(path)} has {size} {MAX_PIXELS / 1e6:.0f} megapixels; scale it down or remove it")


def _cause(path: Path, error: Exception) -> str:
    """Why a file cannot be decoded, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        remedy = "correct the path" if isinstance(error, FileNotFoundError) else "make it readable or remove it"
        return f"cannot be read ({error.strerror}); {remedy}"
    with path.open("rb") as file:
        start = file.read(256)
    if isinstance(error, UnidentifiedImageError):
        for pattern, (what, remedy) in _OTHERS.items():
            if re.match(pattern, start, re.DOTALL):
                return f"is {what}, not {_READ}; {remedy}"
        if _BEGINS_AS_OURS.match(start):
            reason = "its header is damaged or of a kind that Pillow does not read"
            return f"cannot be decoded ({reason}); save it again with 8 bits per channel or remove it"
        reason = f"it is no {_READ} file"
    else:
        reason = ascii(str(error))[1:-1][:200] or type(error).__name__  # without control characters
    return f"cannot be decoded ({reason if start else 'it is empty'}); replace or remove the file"
