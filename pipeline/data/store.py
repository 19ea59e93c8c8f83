"""The store of a data set: its splits and the data card ``data.json``, in one of two forms.

Packed: ``<split>_images.npy``, uint8 [N, H, W, C]. Files: ``<split>_files.parquet`` with path and content hash of
each image; the image files stay in place and are decoded during training. Both forms have ``<split>_labels.npy``, int64
[N], and are written without loading the whole data set into memory.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from pipeline.config import DataParams
from pipeline.data.sources import SPLITS, Source, SourceSplit, open_source
from pipeline.data.splits import split
from pipeline.errors import DataError
from pipeline.portable.files import atomic_file, atomic_folder, sha256_file
from pipeline.portable.text import brief
from pipeline.store.documents import DataCard, ImageFormat, NetworkCard, SplitCounts
from pipeline.store.paths import DATA_CARD
from pipeline.store.space import host_memory, require_space

_MANIFEST_BYTES = 512  # per image, for its compressed path and hash
_CHUNK_BYTES = 2**23  # uint8 pixels in memory at once; the statistics need eight times as much

_RESIZING = {
    "squash": "resize to image_size, height and width, without keeping the aspect ratio",
    "crop": "take the largest centre part with the aspect ratio of image_size, and resize it to image_size",
    "letterbox": "resize to fit into image_size with the aspect ratio kept, and centre it on black",
}

OnImages = Callable[[int, int], None]  # images decoded, images in total


@dataclass(frozen=True)
class PackedSplit:
    """uint8 images [N, H, W, C] (memory-mapped) and int64 labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class FileSplit:
    """Paths of N image files and int64 labels [N]."""

    paths: Sequence[str]
    labels: NDArray[np.int64]


def make_store(
    folder: Path, params: DataParams, on_images: OnImages = lambda done, total: None, bad_list: Path | None = None
) -> DataCard:
    """Decode, resize and store all splits of the data set of ``params`` in ``folder``, which is replaced as a whole.

    Args:
        bad_list: file for the list of unusable images, one sentence per line, if there is more than one; a list of an
            earlier run is removed.

    Raises:
        DataError: see :func:`open_source` and :func:`split`; or images cannot be decoded.
        SpaceError: the disk cannot hold the store.
    """
    source = open_source(params)
    members = split(source, params)
    form, classes = ImageFormat.of(params), list(source.class_names)
    total = sum(len(indices) for _, indices in members.values())
    packed = _is_packed(source, params.storage, total * form.bytes)
    if bad_list is not None and bad_list.exists():  # a disk that is read-only refuses to remove even what is not there
        bad_list.unlink()
    needed = total * (form.bytes if packed else _MANIFEST_BYTES) + 8 * total
    remedy = "free space, lower data.image_size, or set data.storage to files" if packed else "free space there"
    require_space(folder, needed, f"the {'packed images' if packed else 'lists of images'}", remedy, output=needed)
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, packed, form, total, on_images, list(source.problems))
        on_images(0, total)
        sums = {name: writer.write(name, source.splits[members[name][0]], members[name][1]) for name in SPLITS}
        refuse_unusable(writer.problems, total, bad_list)
        _warn_of_leaks(writer.digests)
        train = source.splits["train"].labels[members["train"][1]]
        values, squares = sums["train"] / (len(train) * form.height * form.width)
        mean, std = (values / 255).round(6), (np.sqrt(np.maximum(squares - np.square(values), 0)) / 255).round(6)
        if std.min() < 1e-4:
            raise DataError(f"all training images of {params.root} have the same value in one channel; check them")
        return DataCard(
            name=params.name,
            storage="packed" if packed else "files",
            class_names=classes,
            image=form,
            mean=mean.tolist(),
            std=std.tolist(),
            counts=SplitCounts(**{name: len(indices) for name, (_, indices) in members.items()}),
            train_class_counts=np.bincount(train, minlength=len(classes)).tolist(),
            source=source.origin,
            licence=source.licence,
            fingerprint=_fingerprint(temporary, [classes, form.model_dump()]),
        ).write(temporary / DATA_CARD)


