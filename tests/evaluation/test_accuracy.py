from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.accuracy import (
    balanced_accuracy,
    expected_calibration_error,
    is_long_tailed,
    shot_accuracy,
    shot_groups,
)
from pipeline.portable.accuracy import group_accuracy, paired_difference, top1_correct

flags = st.lists(st.booleans(), min_size=1, max_size=60).map(np.array)


def test_top1_counts_the_largest_logit():
    logits = np.array([[1.0, 3.0], [2.0, 0.0]], np.float32)
    assert top1_correct(logits, np.array([1, 1])).tolist() == [True, False]


def test_an_empty_group_has_no_accuracy():
    result = group_accuracy(np.array([True, False, True]), np.array([0, 0, 2], np.int8))
    assert result == {"low": 0.5, "mid": None, "high": 1.0}


def test_balanced_accuracy_weighs_classes_alike():
    correct = np.array([True, True, True, True, False])
    assert balanced_accuracy(correct, np.array([0, 0, 0, 0, 3])) == pytest.approx(0.5)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    logits = np.array([[50.0, 0.0]] * 4, np.float32)
    assert expected_calibration_error(logits, np.zeros(4, np.int64)) == pytest.approx(0.0, abs=1e-6)
    assert expected_calibration_error(logits, np.ones(4, np.int64)) == pytest.approx(1.0, abs=1e-6)
    even = np.zeros((4, 2), np.float32)
    assert expected_calibration_error(even, np.array([0, 0, 1, 1])) == pytest.approx(0.0, abs=1e-6)


@given(flags, st.integers(0, 99))
def test_the_difference_is_antisymmetric(correct, seed):
    other = np.random.default_rng(seed).random(len(correct)) < 0.5
    there, back = paired_difference(correct, other), paired_difference(other, correct)
    assert there.value == pytest.approx(correct.mean() - other.mean())
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low < there.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    # a file that is right where the reference is wrong in 4 % and wrong where it is right in 6 % of images
    hits = 0
    for _ in range(2000):
        cell = generator.choice(3, size=360, p=[0.04, 0.06, 0.90])
        interval = paired_difference(cell != 1, cell != 0)
        hits += interval.low <= -0.02 <= interval.high
    assert 0.93 <= hits / 2000 <= 0.98


@given(flags)
@settings(max_examples=30)
def test_no_disagreement_is_no_difference_but_not_certainty(correct):
    difference = paired_difference(correct, correct)
    assert difference.value == 0
    assert difference.low < 0 < difference.high


def test_classes_are_many_medium_and_few_shot_by_their_training_images():
    groups = shot_groups(np.array([500, 101, 100, 20, 19, 1]), many_above=100, few_below=20)
    assert {name: np.flatnonzero(members).tolist() for name, members in groups.items()} == {
        "many": [0, 1],
        "medium": [2, 3],
        "few": [4, 5],
    }


def test_within_a_group_of_classes_each_class_counts_alike():
    groups = shot_groups(np.array([500, 200, 5]), many_above=100, few_below=20)
    labels = np.array([0, 0, 0, 1, 2, 2])
    correct = np.array([True, True, True, False, True, False])
    found = shot_accuracy(correct, labels, groups)
    assert (found.top1_many_shot, found.top1_medium_shot, found.top1_few_shot) == (0.5, None, 0.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([4500, 2000, 450], True), ([99, 100, 102], False), ([200, 100], True), ([101, 99], False)],
)
def test_a_tail_is_one_of_sizes_and_not_of_limits(counts, expected):
    assert is_long_tailed(np.array(counts)) is expected
