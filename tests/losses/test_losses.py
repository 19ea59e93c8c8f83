from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses import dkd, kd

LOSSES = {
    "kd": lambda student, teacher, labels, tau: kd(student, teacher, tau),
    "dkd": lambda student, teacher, labels, tau: dkd(student, teacher, labels, tau, alpha=1.0, beta=8.0),
}
any_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def sample(seed: int, batch: int = 6, classes: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(classes, (batch,), generator=generator)
    tau = 1 + 5 * torch.rand(batch, generator=generator, dtype=dtype)
    return student, teacher, labels, tau


@pytest.mark.parametrize(
    ("key", "loss", "temperature"),
    [
        ("kd_T4", "kd", None),
        ("energykd_paper_r0.2", "kd", "temp_paper_r0.2"),
        ("energykd_paper_r0.3", "kd", "temp_paper_r0.3"),
        ("energykd_code_r0.2", "kd", "temp_code_r0.2"),
        ("energykd_code_r0.3", "kd", "temp_code_r0.3"),
        ("dkd_a1_b8_T4", "dkd", None),
        ("energydkd_paper_r0.2_a1_b8", "dkd", "temp_paper_r0.2"),
        ("energydkd_paper_r0.3_a1_b8", "dkd", "temp_paper_r0.3"),
        ("energydkd_code_r0.2_a1_b8", "dkd", "temp_code_r0.2"),
        ("energydkd_code_r0.3_a1_b8", "dkd", "temp_code_r0.3"),
    ],
)
def test_value_and_gradient_equal_the_reference(golden, key, loss, temperature):
    student = torch.from_numpy(golden["student_logits"]).requires_grad_()
    teacher, labels = torch.from_numpy(golden["teacher_logits"]), torch.from_numpy(golden["labels"])
    tau = 4.0 if temperature is None else torch.from_numpy(golden[temperature])
    mean = LOSSES[loss](student, teacher, labels, tau).mean()
    mean.backward()
    np.testing.assert_allclose(mean.item(), golden[f"{key}_loss"], rtol=1e-5)
    scale = np.abs(golden[f"{key}_grad"]).max()
    np.testing.assert_allclose(student.grad, golden[f"{key}_grad"], rtol=1e-4, atol=1e-4 * scale)


@any_loss
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 10))
@settings(max_examples=20, deadline=None)
def test_a_constant_temperature_vector_equals_the_scalar(loss, seed, temperature):
    student, teacher, labels, _ = sample(seed)
    vector = torch.full((len(labels),), temperature, dtype=torch.float64)
    torch.testing.assert_close(
        loss(student, teacher, labels, vector), loss(student, teacher, labels, temperature), rtol=1e-6, atol=1e-9
    )


@any_loss
@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_each_value_depends_on_its_own_row_only(loss, seed):
    student, teacher, labels, tau = sample(seed)
    whole = loss(student, teacher, labels, tau)
    assert whole.shape == labels.shape
    rows = [loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], tau[i : i + 1]) for i in range(len(labels))]
    torch.testing.assert_close(whole, torch.cat(rows))


@any_loss
@given(seed=st.integers(0, 999), shift=st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_shifting_the_logits_of_a_row_changes_nothing(loss, seed, shift):
    student, teacher, labels, tau = sample(seed)
    torch.testing.assert_close(
        loss(student + shift, teacher - shift, labels, tau), loss(student, teacher, labels, tau), rtol=1e-6, atol=1e-9
    )


@any_loss
def test_gradients_agree_with_finite_differences(loss):
    student, teacher, labels, tau = sample(1)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, labels, tau), student.requires_grad_())


@any_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_finite_values_and_gradients(loss, dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype)
    values = loss(student, teacher, torch.tensor([0, 2]), torch.tensor([6.0, 2.0]))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@any_loss
def test_equal_logits_cost_nothing(loss):
    student, _, labels, tau = sample(2)
    torch.testing.assert_close(loss(student, student, labels, tau), torch.zeros(len(labels), dtype=torch.float64))


@any_loss
def test_two_classes_are_enough(loss):
    student, teacher, labels, tau = sample(3, classes=2)
    assert torch.isfinite(loss(student, teacher, labels, tau)).all()


def test_a_temperature_vector_of_another_length_is_refused():
    student, teacher, _, _ = sample(4)
    with pytest.raises(ValueError, match="3 temperatures for a batch of 6"):
        kd(student, teacher, torch.ones(3))
