"""What latency samples can carry: percentiles, intervals over rounds, comparisons, verdicts.

A round is one fresh process that measured one variant. Samples within a round share its memory layout, clock and
neighbours, so the uncertainty of a number is taken over rounds, never over samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.99
ALLOWED_OVER_LIMIT = 1
# Relative limits above which a number is called noisy.
SPREAD_LIMIT = 0.10  # range of the round medians
DRIFT_LIMIT = 0.10  # second half of a round against its first, or late rounds against early ones
QUARTILE_LIMIT = 0.20  # distance of the quartiles
TENTH_LIMIT = 0.10  # median of a tenth of a round against that of the round
TENTHS_SHARE = 0.10  # of the tenths that may be above it; more reach into p90
_MIN_SAMPLES_OF_TENTH = 5
LOST_LIMIT = 0.10  # of a round's time, in inferences over twice its median: what another program takes in small pieces
# With r rounds each, one variant's all lie below the other's by chance in 2 of C(2r, r) orders: 10 % at 3, 2.9 % at 4.
MIN_ROUNDS_TO_COMPARE = 4
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)

VerdictName = Literal["stable", "noisy", "throttled", "too_few_samples"]


@dataclass(frozen=True)
class Percentile:
    """A percentile in the unit of the samples, or None with the reason why the samples do not carry it."""

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
    """How the latency of one variant relates to that of another.

    Attributes:
        ratio: latency of the first over latency of the second, with its interval; below 1 the first is faster.
        verdict: about the first.
    """

    ratio: Interval
    verdict: Literal["faster", "slower", "no difference shown"]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether a number can be relied on, and all reasons why not."""

    name: VerdictName
    reasons: tuple[str, ...]


def required_samples(percentile: float) -> int:
    """Samples that a percentile needs, with p in (0, 1): 64 for 0.90, 130 for 0.95, 662 for 0.99.

    MLPerf LoadGen's early-stopping rule: the smallest n with P(Binomial(n, 1 - p) <= 1) <= 1 %, so that with 99 %
    confidence no more than 1 - p of all inferences are over the limit if one of n is.
    """
    over = 1 - percentile
    n = ALLOWED_OVER_LIMIT + 1
    while _binomial_at_most(ALLOWED_OVER_LIMIT, n, over) > (1 - CONFIDENCE) * (1 + 1e-12):
        n += 1
    return n


def _binomial_at_most(successes: int, n: int, probability: float) -> float:
    return math.fsum(math.comb(n, k) * probability**k * (1 - probability) ** (n - k) for k in range(successes + 1))


def percentile(samples: ArrayLike, p: float) -> Percentile:
    """The plain empirical quantile of samples [M], with p in (0, 1), if their number carries it."""
    values = np.asarray(samples, dtype=np.float64)
    needed = required_samples(p)
    if values.size < needed:
        return Percentile(None, f"p{p * 100:g} not measured: {values.size} samples, {needed} needed.")
    return Percentile(float(np.quantile(values, p)), None)


def median_of_rounds(round_medians: Sequence[float], seed: int = 0) -> Interval:
    """Median of round medians [R] with its bootstrap interval over rounds; R >= 1.

    With one round the interval is that one value, so ask for more before trusting it.
    """
    ordered = np.sort(np.asarray(round_medians, dtype=np.float64))
    resampled = np.median(_resample(ordered, np.random.default_rng(seed)), axis=1)
    low, high = np.percentile(resampled, _INTERVAL)
    return Interval(float(np.median(ordered)), float(low), float(high))


