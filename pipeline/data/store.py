"""The store of a data set: its splits and a card, in one of two forms.

Packed: every image as uint8 RGB at one size, ``<split>_images.npy`` [N, S, S, 3], memory-mapped when read. Files: a
manifest, ``<split>_files.parquet`` with path and content hash of each image, which stays where it is and is decoded
when it is needed. Both have ``<split>_labels.npy`` int64 [N]; ``data.json`` is the card. Neither form needs the data
set in memory to be written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from pipeline.config import DataParams, checked
from pipeline.data.image_files import resize
from pipeline.data.sources import SPLITS, Source, SourceSplit
from pipeline.errors import DataError, brief
from pipeline.store.atomic import atomic_file, atomic_folder
from pipeline.store.memory import host_memory
from pipeline.store.space import require_space
from pipeline.store.tables import read_json, sha256_file, write_json

CARD = "data.json"
_MANIFEST_BYTES = 512  # of an image's path and hash, which are compressed
_CHUNK_BYTES = 2**23  # of uint8 pixels held at once; statistics take eight times as much


_Name = Annotated[str, Field(max_length=1000)]


class _Counts(BaseModel):
    train: Annotated[int, Field(ge=0)]
    val: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=0)]


class _Card(BaseModel):
    """What the readers of a card take for granted."""

    name: _Name
    class_names: Annotated[list[_Name], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1, le=1024)]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    counts: _Counts
    train_class_counts: list[int]
    source: _Name
    licence: _Name | None
    fingerprint: _Name


@dataclass(frozen=True)
class PackedSplit:
    """uint8 images [N, S, S, 3] (memory-mapped) and int64 labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FileSplit:
    """Paths of N image files and int64 labels [N]."""

    paths: Sequence[str]
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
        bad_list: where to list the images that cannot be used, one sentence a line, if there are several; a list of
            an earlier run is removed.

    Raises:
        DataError: images cannot be decoded.
        SpaceError: the disk cannot hold the store.
    """
    size = params.image_size
    total = sum(len(indices) for _, indices in members.values())
    packed = _is_packed(source, params.storage, total * size * size * 3)
    problems = name_problems_of(source)
    if bad_list is not None and bad_list.exists():
        bad_list.unlink()
    needed = total * (size * size * 3 if packed else _MANIFEST_BYTES) + 8 * total
    remedy = "free space, lower data.image_size, or set data.storage to files" if packed else "free space there"
    require_space(folder, needed, f"the {'packed images' if packed else 'lists of images'}", remedy, output=needed)
    with atomic_folder(folder) as temporary:
        sums = {}
        for name in SPLITS:
            origin, indices = members[name]
            write = _pack if packed else _list_files
            sums[name] = write(temporary, name, source.splits[origin], indices, size, problems, on_images)
        check_all_usable(problems, total, bad_list)
        mean, std = sums["train"].mean(), sums["train"].std()
        if params.std is None and min(std) < 1e-4:
            raise DataError("all training images have the same value in one channel; check the images, or set data.std")
        card = {
            "schema": 1,
            "name": params.name,
            "storage": "packed" if packed else "files",
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


def name_problems_of(source: Source) -> list[str]:
    """One sentence for each file of the source that cannot be used because of its name."""
    return [problem for split in source.splits.values() for problem in split.problems]


def check_all_usable(problems: Sequence[str], total: int, bad_list: Path | None) -> None:
    """Refuse images that cannot be used.

    Args:
        problems: one sentence for each of them.
        total: images that were looked at.
        bad_list: as for :func:`write_store`.

    Raises:
        DataError: there are problems.
    """
    if not problems:
        return
    problems = sorted(problems)
    if len(problems) == 1 or bad_list is None:
        raise DataError(problems[0])
    try:
        with atomic_file(bad_list) as temporary:
            temporary.write_text("\n".join(problems) + "\n", encoding="utf-8")
        listed = f"all listed in {bad_list}"
    except OSError as error:  # what is wrong with the images matters more than that no list of them can be written
        listed = f"not listed because {bad_list} cannot be written ({error.strerror})"
    raise DataError(f"{len(problems)} of {total} images cannot be used, {listed}, the first: {problems[0]}")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a store.

    Raises:
        DataError: it is missing, damaged or not one.
    """
    return checked(_Card, read_json(folder / CARD), folder / CARD, "run `dvc repro -f prepare`")


