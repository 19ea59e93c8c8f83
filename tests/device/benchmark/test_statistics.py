from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.device.benchmark.statistics import (
    MIN_ROUNDS_TO_COMPARE,
    compare,
    drift,
    judge,
    median_of_rounds,
    percentile,
    required_samples,
)

LATENCIES = st.floats(0.01, 1e4, allow_nan=False)
STEADY = np.full(100, 5.0)


@pytest.mark.parametrize(("p", "count"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662)])
def test_a_percentile_needs_the_samples_of_loadgens_rule(p: float, count: int) -> None:
    assert required_samples(p) == count


@given(st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.99]))
def test_the_rule_is_the_smallest_count_that_holds(p: float) -> None:
    def chance_of_at_most_one_over(n: int) -> float:
        return math.comb(n, 0) * p**n + n * (1 - p) * p ** (n - 1)

    n = required_samples(p)
    assert chance_of_at_most_one_over(n) <= 0.01 < chance_of_at_most_one_over(n - 1)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.95, 0.99])
def test_a_percentile_is_none_with_a_reason_until_the_count_carries_it(p: float) -> None:
    needed = required_samples(p)
    short = percentile(np.arange(needed - 1), p)
    assert short.value is None
    assert short.reason == f"p{p * 100:g} not measured: {needed - 1} samples, {needed} needed."
    enough = percentile(np.arange(needed), p)
    assert enough.value == pytest.approx(np.quantile(np.arange(needed), p))
    assert enough.reason is None


