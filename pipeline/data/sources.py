"""Where images come from. A source gives every image as a Pillow RGB image with its label, split by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import DataParams
from pipeline.data.image_files import IMAGE_SUFFIXES, decode, list_images, name_problems, subfolders
from pipeline.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceSplit:
    """One split as published.

    Attributes:
        labels: int64 [N].
        read: decodes image i; safe to call from several threads.
        paths: of the N files, where each image is one.
        problems: one sentence for each file that cannot be used, as far as its name tells.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image]
    paths: Sequence[Path] | None = None
    problems: Sequence[str] = ()


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
        case "tiny-imagenet":
            return _tiny_imagenet(Path(params.root))
        case "imagenet":
            return _imagenet(Path(params.root))
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


def _tiny_imagenet(root: Path) -> Source:
    """The official layout. Its val split, the only labelled one beside train, is the test split here.

    The folders of train/ are the classes; wnids.txt, which repeats them and is cut short in a copy in circulation, is
    not read. That none is missing is seen in the annotations of val/.
    """
    wnids = _class_names(_folder(root, "train"))
    words = dict(line.split("\t", 1) for line in _lines(root, "words.txt") if "\t" in line)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = [list_images(_folder(root, f"train/{wnid}/images")) for wnid in wnids]
    answers = [line.split("\t")[:2] for line in _lines(root, "val/val_annotations.txt")]
    unknown = [name for name, *wnid in answers if not wnid or wnid[0] not in label_of]
    if unknown:
        raise DataError(
            f"{root / 'val/val_annotations.txt'} gives {unknown[0]} no class that train/ has; unpack the data set anew"
        )
    test = [[root / "val/images" / name for name, wnid in answers if wnid == own] for own in wnids]
    # some classes share their first word
    names = [f"{words.get(wnid, wnid).split(',')[0]} ({wnid})" for wnid in wnids]
    return Source(
        tuple(names),
        {"train": _from_files(root / "train", train, names), "test": _from_files(root / "val", test, names)},
        origin=f"Tiny ImageNet in folder {root.name}; its validation split is the test split",
        licence="ImageNet terms of access: non-commercial research and education",
    )


def _imagenet(root: Path) -> Source:
    """train/<wnid>/ and val/<wnid>/; the official val split, whose labels are public, is the test split here."""
    names = _class_names(_folder(root, "train"))
    if not subfolders(_folder(root, "val")):
        raise DataError(f"{root / 'val'} has no class folders; sort its images into {root / 'val'}/<wnid>/ first")
    splits = {"train": _folder_split(root / "train", names), "test": _folder_split(root / "val", names)}
    return Source(
        names,
        splits,
        origin=f"ImageNet in folder {root.name}; its validation split is the test split",
        licence="ImageNet terms of access: non-commercial research and education",
    )


def _image_folder(root: Path) -> Source:
    names = _class_names(_folder(root, "train"))
    splits = {name: _folder_split(root / name, names) for name in SPLITS if (root / name).is_dir()}
    return Source(names, splits, origin=f"folder {root.name}", licence="that of the images in data.root")


def _folder(root: Path, name: str) -> Path:
    if not root.is_dir():
        raise DataError(f"data.root {root} is not a folder; set it to the folder that holds train/<class>/<image>")
    if not (root / name).is_dir():
        raise DataError(f"{root} has no folder {name}/; put the images there or correct data.root and data.name")
    return root / name


def _lines(root: Path, name: str) -> list[str]:
    try:
        return (root / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{root / name} cannot be read ({reason}); set data.root to the unpacked data set") from None


def _class_names(train: Path) -> tuple[str, ...]:
    names = tuple(subfolders(train))
    if len(names) < 2:
        raise DataError(f"{train} has {len(names)} class folder(s); a classifier needs at least 2")
    by_case: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise DataError(f"{train / ascii(name)} is a class name with characters that cannot be shown; rename it")
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"the classes {other!r} and {name!r} in {train} differ in case only; rename or merge them")
    return names


def _folder_split(folder: Path, class_names: Sequence[str]) -> SourceSplit:
    unknown = sorted(set(subfolders(folder)) - set(class_names))
    if unknown:
        raise DataError(f"{folder / unknown[0]} is a class that train/ does not have; remove it or add it to train/")
    files = [list_images(folder / name) if (folder / name).is_dir() else [] for name in class_names]
    return _from_files(folder, files, class_names)


def _from_files(folder: Path, files: Sequence[Sequence[Path]], class_names: Sequence[str]) -> SourceSplit:
    """A split of image files, given class by class."""
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        more = f" and {len(empty) - 1} other classes" if len(empty) > 1 else ""
        raise DataError(
            f"{folder} holds no image of class {empty[0]!r}{more} ({', '.join(sorted(IMAGE_SUFFIXES))}); add some, or "
            "remove the class everywhere"
        )
    paths = [path for found in files for path in found]
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(found) for found in files])
    problems = [problem for found in files for problem in name_problems(found)]
    return SourceSplit(labels, lambda i: decode(paths[i]), paths, problems)
