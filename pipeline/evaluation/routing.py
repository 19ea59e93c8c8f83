"""Which answers to keep on the device: those whose score of uncertainty is low; the rest is sent to a larger network.

Two scores are compared: the energy of the student's logits (Liu et al., arXiv 2010.03759), and one minus the largest
softmax probability (Hendrycks and Gimpel, arXiv 1610.02136).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CURVE = np.arange(1, 21) / 20  # coverages of the curve


def softmax_uncertainty(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus the largest softmax probability, [N] of logits [N, K]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    uncertainty: NDArray[np.float64] = 1 - shifted.max(axis=1) / shifted.sum(axis=1)
    return uncertainty


def choose_threshold(score: NDArray[np.floating], correct: NDArray[np.bool_], wanted: float) -> float:
    """The threshold that keeps the most images while the share of right answers among them is at least ``wanted``.

    Args:
        score: [N], N >= 1, higher for less certain images; those up to the threshold are kept.
        correct: bool [N].

    Returns:
        One of the scores; infinity if all can be kept, minus infinity if none.
    """
    values, found = kept_top1(score, correct)
    enough = np.flatnonzero(found >= wanted)
    if len(enough) == 0:
        return -math.inf
    last = int(enough[-1])
    return math.inf if last == len(values) - 1 else float(values[last])


def kept_top1(
    score: NDArray[np.floating], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Each different score, ascending, and the share of right answers among the images up to it."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    top1 = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    return ranked[last_of_ties], top1[last_of_ties]


def aurc(score: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Area under the risk-coverage curve (Geifman et al., arXiv 1805.08206): the lower, the better the score ranks.

    Mean over n of the error rate among the n images with the lowest scores, N of them; images of equal score share
    their errors.
    """
    values, where = np.unique(score, return_inverse=True)
    sizes = np.bincount(where, minlength=len(values))
    errors = np.bincount(where, weights=~correct, minlength=len(values)) / sizes
    each = np.repeat(errors, sizes)
    return float(np.mean(np.cumsum(each) / np.arange(1, len(each) + 1)))


def route(
    validation: tuple[NDArray[np.floating], NDArray[np.bool_]],
    test: tuple[NDArray[np.floating], NDArray[np.bool_]],
    wanted: float,
) -> dict[str, Any]:
    """One score as a router: its threshold of the validation split, and what that does on the test split.

    Args:
        validation, test: score and correctness of each image.

    Returns:
        ``threshold`` (None if all images are kept, or none), ``coverage`` (share of the test images kept), ``kept``
        (their number), ``top1`` (among them; None if there are none), ``aurc`` and ``curve``: top-1 among the surest 5,
        10, ..., 100 % of the test images.
    """
    threshold = choose_threshold(*validation, wanted)
    score, correct = test
    kept = score <= threshold
    ranked = correct[np.argsort(score, kind="stable")]
    counts = np.maximum(1, np.round(_CURVE * len(ranked)).astype(int))
    return {
        "threshold": threshold if math.isfinite(threshold) else None,
        "coverage": float(kept.mean()),
        "kept": int(kept.sum()),
        "top1": float(correct[kept].mean()) if kept.any() else None,
        "aurc": aurc(score, correct),
        "curve": (np.cumsum(ranked)[counts - 1] / counts).tolist(),
    }
