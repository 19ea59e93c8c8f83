"""Which images of a source become train, val and test."""

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataParams
from pipeline.data.sources import Source
from pipeline.errors import DataError

Members = dict[str, tuple[str, NDArray[np.int64]]]  # split -> name of the source split, ascending indices in it


def split(source: Source, params: DataParams) -> Members:
    """Choose the images of train, val and test.

    Splits of the source are kept; a missing one is held out of ``train``, stratified by class, test first. Then
    ``train`` is thinned to ``max_images_per_class`` and to the long tail of ``imbalance_factor``; val and test keep the
    class balance of the source.

    Raises:
        DataError: a class has too few images or none left in the long tail, or a split gets fewer images than classes.
    """
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  one second of import, needed by prepare only

    labels, names = source.splits["train"].labels, source.class_names
    remaining = np.arange(len(labels))
    result = {name: (name, np.arange(len(part.labels))) for name, part in source.splits.items()}
    for name, key in (("test", "test_fraction"), ("val", "validation_fraction")):
        if name in source.splits:
            continue
        fraction: float = getattr(params, key)
        _check_class_sizes(labels[remaining], names)
        count = round(fraction * len(remaining))
        if count < len(names):
            raise DataError(
                f"data.{key} {fraction} of {len(remaining)} images holds out {count}, fewer than the {len(names)} "
                f"classes; raise it, or add a {name}/ folder"
            )
        kept, held_out = train_test_split(
            remaining, test_size=count, stratify=labels[remaining], random_state=params.seed
        )
        result[name] = ("train", np.sort(held_out))
        remaining = np.sort(kept)
    result["train"] = ("train", _thin(remaining, labels[remaining], names, params))
    return result


def class_counts(count: int, classes: int, imbalance_factor: float) -> NDArray[np.int64]:
    """Number of images per class of an exponential long tail: int(count * IF^(-c / (K - 1))) for class c of K >= 2,
    with imbalance factor IF >= 1 (Cao et al., arXiv 1906.07413, section 4).
    """
    exponents = np.arange(classes) / (classes - 1)
    # 1e-6 compensates rounding: the last share is 1 / IF exactly, but slightly less in floating point
    return (count * imbalance_factor**-exponents + 1e-6).astype(np.int64)


def _thin(
    indices: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...], params: DataParams
) -> NDArray[np.int64]:
    """Draw the training images of each class at random; a class with too few images keeps all of them."""
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


def _check_class_sizes(labels: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
    sizes = np.bincount(labels, minlength=len(class_names))
    if sizes.min() < 2:  # each split needs an image of the class
        smallest = class_names[int(sizes.argmin())]
        raise DataError(
            f"class {smallest!r} has {sizes.min()} training image(s) to split, but needs at least 2; add images to "
            f"train/{smallest}/ or remove the class"
        )