def _resample(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """[_RESAMPLES, R] draws with replacement."""
    return values[generator.integers(0, values.size, size=(_RESAMPLES, values.size))]


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Compare the round medians of variant a with those of variant b, R >= 1 each.

    "faster" or "slower" needs ``MIN_ROUNDS_TO_COMPARE`` rounds each, a ratio whose interval excludes 1, and intervals
    of the two that do not overlap.
    """
    of_a, of_b = median_of_rounds(a, seed), median_of_rounds(b, seed)
    generator = np.random.default_rng(seed)
    draws = [np.median(_resample(np.sort(np.asarray(x, dtype=np.float64)), generator), axis=1) for x in (a, b)]
    low, high = np.percentile(draws[0] / draws[1], _INTERVAL)
    ratio = Interval(of_a.value / of_b.value, float(low), float(high))
    if min(len(a), len(b)) < MIN_ROUNDS_TO_COMPARE:
        return Comparison(ratio, "no difference shown", f"needs {MIN_ROUNDS_TO_COMPARE} rounds of each.")
    if of_a.high < of_b.low and ratio.high < 1:
        return Comparison(ratio, "faster", "the intervals over rounds do not overlap.")
    if of_a.low > of_b.high and ratio.low > 1:
        return Comparison(ratio, "slower", "the intervals over rounds do not overlap.")
    return Comparison(ratio, "no difference shown", "the intervals over rounds overlap.")


def drift(samples: ArrayLike) -> float:
    """Relative change of the median from the first half of samples [M] in time order to the second; 0 if M < 2."""
    values = np.asarray(samples, dtype=np.float64)
    half = values.size // 2
    if half == 0:
        return 0.0
    return float(np.median(values[-half:]) / np.median(values[:half]) - 1)


def judge(
    rounds: Sequence[ArrayLike],
    *,
    cut_short: bool = False,
    throttling: Sequence[str] = (),
    slowdown: Sequence[str] = (),
    circumstances: Sequence[str] = (),
    provisos: Sequence[str] = (),
) -> Verdict:
    """The verdict on a variant's rounds, each samples [M] in time order.

    Args:
        cut_short: a round hit its hard maximum before it had the samples and seconds that the plan asks for.
        throttling: evidence that proves throttling, such as a counter that went up.
        slowdown: evidence that only suggests it, such as a lower clock; counts where latency rose too.
        circumstances: what may explain noise, such as other load; named only where there is noise.
        provisos: what has to be said whatever the samples are like; the last reasons of every verdict.
    """
    arrays = [np.asarray(samples, dtype=np.float64) for samples in rounds]
    noise = _noise(arrays)
    slower = any(change > DRIFT_LIMIT for change in _drifts(arrays))
    throttled = [*throttling, *(slowdown if slower else ())]
    few = _too_few(arrays, cut_short)
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
    if spread > SPREAD_LIMIT:
        reasons.append(f"round medians differ by {spread:.0%}.")
    within, across = _drifts(arrays)
    if abs(within) > DRIFT_LIMIT:
        reasons.append(f"second half of a round against its first: {within:+.0%}.")
    if abs(across) > DRIFT_LIMIT:
        reasons.append(f"late rounds against early ones: {across:+.0%}.")
    quartiles = [np.percentile(array, (25, 75)) / np.median(array) for array in arrays]
    distance = float(np.median([high - low for low, high in quartiles]))
    if distance > QUARTILE_LIMIT:
        reasons.append(f"quartiles within a round are {distance:.0%} apart.")
    lost = float(np.median([array[array > 2 * np.median(array)].sum() / array.sum() for array in arrays]))
    if lost > LOST_LIMIT:
        reasons.append(f"{lost:.0%} of a round's time is in inferences over twice its median.")
    slow, tenths = _slow_tenths(arrays)
    if slow > TENTHS_SHARE * tenths:
        reasons.append(f"{slow} of {tenths} tenths of rounds are over {TENTH_LIMIT:.0%} slower than their round.")
    return reasons


def _slow_tenths(arrays: Sequence[NDArray[np.float64]]) -> tuple[int, int]:
    """Tenths of rounds that something slowed down for a while, and tenths that are long enough to tell."""
    slow = tenths = 0
    for array in arrays:
        length = array.size // 10
        if length >= _MIN_SAMPLES_OF_TENTH:
            medians = np.median(array[: 10 * length].reshape(10, length), axis=1)
            slow += int((medians > (1 + TENTH_LIMIT) * np.median(array)).sum())
            tenths += 10
    return slow, tenths


def _drifts(arrays: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Typical drift within a round, and drift of the medians across rounds."""
    return float(np.median([drift(array) for array in arrays])), drift([np.median(array) for array in arrays])
