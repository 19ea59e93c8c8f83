from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.ablation.statistics import differences, mean_and_deviation


def test_one_value_has_no_deviation():
    assert mean_and_deviation([0.5]) == (0.5, None)
    assert mean_and_deviation([0.4, 0.6]) == pytest.approx((0.5, 0.1414), abs=1e-4)


def test_with_two_arms_it_is_the_paired_t_interval():
    first, second = [0.70, 0.72, 0.75, 0.71], [0.73, 0.74, 0.77, 0.75]
    [found] = differences({"a": first, "b": second}, [("b", "a")], 1)
    paired = np.subtract(second, first)
    expected = stats.t.interval(0.95, 3, loc=paired.mean(), scale=stats.sem(paired))
    assert (found.value - found.half_width, found.value + found.half_width) == pytest.approx(expected)


def test_an_effect_of_the_seed_on_all_arms_is_not_noise():
    seed_effect = np.array([0.0, 0.1, 0.2])
    arms = {"a": seed_effect, "b": seed_effect + 0.01, "c": seed_effect}
    first, second = differences(arms, [("b", "a"), ("a", "b")], 2)
    assert first.value == pytest.approx(0.01)
    assert second.value == pytest.approx(-0.01)
    assert first.half_width == pytest.approx(0.0, abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        table = generator.normal(0, 1, (6, 3)) + generator.normal(0, 5, 3)
        [found] = differences(dict(zip("abcdef", table, strict=True)), [("b", "a")], 1)
        covered.append(abs(found.value) <= found.half_width)
    assert 0.92 < np.mean(covered) < 0.98


def test_chance_stands_out_in_fewer_than_one_study_of_twenty():
    generator = np.random.default_rng(1)
    names = "abcdefghijkl"
    alarms = []
    for _ in range(300):
        arms = dict(zip(names, generator.normal(0, 1, (12, 3)), strict=True))
        found = differences(arms, [(name, "a") for name in names[1:]], 11)
        alarms.append(any(one.stands_out for one in found))
    assert np.mean(alarms) < 0.07


@pytest.mark.parametrize("arms", [{"a": [0.1], "b": [0.2]}, {"a": [0.1, 0.2]}])
def test_one_seed_or_one_arm_has_no_interval(arms):
    [found] = differences(arms, [(list(arms)[-1], "a")], 1)
    assert found.half_width is None
    assert not found.stands_out
