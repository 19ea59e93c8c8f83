"""Statistics of latency samples: percentiles, intervals over rounds, comparisons and verdicts.

A round is one fresh process that measured one variant. Samples within a round share memory layout, clock and other
load, so the uncertainty of a number is computed over rounds, never over samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CONFIDENCE = 0.99
# A latency is noisy above these relative limits.
_SPREAD_LIMIT = 0.10  # range of the round medians
_DRIFT_LIMIT = 0.10  # second half of a round against its first half, or late rounds against early rounds
_QUARTILE_LIMIT = 0.20  # interquartile range
_TENTH_LIMIT = 0.10  # median of a tenth of a round against the median of the round
_TENTHS_SHARE = 0.10  # share of slow tenths that is allowed; a larger share would change p90
_MIN_SAMPLES_OF_TENTH = 5
_LOST_LIMIT = 0.10  # share of a round's time in inferences over twice its median, a sign of another busy program
# With r rounds each, chance separates the rounds of two variants in 2 of C(2r, r) orders: 10 % at 3, 2.9 % at 4.
MIN_ROUNDS_TO_COMPARE = 4
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Percentile:
    """A percentile in the unit of the samples, or None and a reason if there are too few samples."""

    value: float | None
    reason: str | None


@dataclass(frozen=True)
class Interval:
    """The 95 % interval [low, high] around a value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of the latencies of two variants.

    Attributes:
        ratio: latency of the first over latency of the second, with its interval; below 1 the first is faster.
        verdict: verdict about the first variant.
    """

    ratio: Interval
    verdict: Literal["faster", "slower", "no difference shown"]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Reliability of a latency, with the reasons if it is not stable."""

    name: Literal["stable", "noisy", "throttled", "too_few_samples"]
    reasons: tuple[str, ...]


@cache
def required_samples(percentile: float) -> int:
    """Number of samples that a percentile p in (0, 1) needs: 64 for 0.90, 130 for 0.95, 662 for 0.99.

    Source: early-stopping rule of MLPerf LoadGen, the smallest n with P(Binomial(n, 1 - p) <= 1) <= 1 %. If one of n
    inferences is over a limit, then with 99 % confidence at most 1 - p of all inferences are.
    """
    n = 2
    while percentile**n + n * (1 - percentile) * percentile ** (n - 1) > (1 - _CONFIDENCE) * (1 + 1e-12):
        n += 1
    return n


def percentile(samples: ArrayLike, p: float) -> Percentile:
    """Empirical quantile of samples [M] for p in (0, 1), if there are enough samples."""
    values = np.asarray(samples, dtype=np.float64)
    needed = required_samples(p)
    if values.size < needed:
        return Percentile(None, f"p{p * 100:g} not measured: {values.size} samples, {needed} needed.")
    return Percentile(float(np.quantile(values, p)), None)


def median_of_rounds(round_medians: Sequence[float], seed: int = 0) -> Interval:
    """Median of round medians [R >= 1] with its bootstrap interval over rounds; zero width for one round."""
    low, high = np.percentile(_resampled_medians(round_medians, np.random.default_rng(seed)), _INTERVAL)
    return Interval(float(np.median(round_medians)), float(low), float(high))