def preprocessing(card: Mapping[str, Any]) -> dict[str, Any]:
    """How an image becomes the network's input, for devices: what prepare and the loader do, in words and numbers."""
    return {
        "schema": 1,
        "image_size": card["image_size"],
        "steps": [
            "turn upright by EXIF orientation, keep the upper 8 of 16 bits, convert to RGB without transparency",
            "resize to image_size x image_size, Pillow bilinear with antialiasing, aspect ratio not kept",
            "divide by 255",
            "subtract mean and divide by std, per channel",
            "float32, channels first, one image per row: [N, 3, image_size, image_size]",
        ],
        "mean": list(card["mean"]),
        "std": list(card["std"]),
    }


def read_split(folder: Path, name: str) -> PackedSplit | FileSplit:
    """One split of a store.

    Raises:
        DataError: a file is missing or damaged, or a label is not one of a class.
    """
    split: PackedSplit | FileSplit
    try:
        labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False)
        if (folder / f"{name}_images.npy").exists():
            split = PackedSplit(np.load(folder / f"{name}_images.npy", mmap_mode="r", allow_pickle=False), labels)
            count = len(split.images)
        else:
            table = pq.read_table(folder / f"{name}_files.parquet", columns=["path"], memory_map=True)
            split = FileSplit(table["path"].combine_chunks(), labels)
            count = len(split.paths)
    except Exception as error:  # numpy and pyarrow fail at damaged bytes in many ways
        raise DataError(f"{folder} has no usable {name} split ({brief(error)}); run `dvc repro -f prepare`") from None
    card = read_card(folder)
    classes, size = len(card["class_names"]), card["image_size"]
    _check_arrays(folder, name, split, size)
    # a GPU would only say that an assertion failed, in a later step
    if len(labels) != count or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise DataError(
            f"{folder / name}_labels.npy does not give each of {count} images one of {classes} classes; "
            "run `dvc repro -f prepare`"
        )
    return split


def _check_arrays(folder: Path, name: str, split: PackedSplit | FileSplit, size: int) -> None:
    """Refuse what is no array of labels, pixels or paths, of which numpy and torch would say so much later.

    Raises:
        DataError: as said.
    """
    remedy = "run `dvc repro -f prepare`"
    if split.labels.dtype.kind not in "iu" or split.labels.ndim != 1:
        raise DataError(
            f"{folder / name}_labels.npy holds {split.labels.dtype} {list(split.labels.shape)}, no labels; {remedy}"
        )
    if isinstance(split, PackedSplit):
        if split.images.dtype != np.uint8 or split.images.shape[1:] != (size, size, 3):
            raise DataError(
                f"{folder / name}_images.npy holds {split.images.dtype} {list(split.images.shape)}, no images of "
                f"{size} x {size} pixels; {remedy}"
            )
        return
    paths: Any = split.paths
    if not pa.types.is_string(paths.type) or paths.null_count or not _are_paths(paths):
        raise DataError(f"{folder / name}_files.parquet does not give every image a path; {remedy}")


def _are_paths(paths: Any) -> bool:
    """Whether a column of text is UTF-8 throughout, and no path has a character that prepare refuses."""
    try:
        paths.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return not pc.any(pc.match_substring_regex(paths, r"[\x00-\x1f\x7f]")).as_py()


def _is_packed(source: Source, storage: str, packed_bytes: int) -> bool:
    has_files = all(split.paths is not None for split in source.splits.values())
    if storage == "files" and not has_files:
        raise DataError("data.storage files is for data sets of image files, which this one is not; set it to auto")
    if storage != "auto" or not has_files:
        return storage != "files"
    return packed_bytes <= host_memory() / 4


