"""Means, spread and differences of arms over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """One arm minus another.

    Attributes:
        value: mean over the seeds.
        half_width: of the 95 % interval; None where there are too few seeds or arms for one.
        stands_out: whether the interval excludes zero even when it is widened (Bonferroni) for all comparisons of the
            study.
    """

    value: float
    half_width: float | None
    stands_out: bool


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation; None for fewer than two values."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def differences(
    arms: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]], comparisons: int
) -> list[Difference]:
    """The first arm of each pair minus the second, seed by seed.

    An arm has few seeds, so its own spread says little. As in a randomised block design, the noise is estimated from
    all arms together: the residual of arm + seed effects, with (arms - 1) * (seeds - 1) degrees of freedom. It assumes
    that the arms are equally noisy.

    Args:
        arms: name -> one value per seed, seeds in the same order.
        pairs: of names.
        comparisons: number of comparisons in the whole study.
    """
    table = np.array([list(values) for values in arms.values()])
    count, seeds = table.shape
    means = dict(zip(arms, table.mean(axis=1), strict=True))
    freedom = (count - 1) * (seeds - 1)
    error = 0.0
    if freedom:
        residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        error = float(np.sqrt(2 * np.square(residual).sum() / freedom / seeds))
    result = []
    for first, second in pairs:
        value = float(means[first] - means[second])
        half = error * _quantile(freedom, 1) if freedom else None
        stands_out = bool(freedom) and abs(value) > error * _quantile(freedom, comparisons)
        result.append(Difference(value, half, stands_out))
    return result


def _quantile(freedom: int, comparisons: int) -> float:
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, freedom))
