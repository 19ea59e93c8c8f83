"""The images of the benchmark: the same few as files and as stores of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from bench.setting import Setting, data_params
from pipeline.data.image_files import list_images, resize, subfolders
from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import write_store
from pipeline.errors import DataError

_HELD_OUT_PER_CLASS = 2  # validation costs time and is not timed


STORAGES = ("packed", "files")


def make_stores(images: Path | None, setting: Setting, storages: Sequence[str] = STORAGES) -> str:
    """Write the stores of ``setting``: as many training images as an epoch has, a few held out.

    Args:
        images: a folder with train/<class>/<image>; None for scikit-learn's digits.
        storages: which of them.

    Returns:
        What the images are, in words.

    Raises:
        DataError: the folder cannot be used.
    """
    folder = Path(setting.stores)
    if images is None:
        published = folder / "digits"
        _write_digits(published / "train", setting.image_size)
        origin = f"scikit-learn's digits, scaled to {setting.image_size} x {setting.image_size}, as PNG"
    else:
        published, origin = images, f"image files of folder {images.name}"
    chosen = folder / "chosen"
    _choose(published / "train", chosen, setting.image_count)
    for storage in storages:
        params = data_params("imagefolder", chosen, setting.image_size, storage)
        source = open_source(params)
        card = write_store(setting.store(storage), source, split(source, params), params)
    return f"{origin}; {card['counts']['train']:,} for training, {len(card['class_names'])} classes"


def _write_digits(folder: Path, size: int) -> None:
    source = open_source(data_params("digits", folder, size, "packed"))
    digits = source.splits["train"]
    for index, label in enumerate(digits.labels.tolist()):
        path = folder / source.class_names[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        resize(digits.read(index), size).save(path)


def _choose(train: Path, folder: Path, count: int) -> None:
    """An image folder of links to at least ``count`` training images, classes balanced, and a few held out.

    A class with fewer images than its share gives each of them several times: only speed is measured.
    """
    if not train.is_dir():
        raise DataError(f"{train} is not a folder; --images takes a folder that holds train/<class>/<image>")
    names = subfolders(train)
    if len(names) < 2:
        raise DataError(f"{train} has {len(names)} class folder(s); a classifier needs at least 2")
    per_class = max(2, -(-count // len(names)))
    for name in names:
        files = list_images(train / name)
        if not files:
            raise DataError(f"{train / name} holds no images; add some or remove the folder")
        for part, wanted in {"train": per_class, "val": _HELD_OUT_PER_CLASS, "test": 1}.items():
            linked = folder / part / name
            linked.mkdir(parents=True)
            for number, path in enumerate(islice(cycle(files), wanted)):
                (linked / f"{number:06d}{path.suffix}").symlink_to(path.absolute())
