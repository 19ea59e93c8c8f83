"""Means, spread and differences of arms over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference.

    Attributes:
        value: mean over the seeds.
        half_width: of the 95 % interval; None where there are too few seeds or arms for one.
        stands_out: whether the difference is still clear of zero when the interval is widened (Bonferroni) for as many
            comparisons as the study makes.
    """

    value: float
    half_width: float | None
    stands_out: bool


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation; None for fewer than two values."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def differences(arms: Mapping[str, Sequence[float]], reference: str) -> dict[str, Difference]:
    """Each other arm against the reference, seed by seed.

    An arm has few seeds, so its own spread says little. As in a randomised block design, the noise is estimated from
    all arms together: the residual of arm + seed effects, with (arms - 1) * (seeds - 1) degrees of freedom. It assumes
    that the arms are equally noisy.

    Args:
        arms: name -> one value per seed, seeds in the same order.
        reference: the name of one of them.
    """
    table = np.array([list(values) for values in arms.values()])
    count, seeds = table.shape
    means = table.mean(axis=1)
    freedom = (count - 1) * (seeds - 1)
    error = 0.0
    if freedom:
        residual = table - means[:, None] - table.mean(axis=0) + table.mean()
        error = float(np.sqrt(2 * np.square(residual).sum() / freedom / seeds))
    base = means[list(arms).index(reference)]
    result = {}
    for name, mean in zip(arms, means, strict=True):
        if name == reference:
            continue
        value = float(mean - base)
        half = error * _quantile(freedom, 1) if freedom else None
        stands_out = bool(freedom) and abs(value) > error * _quantile(freedom, count - 1)
        result[name] = Difference(value, half, stands_out)
    return result


def _quantile(freedom: int, comparisons: int) -> float:
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, freedom))
