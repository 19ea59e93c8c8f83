"""Image files."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes
from bench.fuzz.readers.common import Json
from pipeline.data.image_files import decode_at


def _image_seeds(scratch: Path) -> list[tuple[str, bytes]]:
    ramp = np.arange(24 * 20 * 4, dtype=np.uint8).reshape(24, 20, 4)
    rgba = Image.fromarray(ramp)
    grey16 = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[str, Image.Image, Json]] = [
        ("JPEG", rgba.convert("RGB"), {"exif": exif.tobytes(), "quality": 80}),
        ("JPEG", rgba.convert("CMYK"), {"progressive": True}),
        ("JPEG", rgba.convert("L"), {}),
        ("PNG", rgba, {}),
        ("PNG", rgba.convert("P"), {"transparency": 0}),
        ("PNG", grey16, {}),
        ("PNG", rgba.convert("1"), {}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", rgba.convert("RGB"), {"quality": 50, "exif": exif.tobytes()}),
        ("BMP", rgba.convert("RGB"), {}),
        ("BMP", rgba.convert("P"), {}),
        ("TIFF", rgba.convert("RGB"), {"compression": "tiff_lzw"}),
        ("TIFF", grey16, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", rgba.convert("CMYK"), {"compression": "packbits"}),
        ("TIFF", rgba.convert("F"), {}),
        ("PPM", rgba.convert("RGB"), {}),
    ]
    seeds = []
    for form, image, options in made:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        seeds.append((form.lower(), buffer.getvalue()))
    scratch.mkdir(parents=True, exist_ok=True)
    for form, content in seeds:
        (scratch / f"seed.{form}").write_bytes(content)
        if form != "tiff":  # one of them holds floats, which are refused
            decode_at(scratch / f"seed.{form}", 8)
    return seeds


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write_image(rng: random.Random, seeds: list[tuple[str, bytes]], folder: Path) -> None:
    form, content = rng.choice(seeds)
    if rng.randrange(10) == 0:
        form, content = _bomb(rng)
    elif form == "png" and rng.randrange(2):
        content = _odd_png(content, rng)
    else:
        content = mutate_bytes(content, rng)
    suffix = form if rng.randrange(8) else rng.choice(("png", "jpeg", "tiff", "webp"))  # an ending that lies
    (folder / f"image.{suffix}").write_bytes(content)


def _odd_png(content: bytes, rng: random.Random) -> bytes:
    """Changed within one chunk, with a right checksum: else nearly all changes are found by that alone."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    which = rng.randrange(len(chunks))
    kind, body = chunks[which]
    if kind == b"IDAT" and rng.randrange(2):
        body = zlib.compress(mutate_bytes(zlib.decompress(body), rng))
    else:
        body = mutate_bytes(body, rng)
    chunks[which] = (kind, body)
    if rng.randrange(4) == 0:
        chunks.insert(
            1, (rng.choice((b"iCCP", b"zTXt", b"eXIf", b"acTL", b"tRNS", b"iTXt")), mutate_bytes(b"a\0\0b", rng))
        )
    return content[:8] + b"".join(_png_chunk(*chunk) for chunk in chunks)


_SIDES = (8001, 10_000, 13_000, 20_000, 65_535, 2**31 - 1)


def _bomb(rng: random.Random) -> tuple[str, bytes]:
    """A small file that says, or holds, far more pixels or bytes than it has."""
    width, height = rng.choice(_SIDES), rng.choice((1, 64, *_SIDES))
    match rng.randrange(6):
        case 0:
            depth, colour = rng.choice(((8, 2), (8, 0), (16, 6), (1, 0), (8, 3)))
            head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.randrange(2))
            body = zlib.compress(b"\x00" * rng.choice((10, 1 << 20)))
            return "png", b"\x89PNG\r\n\x1a\n" + b"".join(
                _png_chunk(*part) for part in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
            )
        case 1:
            return (
                "ppm",
                f"P{rng.choice((5, 6, 4, 3))}\n{width} {height}\n{rng.choice((255, 65535))}\n".encode() + b"\x00" * 64,
            )
        case 2:
            header = struct.pack("<IiiHHIIiiII", 40, width % 2**31, height % 2**31, 1, 24, 0, 0, 0, 0, 0, 0)
            return "bmp", b"BM" + struct.pack("<IHHI", 64, 0, 0, 54) + header + b"\x00" * 64
        case 3:
            head = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, height % 65536, width % 65536, 3)
            return "jpeg", head + b"\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"
        case 4:  # text that unpacks to 64 MiB beside an image of one pixel
            head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
            text = b"a\0\0" + zlib.compress(b"x" * (1 << 26), 1)
            return "png", b"\x89PNG\r\n\x1a\n" + b"".join(
                _png_chunk(*part)
                for part in (
                    (b"IHDR", head),
                    (rng.choice((b"zTXt", b"iCCP")), text),
                    (b"IDAT", zlib.compress(b"\0\0")),
                    (b"IEND", b""),
                )
            )
        case _:  # directories of a TIFF that name each other, with sides of 32 bits
            tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, rng.choice((1, 5, 8, 7)))]
            tags += [
                (262, 3, 1, 1),
                (273, 4, 1, 8),
                (277, 3, 1, rng.choice((1, 3, 255))),
                (278, 4, 1, height),
                (279, 4, 1, 64),
            ]
            directory = struct.pack("<H", len(tags)) + b"".join(
                struct.pack("<HHII", tag, kind, count, value % 2**32) for tag, kind, count, value in tags
            )
            return "tiff", b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8) + b"\x00" * 64


def _read_image(folder: Path, seeds: Any) -> None:
    (path,) = (folder / "in").iterdir()
    found = decode_at(path, 8)
    assert found.shape == (8, 8, 3), "an image of another shape"
    assert found.dtype == np.uint8, "an image of another type"


TARGET = Target("image", "image file", _image_seeds, _write_image, _read_image)