@given(st.lists(LATENCIES, min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_percentiles_rise_and_lie_within_the_samples(few: list[float]) -> None:
    samples = few * 662
    values = [percentile(samples, p).value for p in (0.5, 0.9, 0.95, 0.99)]
    assert all(value is not None for value in values)
    assert values == sorted(values)  # type: ignore[type-var]
    assert min(samples) <= values[0]  # type: ignore[operator]
    assert values[-1] <= max(samples)  # type: ignore[operator]


@given(st.lists(LATENCIES, min_size=1, max_size=20), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_a_percentile_does_not_depend_on_the_order(few: list[float], random: object) -> None:
    samples = few * 64
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert percentile(samples, 0.9) == percentile(shuffled, 0.9)


@given(st.lists(LATENCIES, min_size=1, max_size=12), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_interval_holds_the_median_and_stays_within_the_rounds(medians: list[float], seed: int) -> None:
    found = median_of_rounds(medians, seed)
    assert min(medians) <= found.low <= found.value <= found.high <= max(medians)
    assert found.value == pytest.approx(np.median(medians))


@given(st.lists(LATENCIES, min_size=2, max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_interval_does_not_depend_on_the_order_of_rounds(medians: list[float], random: object) -> None:
    shuffled = list(medians)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert median_of_rounds(medians) == median_of_rounds(shuffled)


@given(st.lists(st.lists(LATENCIES, min_size=1, max_size=30), min_size=2, max_size=5))
@settings(max_examples=50, deadline=None)
def test_up_to_five_rounds_the_interval_holds_the_median_of_all_samples(rounds: list[list[float]]) -> None:
    found = median_of_rounds([float(np.median(samples)) for samples in rounds])
    pooled = float(np.median(np.concatenate(rounds)))
    assert found.low - 1e-9 * pooled <= pooled <= found.high + 1e-9 * pooled


def test_separate_rounds_are_faster_and_slower() -> None:
    fast, slow = [1.0, 1.01, 1.02, 1.01, 1.0], [2.0, 2.02, 2.01, 2.0, 2.03]
    found = compare(fast, slow)
    assert found.verdict == "faster"
    assert found.ratio.low <= found.ratio.value <= found.ratio.high < 1
    assert compare(slow, fast).verdict == "slower"


def test_overlapping_rounds_show_no_difference() -> None:
    found = compare([1.0, 1.2, 1.4, 1.6], [1.1, 1.3, 1.5, 1.7])
    assert found.verdict == "no difference shown"
    assert found.reason == "the intervals over rounds overlap."


@pytest.mark.parametrize("rounds", range(1, MIN_ROUNDS_TO_COMPARE))
def test_few_rounds_show_no_difference_however_far_apart(rounds: int) -> None:
    found = compare([1.0] * rounds, [100.0] * rounds)
    assert found.verdict == "no difference shown"
    assert found.reason == "needs 4 rounds of each."


@given(st.lists(LATENCIES, min_size=4, max_size=8), st.lists(LATENCIES, min_size=4, max_size=8))
@settings(max_examples=50, deadline=None)
def test_no_variant_is_both_faster_and_slower(a: list[float], b: list[float]) -> None:
    opposite = {"faster": "slower", "slower": "faster", "no difference shown": "no difference shown"}
    assert compare(b, a).verdict == opposite[compare(a, b).verdict]


@given(st.lists(LATENCIES, min_size=4, max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_variant_is_not_faster_than_itself(medians: list[float]) -> None:
    assert compare(medians, medians).verdict == "no difference shown"


def test_equal_variants_are_rarely_called_different() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(10, 1, size=(300, 2, 5))
    wrong = sum(compare(a.tolist(), b.tolist()).verdict != "no difference shown" for a, b in draws)
    assert wrong / len(draws) < 0.05


def test_drift_is_the_second_half_against_the_first() -> None:
    assert drift([10.0, 10.0, 12.0, 12.0]) == pytest.approx(0.2)
    assert drift([10.0, 99.0, 5.0]) == pytest.approx(-0.5)
    assert drift([10.0]) == 0.0


def test_steady_rounds_are_stable() -> None:
    verdict = judge([STEADY, STEADY * 1.02, STEADY * 0.99])
    assert (verdict.name, verdict.reasons) == ("stable", ())


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([STEADY, STEADY * 1.3], "round medians differ by 26%."),
        ([np.repeat([5.0, 6.0], 50)] * 3, "second half of a round against its first: +20%."),
        ([np.tile([5.0, 7.0], 50)] * 3, "quartiles within a round are 33% apart."),
    ],
)
def test_unsteady_rounds_are_noisy_with_the_reason(rounds: list[np.ndarray], reason: str) -> None:
    verdict = judge(rounds, circumstances=["the load average was 6.0 on 2 cores before measuring."])
    assert verdict.name == "noisy"
    assert reason in verdict.reasons
    assert verdict.reasons[-1] == "the load average was 6.0 on 2 cores before measuring."


@pytest.mark.parametrize(
    ("rounds", "cut_short", "reason"),
    [
        ([STEADY[:10], STEADY[:10]], False, "20 samples, 64 needed for p90."),
        ([STEADY], False, "1 round, 2 needed for an interval."),
        ([STEADY, STEADY], True, "a round reached max_seconds before its minimum of samples."),
    ],
)
def test_short_measurements_have_too_few_samples(rounds: list[np.ndarray], cut_short: bool, reason: str) -> None:
    verdict = judge(rounds, cut_short=cut_short)
    assert (verdict.name, verdict.reasons) == ("too_few_samples", (reason,))


def test_proof_of_throttling_is_enough() -> None:
    verdict = judge([STEADY, STEADY], throttling=["vcgencmd reports throttled."])
    assert (verdict.name, verdict.reasons) == ("throttled", ("vcgencmd reports throttled.",))


def test_a_lower_clock_is_throttling_only_where_latency_rose() -> None:
    lower = ["the CPU clock fell from 2400 to 1500 MHz."]
    rising = np.repeat([5.0, 6.0], 50)
    assert judge([STEADY, STEADY], slowdown=lower).name == "stable"
    assert judge([rising, rising], slowdown=lower).name == "throttled"
    assert judge([rising[::-1], rising[::-1]], slowdown=lower).name == "noisy"


def test_drift_without_evidence_from_the_device_is_noise() -> None:
    rising = np.repeat([5.0, 6.0], 50)
    assert judge([rising, rising]).name == "noisy"


def test_rising_rounds_with_a_lower_clock_are_throttled() -> None:
    rounds = [STEADY, STEADY, STEADY * 1.4, STEADY * 1.4]
    assert judge(rounds, slowdown=["the CPU clock fell from 2400 to 1500 MHz."]).name == "throttled"
