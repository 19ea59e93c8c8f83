from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distillation.sample_weight import entropy_weight

scales = st.floats(0, 1e4)


def logits(seed: int, scale: float, classes: int = 6) -> torch.Tensor:
    return scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))


def test_the_weights_equal_the_reference(golden):
    student, teacher = (torch.from_numpy(golden[f"{role}_logits"]) for role in ("student", "teacher"))
    weights = entropy_weight(student, teacher)
    np.testing.assert_allclose(weights, golden["weight_t3_log100"], rtol=1e-5)
    assert float(weights.mean()) > 3, "the mean is not 1: a control has this weight for all images"


@given(st.integers(0, 999), st.integers(2, 50), scales, scales)
def test_weights_lie_between_zero_and_the_largest_entropy(seed, classes, ours, theirs):
    weights = entropy_weight(logits(seed, ours, classes), logits(seed + 1, theirs, classes))
    assert weights.shape == (5,)
    assert (weights >= 0).all()
    assert (weights <= math.log(classes) * (1 + 1e-5)).all()


@given(st.integers(0, 999), scales, st.floats(-100, 100))
def test_a_certain_teacher_gives_no_weight_whatever_the_student(seed, scale, shift):
    one_hot = 1e4 * torch.eye(6)[:5] + shift
    assert entropy_weight(logits(seed, scale), one_hot).tolist() == [0.0] * 5


def test_of_uniform_answers_the_weight_is_the_largest_entropy_and_half_of_it_with_a_certain_student():
    uniform, certain = torch.zeros(1, 8), 1e4 * torch.eye(8)[:1]
    assert entropy_weight(uniform, uniform).item() == pytest.approx(math.log(8))
    assert entropy_weight(certain, uniform).item() == pytest.approx(math.log(8) / 2)


def test_a_weight_has_no_gradient_and_is_computed_in_float32_at_least():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        ours, theirs = (logits(seed, 30.0).to(dtype).requires_grad_() for seed in (0, 1))
        weights = entropy_weight(ours, theirs)
        assert not weights.requires_grad
        assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            weights.double(), entropy_weight(ours.double(), theirs.double()), rtol=1e-5, atol=1e-6
        )
