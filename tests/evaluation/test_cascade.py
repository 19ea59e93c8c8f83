"""Curves of cascades against a loop over the images, and the choice of a point."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.cascade import (
    SCORES,
    CascadePoint,
    cascade_correct,
    cascade_curve,
    cascade_curves,
    sent_on,
)
from pipeline.portable.accuracy import paired_difference
from pipeline.store.answers import FileAnswers, SplitAnswers

# few distinct values, so that many images have equal scores; and uncertainties that float32 hardly tells from zero
VALUES = np.float32([0, 1e-16, 1e-9, 0.125, 0.25, 0.3, 0.7, 0.875])
SCORE = st.sampled_from(SCORES)


def pair_of(seed: int, sizes: tuple[int, int], values: int) -> tuple[FileAnswers, FileAnswers]:
    """A small and a larger file with answers at random to equally many images."""
    generator = np.random.default_rng(seed)
    small, large = (
        FileAnswers(
            *(
                SplitAnswers(
                    generator.random(images) < 0.7,
                    -10 + 8 * generator.choice(VALUES[:values], images),
                    generator.choice(VALUES[:values], images),
                )
                for images in sizes
            )
        )
        for _ in range(2)
    )
    return small, large


def pairs() -> st.SearchStrategy[tuple[FileAnswers, FileAnswers]]:
    size = st.integers(1, 300)
    return st.builds(pair_of, st.integers(0, 2**32), st.tuples(size, size), st.integers(1, len(VALUES)))


def file_of(generator: np.random.Generator, top1: float, val: int = 200, test: int = 300) -> FileAnswers:
    """A file whose wrong answers are less certain than its right ones."""
    splits = []
    for images in (val, test):
        correct = generator.random(images) < top1
        doubt = np.clip(generator.normal(np.where(correct, 0.2, 0.5), 0.15), 0, 1).astype(np.float32)
        splits.append(SplitAnswers(correct, 6 * doubt - 12, doubt))
    return FileAnswers(*splits)


def by_hand(small: SplitAnswers, large: SplitAnswers, point: CascadePoint) -> tuple[float, float]:
    """Share sent on and top-1 of one split, image by image, as predict.py decides."""
    right, sent = 0, 0
    for own, other, energy, uncertainty in zip(
        small.correct, large.correct, small.energy, small.uncertainty, strict=True
    ):
        if point.threshold is None:
            goes = point.val_sent == 1
        elif point.score == "energy":
            goes = float(energy) > point.threshold
        else:
            goes = 1 - float(uncertainty) < point.threshold
        sent += goes
        right += bool(other if goes else own)
    return sent / len(small.correct), right / len(small.correct)


@given(pairs(), SCORE)
def test_each_point_is_what_a_loop_over_the_images_gives(pair, score):
    small, large = pair
    for point in cascade_curve(small, large, 1.0, 4.0, score):
        assert (point.val_sent, point.val_top1) == pytest.approx(by_hand(small.val, large.val, point), abs=1e-12)
        assert (point.sent, point.top1) == pytest.approx(by_hand(small.test, large.test, point), abs=1e-12)
        assert point.latency_ms == pytest.approx(1.0 + 4.0 * point.sent)


@given(pairs(), SCORE)
def test_a_curve_goes_from_the_small_file_to_the_larger_one_and_sends_ever_more_on(pair, score):
    small, large = pair
    curve = cascade_curve(small, large, 1.0, 4.0, score)
    first, *between, last = curve
    assert (first.val_sent, first.sent, first.threshold) == (0, 0, None)
    assert (last.val_sent, last.sent, last.threshold) == (1, 1, None)
    assert (first.val_top1, first.top1) == (small.val.correct.mean(), small.test.correct.mean())
    assert (last.val_top1, last.top1) == (large.val.correct.mean(), large.test.correct.mean())
    assert all(0 < point.val_sent < 1 and math.isfinite(point.threshold) for point in between)
    assert all(one.val_sent < other.val_sent and one.sent <= other.sent for one, other in pairwise(curve))
    thresholds = [point.threshold for point in between]
    assert thresholds == sorted(set(thresholds), reverse=score == "energy")
    assert json.loads(json.dumps([dataclasses.asdict(point) for point in curve], allow_nan=False))


@pytest.mark.parametrize("score", SCORES)
def test_thresholds_send_on_the_shares_of_the_validation_images_that_are_aimed_for(score):
    generator = np.random.default_rng(0)
    small, large = file_of(generator, 0.8, val=1000), file_of(generator, 0.9, val=1000)
    shares = [point.val_sent for point in cascade_curve(small, large, 1.0, 4.0, score)]
    # scores that were cut off at 0 are equal
    expected = [0, *np.arange(1, 10) / 100, *np.arange(10, 96, 5) / 100, 1]
    ties = int((small.val.uncertainty == 0).sum()) / 1000
    assert [share for share in shares if share < 1 - ties] == [share for share in expected if share < 1 - ties]


@given(pairs(), SCORE)
def test_images_of_equal_score_stay_together(pair, score):
    small, large = pair
    for point in cascade_curve(small, large, 1.0, 4.0, score):
        for answers in (small.val, small.test):
            sent, values = sent_on(answers, point), answers.energy if score == "energy" else answers.uncertainty
            assert all(len(set(sent[values == value])) == 1 for value in values)


@given(pairs(), st.floats(-1e-3, 1e-3))
def test_rounding_on_a_device_sends_no_validation_image_the_other_way(pair, error):
    small, large = pair
    moved = dataclasses.replace(small.val, energy=small.val.energy.astype(np.float64) + error)
    for point in cascade_curve(small, large, 1.0, 4.0, "energy"):
        np.testing.assert_array_equal(sent_on(moved, point), sent_on(small.val, point))


@given(pairs(), SCORE)
def test_correct_answers_of_the_cascade_are_paired_with_those_of_any_file(pair, score):
    small, large = pair
    for point in cascade_curve(small, large, 1.0, 4.0, score):
        correct = cascade_correct(small.test, large.test, point)
        assert correct.dtype == bool
        assert correct.mean() == pytest.approx(point.top1)
        difference = paired_difference(correct, large.test.correct)
        assert difference.value == pytest.approx(point.top1 - large.test.correct.mean())


def test_several_larger_files_at_once_give_the_curves_of_each():
    generator = np.random.default_rng(1)
    small, *larges = (file_of(generator, top1) for top1 in (0.7, 0.8, 0.9, 0.85))
    for score in SCORES:
        curves = cascade_curves(small, larges, 1.0, [2.0, 3.0, 5.0], score)
        assert curves == [
            cascade_curve(small, large, 1.0, latency, score)
            for large, latency in zip(larges, (2.0, 3.0, 5.0), strict=True)
        ]


def test_test_labels_change_no_threshold():
    generator = np.random.default_rng(2)
    small, large = file_of(generator, 0.8), file_of(generator, 0.9)
    wrong = FileAnswers(small.val, dataclasses.replace(small.test, correct=~small.test.correct))
    for score in SCORES:
        right, others = (cascade_curve(each, large, 1.0, 4.0, score) for each in (small, wrong))
        for point, other in zip(right, others, strict=True):
            assert (point.threshold, point.val_sent, point.val_top1) == (
                other.threshold,
                other.val_sent,
                other.val_top1,
            )
            assert point.sent == other.sent
        assert right[1].top1 != others[1].top1


def test_a_score_that_ranks_well_reaches_the_larger_file_with_few_images():
    """The small file is wrong where its energy is highest; its probability says nothing."""
    images = np.arange(100)
    correct, order = images < 90, np.random.default_rng(3).permutation(100)
    small = SplitAnswers(correct, np.float32(images), np.float32(order / 100))
    large = SplitAnswers(images != 5, np.zeros(100, np.float32), np.zeros(100, np.float32))
    files = FileAnswers(small, small), FileAnswers(large, large)
    found = {
        score: max(cascade_curve(*files, 1.0, 4.0, score), key=lambda point: (point.val_top1, -point.val_sent))
        for score in SCORES
    }
    assert (found["energy"].threshold, found["energy"].val_sent, found["energy"].top1) == (89.5, 0.1, 1.0)
    assert found["energy"].latency_ms == pytest.approx(1.4)
    assert found["probability"].val_sent > 0.5
