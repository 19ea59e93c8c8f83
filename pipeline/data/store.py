"""The packed store: every image as uint8 RGB at one size, with labels and a card.

One ``<split>_images.npy`` [N, S, S, 3] and one ``<split>_labels.npy`` int64 [N] per split, memory-mapped when read, so
that neither packing nor reading needs the data set in memory; ``data.json`` is the card.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import atomic_file, atomic_folder, read_json, sha256_file, write_json
from pipeline.config import DataParams
from pipeline.data.sources import SPLITS, Source, SourceSplit
from pipeline.errors import DataError

CARD = "data.json"
_CHUNK_BYTES = 2**23  # of uint8 pixels held at once; statistics take eight times as much


@dataclass(frozen=True)
class PackedSplit:
    """uint8 images [N, S, S, 3] (memory-mapped) and int64 labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def write_store(
    folder: Path,
    source: Source,
    members: dict[str, tuple[str, NDArray[np.int64]]],
    params: DataParams,
    on_images: Callable[[int], None] = lambda count: None,
    bad_list: Path | None = None,
) -> dict[str, Any]:
    """Decode, resize and pack all splits into ``folder`` (replaced as a whole), and return the card.

    Args:
        bad_list: where to list the images that cannot be used, one sentence a line, if there are several.

    Raises:
        DataError: images cannot be decoded, or the disk cannot hold the store.
    """
    size = params.image_size
    total = sum(len(indices) for _, indices in members.values())
    _check_disk(folder, total * size * size * 3)
    with atomic_folder(folder) as temporary:
        problems: list[str] = []
        for name in SPLITS:
            origin, indices = members[name]
            problems += _pack(temporary, name, source.splits[origin], indices, size, on_images)
        _check_all_usable(problems, total, bad_list)
        train = read_split(temporary, "train").images
        mean, std = _channel_statistics(train)
        if params.std is None and min(std) < 1e-4:
            raise DataError("all training images have the same value in one channel; check the images, or set data.std")
        card = {
            "schema": 1,
            "name": params.name,
            "class_names": list(source.class_names),
            "image_size": size,
            "mean": list(params.mean or mean),
            "std": list(params.std or std),
            "counts": {name: len(members[name][1]) for name in SPLITS},
            "train_class_counts": _class_counts(source, members),
            "source": source.origin,
            "licence": source.licence,
        }
        card["fingerprint"] = _fingerprint(temporary, card)
        write_json(temporary / CARD, card)
    return card


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a store."""
    card: dict[str, Any] = read_json(folder / CARD)
    return card


def preprocessing(card: Mapping[str, Any]) -> dict[str, Any]:
    """How an image becomes the network's input, for devices: what prepare and the loader do, in words and numbers."""
    return {
        "schema": 1,
        "image_size": card["image_size"],
        "steps": [
            "turn upright by EXIF orientation, scale 16-bit grey to 8 bits, convert to RGB",
            "resize to image_size x image_size, Pillow bilinear with antialiasing, aspect ratio not kept",
            "divide by 255",
            "subtract mean and divide by std, per channel",
            "float32, channels first, one image per row: [N, 3, image_size, image_size]",
        ],
        "mean": list(card["mean"]),
        "std": list(card["std"]),
    }


def read_split(folder: Path, name: str) -> PackedSplit:
    """One split of a store.

    Raises:
        DataError: a file is missing or damaged.
    """
    images_path, labels_path = folder / f"{name}_images.npy", folder / f"{name}_labels.npy"
    try:
        images = np.load(images_path, mmap_mode="r", allow_pickle=False)
        labels = np.load(labels_path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder} has no usable {name} split ({error}); run `dvc repro prepare`") from None
    return PackedSplit(images, labels)


def _pack(
    folder: Path,
    name: str,
    split: SourceSplit,
    indices: NDArray[np.int64],
    size: int,
    on_images: Callable[[int], None],
) -> list[str]:
    """Pack one split; returns a sentence for each image that cannot be used, and leaves its pixels black."""
    problems: list[str] = []

    def read(index: int) -> NDArray[np.uint8]:
        try:
            return np.asarray(resize(split.read(index), size))
        except DataError as error:
            problems.append(str(error))
            return np.zeros((size, size, 3), dtype=np.uint8)

    packed = np.lib.format.open_memmap(
        folder / f"{name}_images.npy", mode="w+", dtype=np.uint8, shape=(len(indices), size, size, 3)
    )
    with ThreadPoolExecutor() as pool:
        count = _images_per_chunk(size)
        for start in range(0, len(indices), count):
            chunk = indices[start : start + count]
            packed[start : start + len(chunk)] = list(pool.map(read, chunk.tolist()))
            on_images(len(chunk))
    packed.flush()
    np.save(folder / f"{name}_labels.npy", split.labels[indices])
    return problems


def _check_all_usable(problems: list[str], total: int, bad_list: Path | None) -> None:
    if not problems:
        return
    problems.sort()
    if len(problems) == 1 or bad_list is None:
        raise DataError(problems[0])
    with atomic_file(bad_list) as temporary:
        temporary.write_text("\n".join(problems) + "\n", encoding="utf-8")
    raise DataError(
        f"{len(problems)} of {total} images cannot be used, all listed in {bad_list}, the first: {problems[0]}"
    )


def resize(image: Image.Image, size: int) -> Image.Image:
    """The image at ``size`` x ``size`` pixels, bilinear with antialiasing; the aspect ratio is not kept."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale [0, 1]."""
    total, squares = np.zeros(3), np.zeros(3)
    count = _images_per_chunk(images.shape[1])
    for start in range(0, len(images), count):
        chunk = images[start : start + count].reshape(-1, 3) / 255.0
        total += chunk.sum(axis=0)
        squares += np.square(chunk).sum(axis=0)
    pixels = images.size / 3
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple(float(value) for value in mean.round(6)), tuple(float(value) for value in std.round(6))


def _class_counts(source: Source, members: dict[str, tuple[str, NDArray[np.int64]]]) -> list[int]:
    origin, indices = members["train"]
    counts: list[int] = np.bincount(source.splits[origin].labels[indices], minlength=len(source.class_names)).tolist()
    return counts


def _images_per_chunk(size: int) -> int:
    return max(1, _CHUNK_BYTES // (3 * size * size))


def _fingerprint(folder: Path, card: dict[str, Any]) -> str:
    """Hash of all that training sees: pixels, labels, class names and normalisation."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    digest.update(repr([card[key] for key in ("class_names", "image_size", "mean", "std")]).encode())
    return digest.hexdigest()


def _check_disk(folder: Path, needed: int) -> None:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(
            f"the packed images need {needed / 1e9:.1f} GB, but {existing} has {free / 1e9:.1f} GB free; free space or "
            "lower data.image_size"
        )
