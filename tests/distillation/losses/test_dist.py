"""The two correlations of DIST."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distillation.losses.dist import dist
from tests.distillation.losses.test_losses import sample


def pearson(first, second):
    return torch.stack([torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(first, second, strict=True)])


def probabilities(student, teacher, tau):
    return torch.softmax(student / tau, 1), torch.softmax(teacher / tau, 1)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_inter_class_part_is_one_minus_the_correlation_of_the_row(seed):
    student, teacher, _, tau = sample(seed)
    expected = tau.square() * (1 - pearson(*probabilities(student, teacher, tau.unsqueeze(1))))
    torch.testing.assert_close(dist(student, teacher, tau, 1.0, 0.0), expected)


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_intra_class_parts_average_to_one_minus_the_correlation_of_the_classes(seed):
    student, teacher, _, _ = sample(seed)
    ours, theirs = probabilities(student, teacher, 3.0)
    values = dist(student, teacher, 3.0, 0.0, 1.0)
    assert (values >= 0).all()
    torch.testing.assert_close(values.mean(), 9 * (1 - pearson(ours.T, theirs.T)).mean())


def test_the_weights_add_up():
    student, teacher, _, tau = sample(1)
    expected = 2 * dist(student, teacher, tau, 1.0, 0.0) + 3 * dist(student, teacher, tau, 0.0, 1.0)
    torch.testing.assert_close(dist(student, teacher, tau, 2.0, 3.0), expected)


def test_one_sample_has_no_intra_class_part():
    student, teacher, _, tau = sample(2, batch=1)
    assert dist(student, teacher, tau, 0.0, 1.0).item() == 0


def test_a_constant_row_costs_one_half_against_another_row_and_nothing_against_a_constant_one():
    student, teacher, _, _ = sample(3)
    student[0], student[1], teacher[1] = 0.1, 0.1, 7.0
    values = dist(student.requires_grad_(), teacher, 2.0, 1.0, 0.0)
    values.sum().backward()
    torch.testing.assert_close(values[:2].detach(), torch.tensor([4 * 0.5, 0.0], dtype=torch.float64))
    assert torch.equal(student.grad[:2], torch.zeros(2, 5, dtype=torch.float64))


def test_a_class_that_no_sample_has_stays_finite():
    student, teacher, _, tau = sample(4, dtype=torch.float32)
    teacher[:, 0] = -1e4
    student[:, 3] = -1e4
    values = dist(student.requires_grad_(), teacher, tau, 1.0, 1.0)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()