def _resampled_medians(values: Sequence[float], generator: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap medians [_RESAMPLES], which do not depend on the order of the values."""
    draws = generator.integers(0, len(values), size=(_RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(np.sort(np.asarray(values, dtype=np.float64))[draws], axis=1)
    return medians


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Compare the round medians of variants a and b, R >= 1 each.

    The verdicts "faster" and "slower" need ``MIN_ROUNDS_TO_COMPARE`` rounds each, two intervals that do not overlap,
    and a ratio whose interval excludes 1.
    """
    median_a, median_b = median_of_rounds(a, seed), median_of_rounds(b, seed)
    generator = np.random.default_rng(seed)
    draws = [_resampled_medians(medians, generator) for medians in (a, b)]
    low, high = np.percentile(draws[0] / draws[1], _INTERVAL)
    ratio = Interval(median_a.value / median_b.value, float(low), float(high))
    if min(len(a), len(b)) < MIN_ROUNDS_TO_COMPARE:
        return Comparison(ratio, "no difference shown", f"needs {MIN_ROUNDS_TO_COMPARE} rounds of each.")
    if median_a.high < median_b.low and ratio.high < 1:
        return Comparison(ratio, "faster", "the intervals over rounds do not overlap.")
    if median_a.low > median_b.high and ratio.low > 1:
        return Comparison(ratio, "slower", "the intervals over rounds do not overlap.")
    return Comparison(ratio, "no difference shown", "the intervals over rounds overlap.")


def drift(samples: ArrayLike) -> float:
    """Relative change of the median from the first half of samples [M] in time order to the second half; 0 if M < 2."""
    values = np.asarray(samples, dtype=np.float64)
    half = values.size // 2
    return float(np.median(values[-half:]) / np.median(values[:half]) - 1) if half else 0.0


def judge(
    rounds: Sequence[ArrayLike],
    *,
    cut_short: bool = False,
    throttling: Sequence[str] = (),
    slowdown: Sequence[str] = (),
    circumstances: Sequence[str] = (),
    provisos: Sequence[str] = (),
) -> Verdict:
    """Judge the rounds of a variant; each round is samples [M] in time order.

    Args:
        cut_short: a round reached its time limit before the planned samples and seconds.
        throttling: sentences that prove throttling, such as a counter that went up.
        slowdown: sentences that suggest throttling, such as a lower clock; they count only if latency rose too.
        circumstances: possible causes of noise, such as other load; added only to the verdict "noisy".
        provisos: sentences that are added to every verdict.
    """
    arrays = [np.asarray(samples, dtype=np.float64) for samples in rounds]
    slower = any(change > _DRIFT_LIMIT for change in _drifts(arrays))
    throttled = [*throttling, *(slowdown if slower else ())]
    few, noise = _too_few(arrays, cut_short), _noise(arrays)
    reasons = (*throttled, *few, *noise)
    if throttled:
        return Verdict("throttled", (*reasons, *provisos))
    if few:
        return Verdict("too_few_samples", (*reasons, *provisos))
    if noise:
        return Verdict("noisy", (*reasons, *circumstances, *provisos))
    return Verdict("stable", tuple(provisos))


def _too_few(arrays: Sequence[NDArray[np.float64]], cut_short: bool) -> list[str]:
    reasons = []
    total, needed = sum(array.size for array in arrays), required_samples(0.9)
    if total < needed:
        reasons.append(f"{total} samples, {needed} needed for p90.")
    if len(arrays) < 2:
        reasons.append(f"{len(arrays)} round, 2 needed for an interval.")
    if cut_short:
        reasons.append("a round reached max_seconds before its minimum of samples.")
    return reasons


def _noise(arrays: Sequence[NDArray[np.float64]]) -> list[str]:
    reasons = []
    medians = np.array([np.median(array) for array in arrays])
    spread = float((medians.max() - medians.min()) / np.median(medians))
    if spread > _SPREAD_LIMIT:
        reasons.append(f"round medians differ by {spread:.0%}.")
    within, across = _drifts(arrays)
    if abs(within) > _DRIFT_LIMIT:
        reasons.append(f"second half of a round against its first: {within:+.0%}.")
    if abs(across) > _DRIFT_LIMIT:
        reasons.append(f"late rounds against early ones: {across:+.0%}.")
    quartiles = [np.percentile(array, (25, 75)) / np.median(array) for array in arrays]
    distance = float(np.median([high - low for low, high in quartiles]))
    if distance > _QUARTILE_LIMIT:
        reasons.append(f"quartiles within a round are {distance:.0%} apart.")
    lost = float(np.median([array[array > 2 * np.median(array)].sum() / array.sum() for array in arrays]))
    if lost > _LOST_LIMIT:
        reasons.append(f"{lost:.0%} of a round's time is in inferences over twice its median.")
    slow, tenths = _slow_tenths(arrays)
    if slow > _TENTHS_SHARE * tenths:
        reasons.append(f"{slow} of {tenths} tenths of rounds are over {_TENTH_LIMIT:.0%} slower than their round.")
    return reasons


def _slow_tenths(arrays: Sequence[NDArray[np.float64]]) -> tuple[int, int]:
    """Count the slow tenths of rounds, and all tenths with enough samples."""
    slow = tenths = 0
    for array in arrays:
        length = array.size // 10
        if length >= _MIN_SAMPLES_OF_TENTH:
            medians = np.median(array[: 10 * length].reshape(10, length), axis=1)
            slow += int((medians > (1 + _TENTH_LIMIT) * np.median(array)).sum())
            tenths += 10
    return slow, tenths


def _drifts(arrays: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Median drift within a round, and drift of the round medians."""
    return float(np.median([drift(array) for array in arrays])), drift([np.median(array) for array in arrays])
