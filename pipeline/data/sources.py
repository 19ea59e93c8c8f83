"""Where images come from. A source gives every image as a Pillow RGB image with its label, split by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import DataParams
from pipeline.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceSplit:
    """Labels int64 [N], and a function that decodes image i, safe to call from several threads."""

    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image]


@dataclass(frozen=True)
class Source:
    """A data set as published: class names, the splits it has (train always), and where it is from."""

    class_names: tuple[str, ...]
    splits: dict[str, SourceSplit]
    origin: str
    licence: str


def open_source(params: DataParams) -> Source:
    """The data set that ``data.name`` and ``data.root`` ask for.

    Raises:
        DataError: the folder is missing, has another layout, or the download failed.
    """
    match params.name:
        case "digits":
            return _digits()
        case "cifar10" | "cifar100":
            return _cifar(params.name, Path(params.root))
        case "imagefolder":
            return _image_folder(Path(params.root))


def _digits() -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415  a second of import that other sources need not pay

    digits = load_digits()
    scans = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Source(
        class_names=tuple(str(name) for name in digits.target_names),
        splits={"train": _from_arrays(scans, digits.target)},
        origin="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, 1,797 scans of 8x8 pixels",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
    )


def _cifar(name: str, root: Path) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415  slow import

    data_set = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        parts = {split: data_set(str(root), train=split == "train", download=True) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} could not be downloaded to {root} or failed its checksum ({reason}); put {data_set.filename} from "
            f"{data_set.url} into {root} by hand or set data.root to a folder that has it"
        ) from None
    return Source(
        class_names=tuple(parts["train"].classes),
        splits={split: _from_arrays(part.data, np.asarray(part.targets)) for split, part in parts.items()},
        origin=f"{data_set.url}, checksum verified",
        licence="none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    )


def _from_arrays(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> SourceSplit:
    return SourceSplit(labels.astype(np.int64), lambda i: Image.fromarray(images[i]).convert("RGB"))


def _image_folder(root: Path) -> Source:
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder; set it to the folder that holds train/<class>/<image>")
    train = root / "train"
    if not train.is_dir():
        raise DataError(f"{root} has no folder train/; put the images into {train}/<class>/<image>")
    class_names = tuple(sorted(folder.name for folder in train.iterdir() if folder.is_dir()))
    if len(class_names) < 2:
        raise DataError(f"{train} has {len(class_names)} class folder(s); a classifier needs at least 2")
    for name in class_names:
        if not name.isprintable():
            raise DataError(f"{train / ascii(name)} is a class name with characters that cannot be shown; rename it")
    splits = {name: _folder_split(root / name, class_names) for name in SPLITS if (root / name).is_dir()}
    return Source(class_names, splits, origin=f"folder {root.name}", licence="that of the images in data.root")


def _folder_split(folder: Path, class_names: Sequence[str]) -> SourceSplit:
    unknown = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(class_names))
    if unknown:
        raise DataError(f"{folder / unknown[0]} is a class that train/ does not have; remove it or add it to train/")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove the folder")
    return SourceSplit(np.asarray(labels, dtype=np.int64), lambda i: _decode(paths[i]))


def _decode(path: Path) -> Image.Image:
    """One image file as RGB, turned upright by its EXIF orientation."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits per channel (mode {image.mode}); convert it to 8 bits")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded ({error}); replace or remove the file") from None