def _warn_of_leaks(digests: Mapping[str, NDArray[np.uint64]]) -> None:
    """Say how many images of val and test are in train too, in another file with the same pixels at this size."""
    for name in ("val", "test"):
        if count := int(np.isin(digests[name], digests["train"]).sum()):
            logging.warning(
                "%d of %d images of the split %s are also in train, pixel by pixel, so the accuracy may be overstated",
                count,
                len(digests[name]),
                name,
            )


def refuse_unusable(problems: Sequence[str], total: int, bad_list: Path | None) -> None:
    """Raise DataError if there are ``problems``, one sentence per unusable image; ``bad_list`` as in make_store."""
    if not problems:
        return
    problems = sorted(set(problems))
    if len(problems) == 1 or bad_list is None:
        raise DataError(problems[0])
    try:
        with atomic_file(bad_list) as temporary:
            temporary.write_text("\n".join(problems) + "\n", encoding="utf-8")
        listed = f"all listed in {bad_list}"
    except OSError as error:  # the error about the images is more important than the failed list
        listed = f"not listed because {bad_list} cannot be written ({error.strerror})"
    raise DataError(f"{len(problems)} of {total} images cannot be used, {listed}, the first: {problems[0]}")


def read_card(folder: Path) -> DataCard:
    """Read the card of a store; errors as in :meth:`pipeline.store.documents.Document.read`."""
    return DataCard.read(folder / DATA_CARD)


def preprocessing(card: NetworkCard) -> dict[str, Any]:
    """Describe how an image becomes the input of a network, for devices, in words and numbers."""
    form = card.image
    return {
        "schema": 2,
        **form.of_decoding,
        "steps": [
            "decode; a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, but not below twice image_size",
            "turn upright by EXIF orientation, keep the upper 8 of 12 or 16 bits, convert to RGB without transparency",
            *(["convert to grey: 0.299 R + 0.587 G + 0.114 B"] if form.channels == 1 else []),
            f"{_RESIZING[form.resize]}; Pillow {form.interpolation} with antialiasing",
            "divide by 255",
            "subtract mean and divide by std, per channel",
            f"float32, channels first, one image per row: [N, {form.channels}, {form.height}, {form.width}]",
        ],
        "mean": card.mean,
        "std": card.std,
    }


def read_split(folder: Path, name: str) -> PackedSplit | FileSplit:
    """Open one split of a store.

    Raises:
        DataError: a file is missing or damaged, has the wrong shape or type, or a label is out of range.
    """
    data: PackedSplit | FileSplit
    try:
        labels = np.load(folder / f"{name}_labels.npy", allow_pickle=False)
        if (folder / f"{name}_images.npy").exists():
            data = PackedSplit(np.load(folder / f"{name}_images.npy", mmap_mode="r", allow_pickle=False), labels)
        else:
            table = pq.read_table(folder / f"{name}_files.parquet", columns=["path"], memory_map=True)
            data = FileSplit(table["path"].combine_chunks(), labels)
        problem = _problem_of(data, read_card(folder))
    except DataError:
        raise
    except Exception as error:  # numpy and pyarrow raise many types of errors on damaged bytes
        raise DataError(f"{folder} has no usable {name} split ({brief(error)}); run `dvc repro -f prepare`") from None
    if problem is not None:
        raise DataError(f"{folder / name}{problem}; run `dvc repro -f prepare`")
    return data


def _problem_of(data: PackedSplit | FileSplit, card: DataCard) -> str | None:
    """Check pixels, paths and labels; return None, or the end of the faulty file's name with the reason."""
    labels, form, classes = data.labels, card.image, len(card.class_names)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        return f"_labels.npy holds {labels.dtype} {list(labels.shape)}, no labels"
    if isinstance(data, FileSplit):
        paths: Any = data.paths
        count = len(paths)
        if not pa.types.is_string(paths.type) or paths.null_count or not _are_paths(paths):
            return "_files.parquet does not give every image a path"
    else:
        images = data.images
        count = len(images)
        if images.dtype != np.uint8 or images.shape[1:] != (form.height, form.width, form.channels):
            wanted = f"images of {form.height} x {form.width} pixels and {form.channels} channels"
            return f"_images.npy holds {images.dtype} {list(images.shape)}, no {wanted}"
    if len(labels) != count or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        return f"_labels.npy does not give each of {count} images one of {classes} classes"
    return None


