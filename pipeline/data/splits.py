"""Stratified training, validation and test splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from pipeline.config import DataParams
from pipeline.data.sources import Source
from pipeline.errors import DataError

Members = list[tuple[str, NDArray[np.int64]]]


def split(source: Source, params: DataParams) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Which images of which source split make up train, val and test.

    Splits that the source has are kept; a missing one is held out of ``train``, stratified by class, test first.

    Returns:
        For each of train, val and test: the source split's name, and ascending int64 indices into it.

    Raises:
        DataError: a class has too few images, or a held-out share is smaller than the number of classes.
    """
    labels = source.splits["train"].labels
    missing = [name for name in ("test", "val") if name not in source.splits]
    _check_class_sizes(labels, source.class_names, 2)
    remaining = np.arange(len(labels))
    result = {name: (name, np.arange(len(part.labels))) for name, part in source.splits.items()}
    for name in missing:
        fraction = params.test_fraction if name == "test" else params.validation_fraction
        key = "data.test_fraction" if name == "test" else "data.validation_fraction"
        count = round(fraction * len(remaining))
        if count < len(source.class_names):
            raise DataError(
                f"{key} {fraction} of {len(remaining)} images holds out {count}, fewer than the "
                f"{len(source.class_names)} classes; raise it, or add a {name}/ folder"
            )
        _check_class_sizes(labels[remaining], source.class_names, 2)
        kept, held_out = train_test_split(
            remaining, test_size=count, stratify=labels[remaining], random_state=params.seed
        )
        result[name] = ("train", np.sort(held_out))
        remaining = np.sort(kept)
    result["train"] = ("train", remaining)
    return result


def _check_class_sizes(labels: NDArray[np.int64], class_names: tuple[str, ...], minimum: int) -> None:
    sizes = np.bincount(labels, minlength=len(class_names))
    if (sizes < minimum).any():
        smallest = int(sizes.argmin())
        raise DataError(
            f"class {class_names[smallest]!r} has {sizes[smallest]} training image(s) to split, but needs at least "
            f"{minimum}; add images to train/{class_names[smallest]}/ or remove the class"
        )
