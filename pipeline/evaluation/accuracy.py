"""Balanced accuracy, accuracy of frequent and rare classes, and calibration error; see also portable/accuracy.py."""

import numpy as np
from numpy.typing import NDArray

from pipeline.portable.accuracy import top1_correct
from pipeline.store.documents import ShotAccuracy


def balanced_accuracy(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean of the top-1 accuracies of the classes, over all classes in ``labels``."""
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def is_long_tailed(train_counts: NDArray[np.int64]) -> bool:
    """True if the largest class has at least twice the training images of the smallest, by counts [K]."""
    return bool(train_counts.max() >= 2 * train_counts.min())


def shot_groups(train_counts: NDArray[np.int64], many_above: int, few_below: int) -> dict[str, NDArray[np.bool_]]:
    """Group the classes into many-, medium- and few-shot (Liu et al., arXiv 1904.05160, section 5): name -> bool [K].

    Args:
        train_counts: [K], number of training images of each class.
        many_above: a class with more training images is many-shot; 100 in the literature.
        few_below: a class with fewer training images is few-shot; 20 in the literature. The others are medium-shot.
    """
    many, few = train_counts > many_above, train_counts < few_below
    return {"many": many, "medium": ~many & ~few, "few": few}


def shot_accuracy(
    correct: NDArray[np.bool_], labels: NDArray[np.int64], groups: dict[str, NDArray[np.bool_]]
) -> ShotAccuracy:
    """Balanced accuracy within each of :func:`shot_groups`; None for a group without images."""
    accuracies: dict[str, float | None] = {}
    for name, classes in groups.items():
        inside = classes[labels]
        accuracies[f"top1_{name}_shot"] = balanced_accuracy(correct[inside], labels[inside]) if inside.any() else None
    return ShotAccuracy(**accuracies)


def expected_calibration_error(logits: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Mean |confidence - accuracy| over equal-width confidence bins, weighted by bin size (Guo, arXiv 1706.04599)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    gap = confidence - top1_correct(logits, labels)
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_index, weights=gap, minlength=bins)).sum() / len(labels))
