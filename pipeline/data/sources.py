"""Data sources: labelled images of published data sets and of folders, in their published splits."""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import DataParams
from pipeline.data.decoding import pixels_of, shown
from pipeline.data.image_files import (
    IMAGE_SUFFIXES,
    LOOK,
    ImageTree,
    decode_at,
    is_folder,
    look,
    name_problems,
    refuse_broken_link,
    shared_files,
)
from pipeline.errors import DataError, NoImagesError
from pipeline.portable.text import first_line
from pipeline.store.documents import ImageFormat

SPLITS = ("train", "val", "test")
_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_IMAGENET_LICENCE = "ImageNet terms of access: non-commercial research and education"


@dataclass(frozen=True)
class SourceSplit:
    """One published split of N images."""

    labels: NDArray[np.int64]
    images: Sequence[Path] | NDArray[np.uint8]  # files, or pixels: uint8 [N, H, W] or [N, H, W, 3]

    @property
    def paths(self) -> Sequence[Path] | None:
        """None if the images are not files."""
        return None if isinstance(self.images, np.ndarray) else self.images

    def pixels(self, index: int, form: ImageFormat) -> NDArray[np.uint8]:
        """Image ``index`` as networks see it: uint8 [height, width, channels]; safe to call from several threads."""
        image = self.images[index]
        if isinstance(image, Path):
            return decode_at(image, form)
        return pixels_of(Image.fromarray(image).convert("RGB"), **form.of_decoding)


@dataclass(frozen=True)
class Source:
    """A published data set: class names, splits (at least train), origin and licence.

    Attributes:
        problems: one sentence for each file that cannot be used, as far as is seen without decoding it.
    """

    class_names: tuple[str, ...]
    splits: dict[str, SourceSplit]
    origin: str
    licence: str
    problems: Sequence[str] = ()


def open_source(params: DataParams) -> Source:
    """Open the data set of ``data.name`` and ``data.root``.

    Raises:
        DataError: the folder is missing, has another layout, or the download failed.
    """
    root = Path(params.root)
    match params.name:
        case "digits":
            return _digits()
        case "cifar10" | "cifar100":
            return _cifar(params.name, root)
        case "tiny-imagenet":
            return _tiny_imagenet(root)
        case "imagenet":  # the official val split, the only other labelled one, is the test split here
            origin = f"ImageNet in folder {root.name}; its validation split is the test split"
            folders = {"train": _folder(root, "train"), "test": _folder(root, "val")}
            return _from_folders(root, folders, origin, _IMAGENET_LICENCE)
        case "imagefolder":
            return _from_folders(root, _split_folders(root), f"folder {root.name}", "that of the images in data.root")


