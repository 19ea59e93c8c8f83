from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.loader import Batch
from pipeline.energy import EnergyGroups, energy_score, sample_temperatures
from pipeline.heda import Mixed
from pipeline.losses import dkd, kd
from pipeline.objective import Companion, Distillation, DistillationStep


class Linear(nn.Module):
    """A classifier without batch statistics, so that every term can be computed by hand."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(12, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.fixture
def setting(params):
    torch.manual_seed(0)
    batch = Batch(torch.randn(6, 3, 2, 2), torch.randint(4, (6,)), torch.tensor([5, 0, 3, 1, 9, 7]))
    mixed = Mixed(torch.randn(3, 3, 2, 2), torch.tensor([1, 2, 0]), 0.7)
    companion = Companion(mixed, torch.tensor([0, 1, 2]))
    groups = EnergyGroups.fit(torch.randn(10), 0.3, 0.3)
    return Linear(1), Linear(2), batch, companion, groups, params


def objective(setting, distill=None, heda=None):
    teacher, _, _, _, groups, params = setting
    return Distillation(
        teacher,
        groups,
        4.0,
        params.distill.model_copy(update=distill or {}),
        params.heda.model_copy(update=heda or {}),
    )


def stored_temperatures(setting):
    groups, batch = setting[4], setting[2]
    return sample_temperatures(groups.codes[batch.index], 6, 4, 2)


def test_kd_uses_the_stored_group_of_each_sample(setting):
    teacher, student, batch, *_ = setting
    loss = objective(setting)(student, DistillationStep(batch, None), epoch=0)
    hard = F.cross_entropy(student(batch.images), batch.labels)
    soft = kd(student(batch.images), teacher(batch.images), stored_temperatures(setting)).mean()
    torch.testing.assert_close(loss, 0.1 * hard + 0.9 * soft)


def test_dkd_warms_up_counting_epochs_from_one(setting):
    teacher, student, batch, *_ = setting
    minimise = objective(setting, {"loss": "dkd"})
    hard = F.cross_entropy(student(batch.images), batch.labels)
    soft = dkd(student(batch.images), teacher(batch.images), batch.labels, stored_temperatures(setting), 1, 8).mean()
    for epoch, factor in [(0, 1 / 20), (9, 0.5), (19, 1.0), (100, 1.0)]:
        torch.testing.assert_close(minimise(student, DistillationStep(batch, None), epoch), hard + factor * soft)


def test_by_view_the_group_is_that_of_the_current_view(setting):
    teacher, student, batch, _, groups, _ = setting
    energy = energy_score(teacher(batch.images), 4.0)
    tau = sample_temperatures(groups.assign(energy), 6, 4, 2)
    loss = objective(setting, {"assignment": "view"})(student, DistillationStep(batch, None), epoch=0)
    hard = F.cross_entropy(student(batch.images), batch.labels)
    soft = kd(student(batch.images), teacher(batch.images), tau).mean()
    torch.testing.assert_close(loss, 0.1 * hard + 0.9 * soft)


def test_the_companion_batch_adds_distillation_on_mixed_images_and_no_hard_label(setting):
    teacher, student, batch, companion, *_ = setting
    minimise = objective(setting)
    clean = minimise(student, DistillationStep(batch, None), epoch=0)
    both = minimise(student, DistillationStep(batch, companion), epoch=0)
    images = companion.mixed.images
    torch.testing.assert_close(both - clean, 0.9 * kd(student(images), teacher(images), 4.0).mean())


def test_mixed_labels_are_weighted_by_their_share(setting):
    _, student, batch, companion, *_ = setting
    step = DistillationStep(batch, companion)
    without = objective(setting)(student, step, epoch=0)
    weighted = objective(setting, heda={"mixed_label_weight": 0.5})(student, step, epoch=0)
    logits = student(companion.mixed.images)
    own, partner = F.cross_entropy(logits, torch.tensor([0, 1, 2])), F.cross_entropy(logits, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(weighted - without, 0.5 * (0.7 * own + 0.3 * partner))


def test_the_teacher_gets_no_gradient_and_stays_in_eval_mode(setting):
    teacher, student, batch, companion, *_ = setting
    minimise = objective(setting)
    minimise(student, DistillationStep(batch, companion), epoch=0).backward()
    assert not teacher.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
