"""Which values eight bits stand for: one scale per tensor of activations, one per output channel of weights.

The largest magnitude is a poor range: one outlier makes the steps of all other values coarse. Instead the range is
searched in which |value - quantised value|, to a power and summed over the values, is least. For activations the power
is 2.4, as in the released code of BRECQ (Li et al. 2021, arXiv 2102.05426), a little above the squared error: large
activations are rare, but answers hang on them. Between 2 and 3 the power hardly matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

ACTIVATION_LEVELS = 127  # on each side of zero
WEIGHT_LEVELS = 64  # 7 of 8 bits, see quantize.py
_POWER = 2.4
_BINS = 8192
_CLIP = np.linspace(0.3, 1, 71)  # candidates, as shares of the largest magnitude


class Magnitudes:
    """A histogram of |values| of one tensor, seen chunk by chunk: memory does not grow with the number of images."""

    def __init__(self, largest: float) -> None:
        self._largest = largest
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape; zeros cost nothing in any range and are left out."""
        magnitudes = np.abs(values[values != 0])
        bins = np.minimum((magnitudes * (_BINS / max(self._largest, 1e-30))).astype(np.int64), _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)

    def scale(self, method: str) -> float:
        """The step between two of 255 levels: ``error`` searches the range, ``minmax`` takes the largest magnitude."""
        if self._largest == 0:
            return 1.0
        if method == "minmax":
            return self._largest / ACTIVATION_LEVELS
        seen = np.flatnonzero(self._counts)
        values = (seen + 0.5) * (self._largest / _BINS)
        costs = []
        for clip in _CLIP:
            scale = clip * self._largest / ACTIVATION_LEVELS
            rounded = scale * np.minimum(np.rint(values / scale), ACTIVATION_LEVELS)
            costs.append(float(self._counts[seen] @ np.abs(rounded - values) ** _POWER))
        return float(_CLIP[int(np.argmin(costs))] * self._largest / ACTIVATION_LEVELS)


def activation_scales(
    largest: Mapping[str, float], chunks: Iterable[Mapping[str, NDArray[np.float32]]], method: str
) -> dict[str, float]:
    """One scale per tensor.

    Args:
        largest: magnitude of each tensor over all chunks.
        chunks: values of all of these tensors, for some images at a time.
        method: "error" or "minmax".
    """
    histograms = {name: Magnitudes(magnitude) for name, magnitude in largest.items()}
    if method != "minmax":
        for chunk in chunks:
            for name, histogram in histograms.items():
                histogram.add(chunk[name])
    return {name: histogram.scale(method) for name, histogram in histograms.items()}


def weight_scales(weights: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """One scale per row of weights [O, I], of least squared error or by the largest magnitude; float32 [O]."""
    largest = np.abs(weights).max(axis=1)
    largest[largest == 0] = 1.0
    if method == "minmax":
        return np.asarray(largest / WEIGHT_LEVELS, np.float32)
    costs = []
    for clip in _CLIP:
        scales = (clip * largest / WEIGHT_LEVELS)[:, None]
        rounded = scales * np.clip(np.rint(weights / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS)
        costs.append(((rounded - weights) ** 2).sum(axis=1))
    return np.asarray(_CLIP[np.argmin(costs, axis=0)] * largest / WEIGHT_LEVELS, np.float32)


def nearest(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Weights [O, I] in steps of the scales [O], each rounded to the nearest."""
    return np.asarray(np.clip(np.rint(weights / scales[:, None]), -WEIGHT_LEVELS, WEIGHT_LEVELS), np.int8)
