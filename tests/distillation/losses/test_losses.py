"""Properties of every logit loss, and the figures of the public implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.distillation.losses import make_loss
from pipeline.distillation.losses.base import ViewLogits
from pipeline.distillation.losses.dist import dist
from pipeline.distillation.losses.dkd import dkd
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.logits import standardize
from pipeline.distillation.losses.mlkd import batch_correlation, class_correlation, instance_level, mlkd
from tests.conftest import loss_params

PLAIN = {
    "kd": lambda student, teacher, labels, tau: kd(student, teacher, tau),
    "dkd": lambda student, teacher, labels, tau: dkd(student, teacher, labels, tau, alpha=1.0, beta=8.0),
    "mlkd": lambda student, teacher, labels, tau: mlkd(student, teacher, tau),
    "mlkd_instance": lambda student, teacher, labels, tau: instance_level(student, teacher, tau),
    "batch_correlation": lambda student, teacher, labels, tau: batch_correlation(student, teacher, tau),
    "class_correlation": lambda student, teacher, labels, tau: class_correlation(student, teacher, tau),
    "dist": lambda student, teacher, labels, tau: dist(student, teacher, tau, inter_weight=1.0, intra_weight=2.0),
    "dist_inter": lambda student, teacher, labels, tau: dist(student, teacher, tau, inter_weight=1.0, intra_weight=0.0),
}


def standardized(loss):
    return lambda student, teacher, labels, tau: loss(standardize(student), standardize(teacher), labels, tau)


LOSSES = PLAIN | {f"standardized_{name}": standardized(PLAIN[name]) for name in ("kd", "dkd", "mlkd", "dist")}
COUPLED = {"mlkd", "batch_correlation", "class_correlation", "dist", "standardized_mlkd", "standardized_dist"}
INDEPENDENT = LOSSES.keys() - COUPLED
any_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
independent_loss = pytest.mark.parametrize(
    "loss", [LOSSES[name] for name in sorted(INDEPENDENT)], ids=sorted(INDEPENDENT)
)
few_examples = settings(max_examples=20, deadline=None)


def sample(seed: int, batch: int = 6, classes: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(classes, (batch,), generator=generator)
    tau = 1 + 5 * torch.rand(batch, generator=generator, dtype=dtype)
    return student, teacher, labels, tau


def assert_finite_with_gradient(loss, student, teacher, labels, tau):
    student = student.clone().requires_grad_()
    values = loss(student, teacher, labels, tau)
    values.sum().backward()
    assert values.shape == labels.shape
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()
    return values.detach(), student.grad


# key of the golden figures, loss, temperature or key of the golden ones
REFERENCES = [
    ("kd_T4", "kd", 4.0),
    ("energykd_paper_r0.2", "kd", "temp_paper_r0.2"),
    ("energykd_paper_r0.3", "kd", "temp_paper_r0.3"),
    ("energykd_code_r0.2", "kd", "temp_code_r0.2"),
    ("energykd_code_r0.3", "kd", "temp_code_r0.3"),
    ("dkd_a1_b8_T4", "dkd", 4.0),
    ("energydkd_paper_r0.2_a1_b8", "dkd", "temp_paper_r0.2"),
    ("energydkd_paper_r0.3_a1_b8", "dkd", "temp_paper_r0.3"),
    ("energydkd_code_r0.2_a1_b8", "dkd", "temp_code_r0.2"),
    ("energydkd_code_r0.3_a1_b8", "dkd", "temp_code_r0.3"),
    ("kd_logitstd_T2", "standardized_kd", 2.0),
    ("cc_T4", "class_correlation", 4.0),
    ("bc_T4", "batch_correlation", 4.0),
]


def assert_equals_reference(loss, golden, key, temperature):
    student = torch.from_numpy(golden["student_logits"]).requires_grad_()
    teacher, labels = torch.from_numpy(golden["teacher_logits"]), torch.from_numpy(golden["labels"])
    tau = torch.from_numpy(golden[temperature]) if isinstance(temperature, str) else temperature
    mean = loss(student, teacher, labels, tau).mean()
    mean.backward()
    np.testing.assert_allclose(mean.item(), golden[f"{key}_loss"], rtol=1e-5)
    scale = np.abs(golden[f"{key}_grad"]).max()
    np.testing.assert_allclose(student.grad, golden[f"{key}_grad"], rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("key", "loss", "temperature"), REFERENCES)
def test_value_and_gradient_equal_the_reference(golden, key, loss, temperature):
    assert_equals_reference(LOSSES[loss], golden, key, temperature)


@pytest.mark.parametrize(("key", "loss", "temperature"), [case for case in REFERENCES if case[1] in ("kd", "dkd")])
def test_the_term_of_a_loss_object_equals_the_reference_and_has_the_weight_of_params_yaml(
    params, golden, key, loss, temperature
):
    warm = {"warmup_epochs": 5.0} if loss == "dkd" else {}
    chosen = params.distill.model_copy(update={"loss": loss_params(loss, kd_weight=0.7, **warm)})
    base = make_loss(chosen, nn.Identity(), nn.Identity(), (3, 32, 32))

    def values(student, teacher, labels, tau):
        [term] = base.terms(ViewLogits(student, teacher, teacher, labels, tau, strong=False), epoch=1)
        assert term.weight == pytest.approx(0.7 * (2 / 5 if loss == "dkd" else 1))
        return term.values

    assert base.needs_teacher
    assert_equals_reference(values, golden, key, temperature)


@any_loss
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 10))
@few_examples
def test_a_constant_temperature_vector_equals_the_scalar(loss, seed, temperature):
    student, teacher, labels, _ = sample(seed)
    vector = torch.full((len(labels),), temperature, dtype=torch.float64)
    torch.testing.assert_close(
        loss(student, teacher, labels, vector), loss(student, teacher, labels, temperature), rtol=1e-6, atol=1e-9
    )


@any_loss
@pytest.mark.parametrize("temperature", [0.7, 3.3])
def test_a_temperature_that_float32_cannot_hold_is_as_exact_as_a_vector_of_it(loss, temperature):
    student, teacher, labels, _ = sample(9)
    vector = torch.full((len(labels),), temperature, dtype=torch.float64)
    assert vector.float().double()[0] != temperature
    torch.testing.assert_close(
        loss(student, teacher, labels, temperature), loss(student, teacher, labels, vector), rtol=1e-12, atol=1e-13
    )


@any_loss
@given(seed=st.integers(0, 999), data=st.data())
@few_examples
def test_permuting_the_batch_permutes_the_values(loss, seed, data):
    student, teacher, labels, tau = sample(seed)
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    torch.testing.assert_close(
        loss(student[order], teacher[order], labels[order], tau[order]), loss(student, teacher, labels, tau)[order]
    )


@independent_loss
@given(seed=st.integers(0, 999))
@few_examples
def test_each_value_depends_on_its_own_row_only(loss, seed):
    student, teacher, labels, tau = sample(seed)
    whole = loss(student, teacher, labels, tau)
    assert whole.shape == labels.shape
    rows = [loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], tau[i : i + 1]) for i in range(len(labels))]
    torch.testing.assert_close(whole, torch.cat(rows))


@any_loss
@given(seed=st.integers(0, 999), shifts=st.lists(st.floats(-50, 50), min_size=6, max_size=6))
@few_examples
def test_shifting_the_logits_of_a_row_changes_nothing(loss, seed, shifts):
    student, teacher, labels, tau = sample(seed)
    shift = torch.tensor(shifts, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        loss(student + shift, teacher - shift, labels, tau), loss(student, teacher, labels, tau), rtol=1e-6, atol=1e-9
    )


@any_loss
def test_gradients_agree_with_finite_differences(loss):
    student, teacher, labels, tau = sample(1)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, labels, tau), student.requires_grad_())


@any_loss
@given(seed=st.integers(0, 999))
@few_examples
def test_the_mean_is_never_negative(loss, seed):
    assert loss(*sample(seed)).mean() >= 0


@any_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_give_finite_values_and_gradients(loss, dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype)
    assert_finite_with_gradient(loss, student, teacher, torch.tensor([0, 2]), torch.tensor([6.0, 2.0]))


@any_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e2, 1e4]))
@few_examples
def test_logits_of_any_size_give_finite_values_and_gradients(loss, dtype, seed, scale):
    student, teacher, labels, tau = sample(seed, dtype=torch.float32)
    assert_finite_with_gradient(loss, (scale * student).to(dtype), teacher.to(dtype), labels, tau)
    assert_finite_with_gradient(loss, student.to(dtype), (scale * teacher).to(dtype), labels, tau)


@any_loss
def test_classes_of_probability_zero_give_finite_values_and_gradients(loss):
    student, teacher, labels, tau = sample(5, dtype=torch.float32)
    teacher[:, 1] = -1e4
    student[:3, 2] = -1e4
    assert torch.softmax(teacher, dim=1)[0, 1] == 0
    assert_finite_with_gradient(loss, student, teacher, labels, tau)


@any_loss
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_constant_rows_give_finite_values_and_moderate_gradients(loss, level):
    student, teacher, labels, tau = sample(6, dtype=torch.float32)
    student[2] = level
    _, gradient = assert_finite_with_gradient(loss, student, teacher, labels, tau)
    assert gradient.abs().max() < 1e3
    teacher[2:4] = level
    _, gradient = assert_finite_with_gradient(loss, student, teacher, labels, tau)
    assert gradient.abs().max() < 1e3
    assert_finite_with_gradient(loss, torch.full_like(student, level), teacher, labels, tau)


@any_loss
def test_one_sample_is_enough(loss):
    assert_finite_with_gradient(loss, *sample(7, batch=1))


@any_loss
def test_equal_logits_cost_nothing(loss):
    student, _, labels, tau = sample(2)
    torch.testing.assert_close(loss(student, student, labels, tau), torch.zeros(len(labels), dtype=torch.float64))


@any_loss
def test_two_classes_are_enough(loss):
    assert_finite_with_gradient(loss, *sample(3, classes=2))


@any_loss
def test_low_precision_logits_are_computed_in_float32(loss):
    student, teacher, labels, tau = sample(8, dtype=torch.bfloat16)
    values = loss(student, teacher, labels, tau)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, loss(student.float(), teacher.float(), labels, tau))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(student.float(), teacher.float(), labels, tau), values)


@any_loss
def test_a_temperature_vector_of_another_length_is_refused(loss):
    student, teacher, labels, _ = sample(4)
    with pytest.raises(ValueError, match="3 temperatures for a batch of 6"):
        loss(student, teacher, labels, torch.ones(3))