def _are_paths(paths: Any) -> bool:
    """True if a text column is UTF-8 without control characters."""
    try:
        paths.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return not pc.any(pc.match_substring_regex(paths, r"[\x00-\x1f\x7f]")).as_py()


def _is_packed(source: Source, storage: str, packed_bytes: int) -> bool:
    has_files = all(part.paths is not None for part in source.splits.values())
    if storage == "files" and not has_files:
        raise DataError("data.storage is files, but this data set has no image files; set it to auto")
    if storage != "auto" or not has_files:
        return storage != "files"
    return packed_bytes <= host_memory() / 4


@dataclass
class _Writer:
    """Writes splits into a folder; both forms decode every image, so that training meets no unusable one."""

    folder: Path
    packed: bool
    form: ImageFormat
    total: int
    on_images: OnImages
    problems: list[str]  # one sentence per unusable image; its pixels are black
    done: int = 0
    digests: dict[str, NDArray[np.uint64]] = field(default_factory=dict)  # of each split: a hash of each image

    def write(self, name: str, part: SourceSplit, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Write a split; return the sums of the values and of their squares per channel, int64 [2, C]."""
        sums = np.zeros((2, self.form.channels), np.int64)
        self.digests[name] = np.zeros(len(indices), np.uint64)
        images = self._decoded(part, indices, sums, self.digests[name])
        if self.packed:
            shape = len(indices), self.form.height, self.form.width, self.form.channels
            _write_npy(self.folder / f"{name}_images.npy", np.uint8, shape, images)
        else:
            deque(images, maxlen=0)
            assert part.paths is not None  # noqa: S101  only data sets of files have this form
            paths = [part.paths[index] for index in indices.tolist()]
            if not self.problems:
                with ThreadPoolExecutor() as pool:
                    columns = {"path": list(map(str, paths)), "sha256": list(pool.map(sha256_file, paths))}
                pq.write_table(pa.table(columns), self.folder / f"{name}_files.parquet")
        _write_npy(self.folder / f"{name}_labels.npy", np.int64, (len(indices),), [part.labels[indices]])
        return sums

    def _decoded(
        self, part: SourceSplit, indices: NDArray[np.int64], sums: NDArray[np.int64], digests: NDArray[np.uint64]
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode the images in order to uint8 [H, W, C], with threads and in chunks; fill ``sums`` and ``digests``."""

        def read(index: int) -> NDArray[np.uint8]:
            try:
                return part.pixels(index, self.form)
            except DataError as error:
                self.problems.append(str(error))
                return np.zeros((self.form.height, self.form.width, self.form.channels), dtype=np.uint8)

        count = max(1, _CHUNK_BYTES // self.form.bytes)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(indices), count):
                chunk = indices[start : start + count].tolist()
                for number, image in enumerate(pool.map(read, chunk), start):
                    digests[number] = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest())
                    pixels = image.reshape(-1, self.form.channels).astype(np.int64)
                    sums += pixels.sum(axis=0), np.square(pixels).sum(axis=0)
                    yield image
                self.done += len(chunk)
                self.on_images(self.done, self.total)


def _write_npy(path: Path, dtype: DTypeLike, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
    """Write an array in parts. On a full disk, numpy.save raises no error, and a memory map ends in SIGBUS."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(part.data)


def _fingerprint(folder: Path, facts: list[Any]) -> str:
    """Hash the training data: pixels or files, labels and class names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    for path in sorted(folder.glob("*.parquet")):
        # without the paths, which may differ for the same images
        hashes = pq.read_table(path, columns=["sha256"])["sha256"].to_pylist()
        digest.update(f"{path.name} {' '.join(hashes)}\n".encode())
    digest.update(repr(facts).encode())
    return digest.hexdigest()
