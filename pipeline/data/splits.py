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

    Splits that the source has are kept; a missing one is held out of ``train``, stratified by class, test first. Then
    ``train`` is thinned to ``max_images_per_class`` and to the long tail of ``imbalance_factor``; val and test stay as
    balanced as the source is.

    Returns:
        For each of train, val and test: the source split's name, and ascending int64 indices into it.

    Raises:
        DataError: a class has too few images, a held-out share is smaller than the number of classes, or the long
            tail leaves a class none.
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
    result["train"] = ("train", _thin(remaining, labels[remaining], source.class_names, params))
    return result


def class_counts(count: int, classes: int, imbalance_factor: float) -> NDArray[np.int64]:
    """Images per class of an exponential long tail: int(count * IF^(-c / (K - 1))) for class c of K (Cao et al.,
    arXiv 1906.07413, section 4), ``count`` for class 0 and ``count / IF`` for the last.

    Args:
        count: images of the largest class.
        classes: K >= 2.
        imbalance_factor: IF >= 1.
    """
    exponents = np.arange(classes) / (classes - 1)
    # the last share is exactly 1 / IF on paper, and a rounding error below it in binary
    return (count * imbalance_factor**-exponents + 1e-6).astype(np.int64)


def _thin(
    indices: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...], params: DataParams
) -> NDArray[np.int64]:
    """The images kept of each class, drawn at random; a class that is smaller than its share keeps all it has."""
    if params.max_images_per_class is None and params.imbalance_factor == 1:
        return indices
    sizes = np.bincount(labels, minlength=len(class_names))
    largest = int(min(sizes.max(), params.max_images_per_class or sizes.max()))
    wanted = np.minimum(sizes, class_counts(largest, len(class_names), params.imbalance_factor))
    if (wanted < 1).any():
        raise DataError(
            f"data.imbalance_factor {params.imbalance_factor:g} leaves class {class_names[int(wanted.argmin())]!r} "
            f"none of {largest} images; lower it to at most {largest}"
        )
    generator = np.random.default_rng(params.seed)
    kept = [generator.permutation(indices[labels == label])[:count] for label, count in enumerate(wanted)]
    return np.sort(np.concatenate(kept))


def _check_class_sizes(labels: NDArray[np.int64], class_names: tuple[str, ...], minimum: int) -> None:
    sizes = np.bincount(labels, minlength=len(class_names))
    if (sizes < minimum).any():
        smallest = int(sizes.argmin())
        raise DataError(
            f"class {class_names[smallest]!r} has {sizes[smallest]} training image(s) to split, but needs at least "
            f"{minimum}; add images to train/{class_names[smallest]}/ or remove the class"
        )
