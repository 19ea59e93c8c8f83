"""Logit standardization."""

from __future__ import annotations

import pytest
import torch

from pipeline.distillation.losses.logits import standardize


def test_rows_have_mean_zero_and_unbiased_deviation_one() -> None:
    logits = 5 + 3 * torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = standardize(logits)
    torch.testing.assert_close(result.mean(dim=1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(result.std(dim=1), torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
    expected = (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_scale_and_shift_of_a_row_are_removed() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 10.0, 1000.0], dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(standardize(scale * logits - scale), standardize(logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3, 1e4])
@pytest.mark.parametrize("classes", [1, 3, 100])
def test_a_constant_row_becomes_zero_without_gradient(level: float, classes: int) -> None:
    logits = torch.full((2, classes), level, requires_grad=True)
    result = standardize(logits)
    result.square().sum().backward()
    assert logits.grad is not None
    assert torch.equal(result, torch.zeros(2, classes))
    assert torch.equal(logits.grad, torch.zeros(2, classes))


def test_the_gradient_agrees_with_finite_differences_beside_a_constant_row() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(standardize, logits)
