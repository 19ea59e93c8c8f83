"""Routing by uncertainty: the device keeps answers with a low score and sends the other images to a larger network.

The two scores are the energy of the student's logits (Liu et al., arXiv 2010.03759) and one minus the largest softmax
probability (Hendrycks and Gimpel, arXiv 1610.02136).
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.store.documents import Router

_CURVE = np.arange(1, 21) / 20  # coverage at each point of the curve


def softmax_uncertainty(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus the largest softmax probability: logits [N, K] -> [N]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    uncertainty: NDArray[np.float64] = 1 - shifted.max(axis=1) / shifted.sum(axis=1)
    return uncertainty


def choose_threshold(score: NDArray[np.floating], correct: NDArray[np.bool_], wanted: float) -> float:
    """Find the threshold with the most kept images at a top-1 accuracy of at least ``wanted`` among them.

    Args:
        score: [N], N >= 1, higher for less certain images; a score up to the threshold means kept.
        correct: bool [N].

    Returns:
        One of the scores; infinity if all images are kept, minus infinity if none is.
    """
    values, top1 = kept_top1(score, correct)
    sufficient = np.flatnonzero(top1 >= wanted)
    if len(sufficient) == 0:
        return -math.inf
    last = int(sufficient[-1])
    return math.inf if last == len(values) - 1 else float(values[last])


def kept_top1(
    score: NDArray[np.floating], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return the distinct scores, ascending, and for each one the top-1 accuracy of all images up to this score."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    top1 = np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    return ranked[last_of_ties], top1[last_of_ties]


def aurc(score: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Area under the risk-coverage curve (Geifman et al., arXiv 1805.08206); lower is better.

    The area is the mean over n = 1 .. N of the error rate among the n images with the lowest scores; images of equal
    score share their errors.
    """
    values, value_index = np.unique(score, return_inverse=True)
    sizes = np.bincount(value_index, minlength=len(values))
    errors = np.bincount(value_index, weights=~correct, minlength=len(values)) / sizes
    image_errors = np.repeat(errors, sizes)
    return float(np.mean(np.cumsum(image_errors) / np.arange(1, len(image_errors) + 1)))


def route(
    validation: tuple[NDArray[np.floating], NDArray[np.bool_]],
    test: tuple[NDArray[np.floating], NDArray[np.bool_]],
    wanted: float,
) -> Router:
    """Choose the threshold of a score on the validation split, and evaluate it on the test split.

    Args:
        validation, test: scores and correctness of the images, [N] each.
        wanted: top-1 accuracy that the kept answers must reach on the validation split.
    """
    threshold = choose_threshold(*validation, wanted)
    score, correct = test
    kept = score <= threshold
    ranked = correct[np.argsort(score, kind="stable")]
    counts = np.maximum(1, np.round(_CURVE * len(ranked)).astype(int))
    return Router(
        threshold=threshold if math.isfinite(threshold) else None,
        coverage=float(kept.mean()),
        kept=int(kept.sum()),
        top1=float(correct[kept].mean()) if kept.any() else None,
        aurc=aurc(score, correct),
        curve=(np.cumsum(ranked)[counts - 1] / counts).tolist(),
    )
