"""Ranges of activations, from their histograms on the calibration images.

The largest value is a poor end of a range, because one outlier makes the steps of all other values coarse. Instead, a
search finds the ends with the least sum of |value - quantised value|^p, p = 2.4 as in the released code of BRECQ (Li et
al. 2021, arXiv 2102.05426): large activations are rare but important. Any p between 2 and 3 gives almost the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, NDArray[np.float32]]  # of some images, by tensor
Signed = Literal["never", "balanced", "always"]  # the tensors in signed bytes; "balanced": those with both signs alike

_POWER = 2.4
_BINS = 4096
_LOST = 0.99  # share of the values that are 0 in bytes, above which a tensor stays float32; sound networks reach 0.95
_CLIP = np.linspace(0.3, 1, 71)  # candidate ends, as shares of the smallest and of the largest value


@dataclass(frozen=True)
class Step:
    """A tensor in bytes: value = scale * (byte - zero_point)."""

    scale: np.float32
    zero_point: int
    lowest: int
    highest: int

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values that the bytes stand for, float32 of the same shape."""
        levels: NDArray[np.float32] = np.rint(values / self.scale)
        np.clip(levels, self.lowest - self.zero_point, self.highest - self.zero_point, out=levels)
        levels *= self.scale
        return levels


def step(low: float, high: float, *, signed: bool) -> Step:
    """The bytes for values from ``low`` <= 0 to ``high`` >= 0; 0 is one of the levels. Signed bytes have zero-point 0.

    A tensor of zeros has scale 1.
    """
    if signed:
        return Step(np.float32(max(-low, high) / 127 or 1.0), 0, -128, 127)
    scale = np.float32((high - low) / 255 or 1.0)
    return Step(scale, int(np.clip(np.rint(-low / scale), 0, 255)), 0, 255)


@dataclass
class Histogram:
    """Values of one tensor, but for the zeros, which have no error in any range.

    Attributes:
        low: smallest value, at most 0.
        high: largest value, at least 0.
        counts: int64 [bins] between the two; empty if only the ends are known.
    """

    low: float = 0.0
    high: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def widen(self, values: NDArray[np.float32]) -> None:
        finite = values[np.isfinite(values)]  # the border of a maximum pooling may be -inf
        self.low = min(self.low, float(finite.min(initial=0)))
        self.high = max(self.high, float(finite.max(initial=0)))

    def count(self, values: NDArray[np.float32]) -> None:
        counted = values[np.isfinite(values) & (values != 0)]
        self.counts = self.counts + np.histogram(counted, _BINS, (self.low, self.high))[0]

    def is_lost_in(self, step: Step) -> bool:
        """Whether nearly all of the values are 0 in these bytes, as beside one outlier that the range has to reach."""
        width = (self.high - self.low) / _BINS
        centres = self.low + (np.arange(len(self.counts)) + 0.5) * width
        return bool(self.counts[np.abs(centres) < step.scale / 2].sum() > _LOST * max(self.counts.sum(), 1))


def histograms(
    names: Sequence[str], passes: Callable[[], Iterator[Values]], *, ends_only: bool
) -> dict[str, Histogram]:
    """Histogram of each tensor; ``passes`` starts a pass over all images, a few at a time, and is called twice."""
    found = {name: Histogram() for name in names}
    for values in passes():
        for name, histogram in found.items():
            histogram.widen(values[name])
    if not ends_only:
        for histogram in found.values():
            histogram.counts = np.zeros(_BINS, np.int64)
        for values in passes():
            for name, histogram in found.items():
                histogram.count(values[name])
    return found


def choose(histogram: Histogram, kind: Signed) -> Step:
    """The bytes of least error for a tensor; those that reach both ends if only the ends are known."""
    low, high = histogram.low, histogram.high
    # the smaller side is at least half of the larger: signed bytes then waste a quarter of their levels at most
    signed = kind == "always" or (kind == "balanced" and low < 0 and max(-low, high) <= 2 * min(-low, high))
    used = np.flatnonzero(histogram.counts)
    if not len(used):
        return step(low, high, signed=signed)
    values = (low + (used + 0.5) * ((high - low) / _BINS)).astype(np.float32)
    counts = histogram.counts[used]

    def best(ends: NDArray[np.float64]) -> tuple[float, float]:
        """Of the candidates [n, 2]."""
        tried = (step(first, last, signed=signed) for first, last in ends.tolist())
        errors = [counts @ np.abs(one.rounded(values) - values) ** _POWER for one in tried]
        found = ends[int(np.argmin(errors))]
        return float(found[0]), float(found[1])

    if signed:
        return step(*best(np.outer(_CLIP, [low, high])), signed=True)
    found = low, high
    for _ in range(2 if low < 0 < high else 1):  # one end after the other, each for the best of the other
        found = best(np.column_stack([np.full_like(_CLIP, found[0]), _CLIP * high]))
        found = best(np.column_stack([_CLIP * low, np.full_like(_CLIP, found[1])])) if low < 0 else found
    return step(*found, signed=False)