def _digits() -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415  one second of import, needed by this source only

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
        raise DataError(
            f"{name} could not be downloaded to {root} or failed its checksum ({first_line(error)}); put "
            f"{data_set.filename} from {data_set.url} into {root} by hand or set data.root to a folder with it"
        ) from None
    return Source(
        class_names=tuple(parts["train"].classes),
        splits={split: _from_arrays(part.data, np.asarray(part.targets)) for split, part in parts.items()},
        origin=f"{data_set.url}, checksum verified",
        licence="none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    )


def _from_arrays(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> SourceSplit:
    return SourceSplit(labels.astype(np.int64), images)


def _tiny_imagenet(root: Path) -> Source:
    """Read the official layout; its val split, the only other labelled one, is the test split here.

    The folders of train/ are the classes; the check of the annotations of val/ finds a missing one. wnids.txt is not
    read, because it is incomplete in some copies of the data set.
    """
    folder, tree = _folder(root, "train"), ImageTree(root)
    wnids = _class_folders(tree, folder)
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = [tree.images(_folder(root, f"train/{wnid}/images")) for wnid in wnids]
    annotations = [line.split("\t")[:2] for line in _lines(root / "val/val_annotations.txt")]
    unknown = [name for name, *wnid in annotations if not wnid or wnid[0] not in label_of]
    if unknown:
        raise DataError(
            f"{root / 'val/val_annotations.txt'} gives {unknown[0]} no class of train/; unpack the data set again"
        )
    test = [[root / "val/images" / name for name, wnid in annotations if wnid == own] for own in wnids]
    # the id distinguishes classes with the same first word
    names = [f"{words.get(wnid, wnid).split(',')[0]} ({wnid})" for wnid in wnids]
    files = {"train": (folder, train), "test": (root / "val", test)}
    return _from_files(
        tree,
        files,
        names,
        f"Tiny ImageNet in folder {root.name}; its validation split is the test split",
        _IMAGENET_LICENCE,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that there is; train must be."""
    found = {}
    for name, names in _FOLDERS.items():
        named = sorted(each for each in _folder(root).iterdir() if each.name.casefold() in names)
        folders = [each for each in named if is_folder(each)]
        for each in named:
            if each not in folders:
                refuse_broken_link(each)
        if len(folders) > 1:
            raise DataError(f"{folders[0]} and {folders[1]} are both the split {name}; merge them or rename one")
        if folders:
            found[name] = folders[0]
    return found if "train" in found else {"train": _folder(root, "train")}


def _from_folders(root: Path, folders: Mapping[str, Path], origin: str, licence: str) -> Source:
    """Read <folder>/<class>/<image> for each split."""
    tree = ImageTree(root)
    classes = {name: _class_folders(tree, folder) for name, folder in folders.items()}
    names = list(classes["train"])
    if len(names) < 2:
        train = folders["train"]
        raise DataError(f"{train} has {len(names)} class folder(s), but a classifier needs at least 2; add a class")
    for split_name, folder in folders.items():
        _check_classes(folder, classes[split_name], names)
    for other in root.iterdir():
        if other not in folders.values() and any(is_folder(other / name) for name in names):
            logging.warning("%s holds classes of train/ but is not read; name it val or test to use it", shown(other))
    files = {
        name: (folder, [tree.images(classes[name][each]) if each in classes[name] else [] for each in names])
        for name, folder in folders.items()
    }
    return _from_files(tree, files, names, origin, licence)


def _folder(root: Path, name: str = "") -> Path:
    if not root.is_dir():
        raise NoImagesError(f"data.root {root} is not a folder; set it to the folder that holds train/<class>/<image>")
    if not (root / name).is_dir():
        raise NoImagesError(f"{root} has no folder {name}/; put the images there or correct data.root and data.name")
    return root / name


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{path} cannot be read ({reason}); set data.root to the unpacked data set") from None


def _class_folders(tree: ImageTree, parent: Path) -> dict[str, Path]:
    """The folder of each class, sorted by name; accents in names are encoded in one way (NFC)."""
    found: dict[str, Path] = {}
    by_look: dict[str, str] = {}
    for folder in tree.folders(parent):
        name = unicodedata.normalize("NFC", folder.name)
        if not name.isprintable():
            raise DataError(f"{parent / ascii(name)} is a class name with characters that cannot be shown; rename it")
        if (other := by_look.setdefault(look(name), folder.name)) != folder.name:
            raise DataError(
                f"the classes {other!r} and {name!r} in {parent} differ in {LOOK} only; rename or merge them"
            )
        found[name] = folder
    return dict(sorted(found.items()))


def _check_classes(parent: Path, found: Mapping[str, Path], class_names: Sequence[str]) -> None:
    """Refuse a split without class folders, or with one that train/ does not have."""
    if not found:
        raise DataError(f"{parent} has no class folders; sort its images into {parent}/<class>/ first")
    looks = {look(name): name for name in class_names}
    for name, folder in found.items():
        if name not in class_names:
            alike = looks.get(look(name))
            remedy = f"rename it to {alike!r}" if alike else "remove it or add it to train/"
            raise DataError(f"{folder} is a class that train/ does not have; {remedy}")


def _from_files(
    tree: ImageTree,
    files: Mapping[str, tuple[Path, Sequence[Sequence[Path]]]],
    class_names: Sequence[str],
    origin: str,
    licence: str,
) -> Source:
    """Make a source of image files; ``files`` has the folder of each split and a list of files for each class."""
    tree.warn()
    groups = [found for _, by_class in files.values() for found in by_class]
    problems = tree.problems + [problem for found in groups for problem in name_problems(found)]
    if tree.links:
        _warn_of_shared_files({name: by_class for name, (_, by_class) in files.items()})
    splits = {name: _split_of_files(folder, by_class, class_names) for name, (folder, by_class) in files.items()}
    return Source(tuple(class_names), splits, origin, licence, problems)


def _warn_of_shared_files(files: Mapping[str, Sequence[Sequence[Path]]]) -> None:
    train = files["train"]
    if len(files) < len(SPLITS):  # the missing splits will be drawn out of train, image by image
        train = [[path] for path in chain(*train)]
    others = [found for name, by_class in files.items() if name != "train" for found in by_class]
    if pairs := shared_files([*train, *others]):
        logging.warning(
            "%d images are in two classes or splits by links, such as %s and %s, so the accuracy may be overstated",
            len(pairs),
            *map(shown, pairs[0]),
        )


def _split_of_files(folder: Path, files: Sequence[Sequence[Path]], class_names: Sequence[str]) -> SourceSplit:
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        more = f" and {len(empty) - 1} other classes" if len(empty) > 1 else ""
        raise DataError(
            f"{folder} holds no image of class {empty[0]!r}{more} ({', '.join(sorted(IMAGE_SUFFIXES))}); add some, or "
            "remove the class everywhere"
        )
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(found) for found in files])
    return SourceSplit(labels, [path for found in files for path in found])
