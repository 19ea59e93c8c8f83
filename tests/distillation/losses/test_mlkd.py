"""The levels of multi-level logit distillation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.mlkd import batch_correlation, class_correlation, instance_level, low_confidence, mlkd
from tests.distillation.losses.test_losses import sample

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def probabilities(seed):
    student, teacher, _, tau = sample(seed)
    column = tau.unsqueeze(1)
    return student, teacher, tau, torch.softmax(student / column, 1), torch.softmax(teacher / column, 1)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_batch_correlations_average_to_the_matrix_formula(seed):
    student, teacher, tau, ours, theirs = probabilities(seed)
    expected = (theirs @ theirs.T - ours @ ours.T).square().sum() / len(ours)
    torch.testing.assert_close(batch_correlation(student, teacher, tau).mean(), expected)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_class_correlations_average_to_the_matrix_formula(seed):
    student, teacher, tau, ours, theirs = probabilities(seed)
    expected = (theirs.T @ theirs - ours.T @ ours).square().sum() / ours.shape[1]
    torch.testing.assert_close(class_correlation(student, teacher, tau).mean(), expected)


def test_temperature_four_gives_the_set_of_the_paper():
    student, teacher, _, _ = sample(1)
    expected = sum(
        kd(student, teacher, tau) + batch_correlation(student, teacher, tau) + class_correlation(student, teacher, tau)
        for tau in TEMPERATURES
    )
    torch.testing.assert_close(mlkd(student, teacher, 4.0), expected)


def test_a_samples_temperature_scales_its_whole_set():
    student, teacher, _, _ = sample(2)
    tau = torch.tensor([2.0, 4.0, 6.0, 4.0, 2.0, 6.0], dtype=torch.float64)
    expected = sum(kd(student, teacher, tau * part / 4) for part in TEMPERATURES)
    torch.testing.assert_close(instance_level(student, teacher, tau), expected)


def test_base_is_the_temperature_that_stands_for_the_papers_set():
    student, teacher, _, tau = sample(3)
    torch.testing.assert_close(mlkd(student, teacher, tau, base=2.0), mlkd(student, teacher, 2 * tau))


def test_the_selection_leaves_out_the_instance_level_of_the_other_samples_only():
    student, teacher, _, tau = sample(4)
    chosen = torch.tensor([True, False, False, True, True, False])
    dropped = mlkd(student, teacher, tau) - mlkd(student, teacher, tau, instance_weight=chosen)
    torch.testing.assert_close(dropped, instance_level(student, teacher, tau) * ~chosen)


def test_a_selection_of_another_shape_is_refused():
    student, teacher, _, tau = sample(4)
    with pytest.raises(ValueError, match="instance_weight"):
        mlkd(student, teacher, tau, instance_weight=torch.ones(6, 1))


def test_low_confidence_is_the_half_with_the_smaller_largest_probability():
    levels = torch.tensor([3.0, 0.5, 9.0, 1.0])
    logits = torch.stack([levels, torch.zeros(4), torch.zeros(4)], dim=1)
    assert low_confidence(logits).tolist() == [False, True, False, True]
    assert low_confidence(logits[:3]).tolist() == [True, True, False]
    assert low_confidence(torch.zeros(3, 5, dtype=torch.bfloat16)).all()