@dataclass
class _Sums:
    """Exact sums of the values and squares of each channel; integers, so the order of the images does not matter."""

    pixels: int = 0
    values: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    squares: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))

    def add(self, image: NDArray[np.uint8]) -> None:
        flat = image.reshape(-1, 3).astype(np.int64)
        self.pixels += len(flat)
        self.values += flat.sum(axis=0)
        self.squares += np.square(flat).sum(axis=0)

    def mean(self) -> tuple[float, ...]:
        """Per channel, on the scale [0, 1]."""
        return tuple(float(value) for value in (self.values / max(self.pixels, 1) / 255).round(6))

    def std(self) -> tuple[float, ...]:
        """Per channel, on the scale [0, 1]."""
        count = max(self.pixels, 1)
        variance = np.maximum(self.squares / count - np.square(self.values / count), 0)
        return tuple(float(value) for value in (np.sqrt(variance) / 255).round(6))


def _pack(
    folder: Path,
    name: str,
    split: SourceSplit,
    indices: NDArray[np.int64],
    size: int,
    problems: list[str],
    on_images: Callable[[int], None],
) -> _Sums:
    """Pack one split. An image that cannot be used is added to ``problems`` and left black."""
    sums = _Sums()
    # not through a memory map: on a full disk that is killed by SIGBUS, where writing raises an error
    with (folder / f"{name}_images.npy").open("wb") as file:
        _write_header(file, np.dtype(np.uint8), (len(indices), size, size, 3))
        for image in _decoded(split, indices, size, problems, on_images):
            file.write(image.data)
            sums.add(image)
    _write_labels(folder, name, split.labels[indices])
    return sums


def _list_files(
    folder: Path,
    name: str,
    split: SourceSplit,
    indices: NDArray[np.int64],
    size: int,
    problems: list[str],
    on_images: Callable[[int], None],
) -> _Sums:
    """Write the manifest of one split. Every file is decoded once, so that no bad one is left for training."""
    sums = _Sums()
    for image in _decoded(split, indices, size, problems, on_images):
        sums.add(image)
    assert split.paths is not None  # noqa: S101  the form of the store was chosen by it
    paths = [split.paths[index] for index in indices.tolist()]
    if not problems:
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(sha256_file, paths))
        pq.write_table(
            pa.table({"path": [str(path) for path in paths], "sha256": hashes}), folder / f"{name}_files.parquet"
        )
    _write_labels(folder, name, split.labels[indices])
    return sums


def _write_labels(folder: Path, name: str, labels: NDArray[np.int64]) -> None:
    # numpy's own save does not say why it failed, such as that the disk is full
    with (folder / f"{name}_labels.npy").open("wb") as file:
        _write_header(file, labels.dtype, labels.shape)
        file.write(labels.data)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _decoded(
    split: SourceSplit,
    indices: NDArray[np.int64],
    size: int,
    problems: list[str],
    on_images: Callable[[int], None],
) -> Iterator[NDArray[np.uint8]]:
    """The images in order as uint8 [S, S, 3], decoded by threads a chunk at a time."""

    def read(index: int) -> NDArray[np.uint8]:
        try:
            return np.asarray(resize(split.read(index), size))
        except DataError as error:
            problems.append(str(error))
            return np.zeros((size, size, 3), dtype=np.uint8)

    count = _images_per_chunk(size)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), count):
            chunk = indices[start : start + count].tolist()
            yield from pool.map(read, chunk)
            on_images(len(chunk))


def _class_counts(source: Source, members: dict[str, tuple[str, NDArray[np.int64]]]) -> list[int]:
    origin, indices = members["train"]
    counts: list[int] = np.bincount(source.splits[origin].labels[indices], minlength=len(source.class_names)).tolist()
    return counts


def _images_per_chunk(size: int) -> int:
    return max(1, _CHUNK_BYTES // (3 * size * size))


def _fingerprint(folder: Path, card: dict[str, Any]) -> str:
    """Hash of all that training sees: pixels or files, labels, class names and normalisation."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    for path in sorted(folder.glob("*.parquet")):
        # what is in the files, not where they lie
        hashes = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
        digest.update(f"{path.name} {' '.join(hashes)}\n".encode())
    digest.update(repr([card[key] for key in ("class_names", "image_size", "mean", "std")]).encode())
    return digest.hexdigest()
