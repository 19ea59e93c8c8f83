"""Accuracy of answers against labels: overall, per energy group, calibration, and paired differences with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.energy.groups import GROUP_NAMES

_Z95 = 1.959963984540054


def top1_correct(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [N]: whether the largest of logits [N, K] is the label."""
    correct: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return correct


def group_accuracy(correct: NDArray[np.bool_], groups: NDArray[np.int8]) -> dict[str, float | None]:
    """Top-1 of the low, mid and high group; None for a group without images."""
    return {
        name: float(correct[groups == code].mean()) if (groups == code).any() else None
        for code, name in GROUP_NAMES.items()
    }


def balanced_accuracy(correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the top-1 within the class."""
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def is_long_tailed(train_counts: NDArray[np.int64]) -> bool:
    """Whether the largest class has at least twice the training images of the smallest, [K] counts."""
    return bool(train_counts.max() >= 2 * train_counts.min())


def shot_groups(train_counts: NDArray[np.int64], many_above: int, few_below: int) -> dict[str, NDArray[np.bool_]]:
    """Which classes are many-, medium- and few-shot (Liu et al., arXiv 1904.05160, section 5): name -> bool [K].

    Args:
        train_counts: [K], training images of each class.
        many_above: a class with more training images is many-shot; in the literature 100.
        few_below: a class with fewer is few-shot; in the literature 20. The rest is medium-shot.
    """
    many, few = train_counts > many_above, train_counts < few_below
    return {"many": many, "medium": ~many & ~few, "few": few}


def shot_accuracy(
    correct: NDArray[np.bool_], labels: NDArray[np.int64], groups: dict[str, NDArray[np.bool_]]
) -> dict[str, float | None]:
    """Balanced accuracy within each group of classes: top1_many_shot, ...; None for a group without images.

    Args:
        correct, labels: [N].
        groups: of :func:`shot_groups`.
    """
    result: dict[str, float | None] = {}
    for name, classes in groups.items():
        chosen = classes[labels]
        result[f"top1_{name}_shot"] = balanced_accuracy(correct[chosen], labels[chosen]) if chosen.any() else None
    return result


def expected_calibration_error(logits: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Mean |confidence - accuracy| over equal-width bins of confidence, weighted by size (Guo, arXiv 1706.04599)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    gap = confidence - top1_correct(logits, labels)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, weights=gap, minlength=bins)).sum() / len(labels))


@dataclass(frozen=True)
class PairedDifference:
    """Top-1 of one model minus that of another on the same images, with a 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(correct: NDArray[np.bool_], reference: NDArray[np.bool_]) -> PairedDifference:
    """Difference of two proportions on matched pairs (Agresti and Min, Statistics in Medicine 24, 2005).

    The interval is the Wald interval after adding 0.5 to each cell of the 2x2 table: it holds its level in small
    samples and does not shrink to zero width when the two never disagree.
    """
    count = len(correct)
    gained = int((correct & ~reference).sum())
    lost = int((~correct & reference).sum())
    total, only_new, only_old = count + 2, gained + 0.5, lost + 0.5
    centre = (only_new - only_old) / total
    half = _Z95 * float(np.sqrt(only_new + only_old - (only_new - only_old) ** 2 / total)) / total
    return PairedDifference((gained - lost) / count, max(centre - half, -1.0), min(centre + half, 1.0))
