"""Cascades of two files: the small one answers, and the images of which it is least certain go on to the larger one.

The scores of uncertainty are those of :mod:`pipeline.evaluation.routing`. Thresholds are chosen on the validation
split and measured on the test split; no label of a test image takes part in a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.store.answers import FileAnswers, SplitAnswers

Score = Literal["energy", "probability"]
SCORES: tuple[Score, ...] = get_args(Score)
# of the validation images to send on; finer where one percent makes the largest difference to the mean latency
_PERCENT = np.array([*range(1, 10), *range(10, 100, 5)])
_SIGNS = {"energy": 1, "probability": -1}  # an answer is doubtful if its energy is high, or its probability low


@dataclass(frozen=True)
class CascadePoint:
    """A threshold and what it gives.

    Attributes:
        score: of the small file's answer.
        threshold: an image is sent on if its energy is above, or its largest probability below; None: none or all are.
        val_sent, val_top1: share of the validation images that are sent on, and top-1 of the cascade on the split.
        sent, top1: the same on the test split.
        latency_ms: mean latency of a test image.
    """

    score: Score
    threshold: float | None
    val_sent: float
    val_top1: float
    sent: float
    top1: float
    latency_ms: float


def cascade_curve(
    small: FileAnswers, large: FileAnswers, small_ms: float, large_ms: float, score: Score
) -> list[CascadePoint]:
    """Points from no image sent on to all of them; see :func:`cascade_curves`."""
    (curve,) = cascade_curves(small, [large], small_ms, [large_ms], score)
    return curve


def cascade_curves(
    small: FileAnswers, larges: Sequence[FileAnswers], small_ms: float, larges_ms: Sequence[float], score: Score
) -> list[list[CascadePoint]]:
    """The curve of the small file with each of the larger ones.

    A curve begins with no image sent on and ends with all. The thresholds between lie halfway between two neighbouring
    validation scores, so that rounding on a device does not move an image to the other side; images of equal score
    stay together, so that fewer may be sent on than was aimed for.

    Args:
        larges: answers to the same images as those of ``small``.
        small_ms, larges_ms: latency of one image in each file.
    """
    limits = _limits(_doubt(small.val, score))
    val_sent, val_top1 = _measure(small.val, [large.val for large in larges], score, limits)
    test_sent, test_top1 = _measure(small.test, [large.test for large in larges], score, limits)
    thresholds = [float(_SIGNS[score] * limit) if np.isfinite(limit) else None for limit in limits]
    columns = (thresholds, val_sent.tolist(), test_sent.tolist())
    return [
        [
            CascadePoint(score, threshold, val_share, on_val, share, on_test, small_ms + share * large_ms)
            for threshold, val_share, share, on_val, on_test in zip(*columns, *top1, strict=True)
        ]
        for large_ms, *top1 in zip(larges_ms, val_top1.tolist(), test_top1.tolist(), strict=True)
    ]


def sent_on(answers: SplitAnswers, point: CascadePoint) -> NDArray[np.bool_]:
    """Whether each image goes on to the larger file: answers of the small file to N images -> bool [N]."""
    if point.threshold is None:
        return np.full(len(answers.correct), point.val_sent > 0)
    sent: NDArray[np.bool_] = _doubt(answers, point.score) > _SIGNS[point.score] * point.threshold
    return sent


def cascade_correct(small: SplitAnswers, large: SplitAnswers, point: CascadePoint) -> NDArray[np.bool_]:
    """Whether the cascade answers each of the N images right, bool [N]."""
    return np.where(sent_on(small, point), large.correct, small.correct)


def _doubt(answers: SplitAnswers, score: Score) -> NDArray[np.float64]:
    """Doubt [N] about each answer: its energy, or minus its largest probability."""
    return answers.energy.astype(np.float64) if score == "energy" else answers.uncertainty.astype(np.float64) - 1


def _limits(doubt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limits [P], descending, above which the wanted shares of the doubts [N] lie; infinite at both ends."""
    values, ordered = np.unique(doubt), np.sort(doubt)[::-1]
    kept = np.unique(ordered[_PERCENT * len(ordered) // 100])[::-1]  # the largest doubt that stays, for each share
    place = np.searchsorted(values, kept[kept < values[-1]])
    return np.concatenate([[np.inf], (values[place] + values[place + 1]) / 2, [-np.inf]])


def _measure(
    small: SplitAnswers, larges: Sequence[SplitAnswers], score: Score, limits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share sent on at each of P limits, [P], and top-1 of the cascades with M larger files, [M, P]."""
    images = len(small.correct)
    rows = np.stack([np.ones(images, bool), small.correct, *(large.correct for large in larges)])
    # as float32, because that product of matrices is fast; it counts exactly up to 2^24
    sent = (_doubt(small, score) > limits[:, None]).astype(np.float32)
    counts = (rows.astype(np.float32) @ sent.T).astype(np.float64)
    return counts[0] / images, (small.correct.sum() - counts[1] + counts[2:]) / images
