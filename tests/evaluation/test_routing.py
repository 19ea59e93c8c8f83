"""Thresholds and curves against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.routing import aurc, choose_threshold, kept_top1, route, softmax_uncertainty

SCORED = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=40)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    score, correct = zip(*pairs, strict=True)
    return np.array(score, dtype=np.float32), np.array(correct)


@given(SCORED, st.sampled_from([0.0, 0.5, 0.75, 0.9, 1.0]))
def test_the_threshold_keeps_the_most_images_with_the_wanted_accuracy(pairs, wanted):
    score, correct = arrays(pairs)
    threshold = choose_threshold(score, correct, wanted)
    kept = score <= threshold
    if kept.any():
        assert correct[kept].mean() >= wanted
    larger = [value for value in score if value > threshold]
    assert all(correct[score <= value].mean() < wanted for value in larger)
    assert (threshold == math.inf) == (correct.mean() >= wanted)
    assert kept.any() or threshold == -math.inf


@given(SCORED)
def test_accuracy_of_what_is_kept_counts_all_images_of_equal_score(pairs):
    score, correct = arrays(pairs)
    for value, top1 in zip(*kept_top1(score, correct), strict=True):
        assert top1 == pytest.approx(correct[score <= value].mean())


@given(SCORED, st.randoms())
def test_area_does_not_depend_on_the_order_of_the_images(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert aurc(*arrays(pairs)) == pytest.approx(aurc(*arrays(shuffled)))


def test_area_of_known_rankings():
    correct = np.array([True, True, False, False])
    assert aurc(np.array([1.0, 2.0, 3.0, 4.0]), correct) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert aurc(np.array([4.0, 3.0, 2.0, 1.0]), correct) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert aurc(np.zeros(4), correct) == pytest.approx(0.5), "a score that says nothing has the error rate"


def test_a_router_is_set_on_one_split_and_measured_on_the_other():
    validation = np.array([-4.0, -3.0, -2.0, -1.0]), np.array([True, True, False, True])
    test = np.array([-3.5, -3.0, -2.9, -1.0]), np.array([True, False, True, True])
    found = route(validation, test, 0.9)
    assert (found.threshold, found.coverage, found.kept, found.top1) == (-3.0, 0.5, 2, 0.5)
    assert len(found.curve) == 20
    assert found.curve[-1] == 0.75
    everything, nothing = route(validation, test, 0.75), route((validation[0], ~validation[1]), test, 0.9)
    assert (everything.threshold, everything.coverage, everything.top1) == (None, 1.0, 0.75)
    assert (nothing.threshold, nothing.coverage, nothing.top1) == (None, 0.0, None)


def test_uncertainty_is_one_minus_the_largest_probability():
    logits = np.float32([[0, 0], [1000, 0], [math.log(3), 0]])
    np.testing.assert_allclose(softmax_uncertainty(logits), [0.5, 0, 0.25], atol=1e-7)
