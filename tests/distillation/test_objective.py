from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.loader import Batch
from pipeline.data.views import Mixture
from pipeline.distillation.losses import make_loss
from pipeline.distillation.losses.attention import Attention
from pipeline.distillation.losses.dist import dist
from pipeline.distillation.losses.dkd import dkd
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.logits import standardize
from pipeline.distillation.losses.mlkd import low_confidence, mlkd
from pipeline.distillation.objective import Companion, DistillationObjective, DistillationStep
from pipeline.distillation.sample_weight import entropy_weight
from pipeline.energy.groups import EnergyGroups, energy_score
from pipeline.energy.temperatures import (
    certainty,
    certainty_temperatures,
    group_temperatures,
    sample_temperatures,
)
from pipeline.soft_labels.table import Answers
from tests.conftest import loss_params

# of 10 images, about that of the teacher's logits
CERTAINTY = {"energy": torch.linspace(4.0, 7.0, 10), "max_logit": torch.linspace(0.2, 1.4, 10)}


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
    companion = Companion(torch.randn(3, 3, 2, 2), torch.tensor([1, 2, 0]), 0.7, torch.tensor([0, 1, 2]))
    groups = EnergyGroups.fit(torch.randn(10), 0.3, 0.3)
    return Linear(1), Linear(2), batch, companion, groups, params


def objective(setting, distill=None, heda=None):
    teacher, student, _, _, groups, params = setting
    chosen = params.distill.model_copy(update=distill or {})
    base = make_loss(chosen, student, teacher, (3, 2, 2))
    if chosen.temperatures.mode == "groups":
        temperatures = group_temperatures(groups, 4.0, chosen.temperatures)
    else:
        temperatures = certainty_temperatures(CERTAINTY[chosen.temperatures.of], 4.0, chosen.temperatures)
    return DistillationObjective(teacher, base, temperatures, chosen, params.heda.model_copy(update=heda or {}))


def continuous(params, assignment="sample", **changes):
    temperatures = params.distill.temperatures.model_copy(update={"mode": "continuous"} | changes)
    return {"temperatures": temperatures, "assignment": assignment}


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
    minimise = objective(setting, {"loss": loss_params("dkd")})
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
    images = companion.images
    torch.testing.assert_close(both - clean, 0.9 * kd(student(images), teacher(images), 4.0).mean())


def test_by_view_a_mixed_image_has_the_temperature_of_its_own_energy(setting):
    teacher, student, batch, companion, groups, _ = setting
    minimise, images = objective(setting, {"assignment": "view"}), companion.images
    with torch.no_grad():
        # far apart, so that all three groups occur
        teacher.layer.weight.mul_(20)
    tau = sample_temperatures(groups.assign(energy_score(teacher(images), 4.0)), 6, 4, 2)
    assert (tau != 4).any(), "a mixed image outside the middle group"
    clean = minimise(student, DistillationStep(batch), epoch=0)
    both = minimise(student, DistillationStep(batch, companion), epoch=0)
    torch.testing.assert_close(both - clean, 0.9 * kd(student(images), teacher(images), tau).mean())


def test_mixed_labels_are_weighted_by_their_share(setting):
    _, student, batch, companion, *_ = setting
    step = DistillationStep(batch, companion)
    without = objective(setting)(student, step, epoch=0)
    weighted = objective(setting, heda={"mixed_label_weight": 0.5})(student, step, epoch=0)
    logits = student(companion.images)
    own, partner = F.cross_entropy(logits, torch.tensor([0, 1, 2])), F.cross_entropy(logits, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(weighted - without, 0.5 * (0.7 * own + 0.3 * partner))


def test_a_mixed_batch_has_both_labels_by_their_shares_and_the_middle_temperature(setting):
    teacher, student, batch, *_ = setting
    share, partners = torch.tensor([0.9, 0.5, 0.0, 1.0, 0.3, 0.7]), torch.tensor([0, 1, 2, 3, 0, 1])
    mixture = Mixture(torch.tensor([1, 2, 3, 4, 5, 6]), share)
    loss = objective(setting)(student, DistillationStep(batch, mixture=mixture, partner_labels=partners), epoch=0)
    logits = student(batch.images)
    own, partner = (F.cross_entropy(logits, labels, reduction="none") for labels in (batch.labels, partners))
    hard = (share * own + (1 - share) * partner).mean()
    torch.testing.assert_close(loss, 0.1 * hard + 0.9 * kd(logits, teacher(batch.images), 4.0).mean())


@pytest.mark.parametrize("assignment", ["sample", "view"])
def test_stored_answers_take_the_place_of_the_teacher(setting, assignment):
    teacher, student, batch, *_ = setting
    logits = teacher(batch.images).detach()
    answers = Answers(logits.log_softmax(dim=1), energy_score(logits, 4.0))
    minimise = objective(setting, {"assignment": assignment})
    expected = minimise(student, DistillationStep(batch), epoch=0)
    with torch.no_grad():
        teacher.layer.weight.fill_(float("nan"))
    torch.testing.assert_close(minimise(student, DistillationStep(batch, answers=answers), epoch=0), expected)


def test_the_teacher_gets_no_gradient_and_stays_in_eval_mode(setting):
    teacher, student, batch, companion, *_ = setting
    minimise = objective(setting)
    minimise(student, DistillationStep(batch, companion), epoch=0).backward()
    assert not teacher.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_without_a_loss_that_needs_it_the_teacher_does_not_run(setting):
    teacher, student, batch, *_ = setting
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    minimise = objective(setting, {"loss": loss_params("kd", ce_weight=1.0, kd_weight=0.0)})
    loss = minimise(student, DistillationStep(batch, None), epoch=0)
    torch.testing.assert_close(loss, F.cross_entropy(student(batch.images), batch.labels))


def test_dist_takes_energy_temperatures(setting):
    teacher, student, batch, *_ = setting
    loss = objective(setting, {"loss": loss_params("dist")})(student, DistillationStep(batch), epoch=0)
    hard = F.cross_entropy(student(batch.images), batch.labels)
    soft = dist(student(batch.images), teacher(batch.images), stored_temperatures(setting), 2.0, 2.0).mean()
    torch.testing.assert_close(loss, hard + soft)


@pytest.mark.parametrize("of", ["energy", "max_logit"])
@pytest.mark.parametrize("assignment", ["sample", "view"])
def test_continuous_temperatures_follow_the_stored_certainty_or_that_of_the_view(setting, assignment, of):
    teacher, student, batch, companion, _, params = setting
    minimise, stored = objective(setting, continuous(params, assignment, of=of)), CERTAINTY[of]

    def tau(certainties):
        limited = (4 * certainties / stored.mean()).clamp(2, 6)
        assert ((limited > 2) & (limited < 6)).sum() > 1, "some within the limits"
        return limited

    clean_tau, mixed_tau = tau(stored)[batch.index], torch.full((3,), 4.0)
    if assignment == "view":
        clean_tau, mixed_tau = (tau(certainty(teacher(each.images), of, 4.0)) for each in (batch, companion))
    hard = F.cross_entropy(student(batch.images), batch.labels)
    soft = kd(student(batch.images), teacher(batch.images), clean_tau).mean()
    mixed = kd(student(companion.images), teacher(companion.images), mixed_tau).mean()
    loss = minimise(student, DistillationStep(batch, companion), epoch=0)
    torch.testing.assert_close(loss, 0.1 * hard + 0.9 * soft + 0.9 * mixed)


@pytest.mark.parametrize("standardized", [False, True])
@pytest.mark.parametrize("assignment", ["sample", "view"])
def test_a_student_with_its_own_temperature_is_softened_by_it(setting, assignment, standardized):
    teacher, student, batch, companion, _, params = setting
    changes = continuous(params, assignment, of="max_logit", student="own") | {"logit_standardization": standardized}
    minimise = objective(setting, changes)

    def soft(images, tau):
        """tau^2 KL with the temperatures [B] of both networks, the student's without gradient."""
        ours, theirs = student(images), teacher(images)
        own = minimise.temperatures.of_logits(ours.detach())
        if standardized:
            ours, theirs = standardize(ours), standardize(theirs)
        log_ours, log_theirs = (ours / own[:, None]).log_softmax(dim=1), (theirs / tau[:, None]).log_softmax(dim=1)
        return (tau**2 * (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=1)).mean()

    def of_logits(images):
        return minimise.temperatures.of_logits(teacher(images))

    if assignment == "view":
        clean, mixed = soft(batch.images, of_logits(batch.images)), soft(companion.images, of_logits(companion.images))
    else:  # mixed images have the middle temperature in both networks
        clean = soft(batch.images, minimise.temperatures.stored[batch.index])
        pair = student(companion.images), teacher(companion.images)
        mixed = kd(*(map(standardize, pair) if standardized else pair), 4.0).mean()
    expected = 0.1 * F.cross_entropy(student(batch.images), batch.labels) + 0.9 * clean + 0.9 * mixed
    loss = minimise(student, DistillationStep(batch, companion), epoch=0)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, student.layer.weight)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("loss", ["kd", "dkd", "mlkd", "dist"])
@pytest.mark.parametrize("of", ["energy", "max_logit"])
def test_equal_logits_cost_nothing_though_both_networks_have_their_own_temperatures(setting, loss, of):
    teacher, _, batch, companion, _, params = setting
    changes = continuous(params, "view", of=of, student="own") | {"loss": loss_params(loss, ce_weight=0.0)}
    twin = Linear(1)
    value = objective(setting, changes)(twin, DistillationStep(batch, companion), epoch=5)
    assert torch.equal(twin(batch.images), teacher(batch.images))
    assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["kd", "dkd", "mlkd", "dist"])
def test_the_entropy_weight_multiplies_the_distillation_of_each_clean_image_alone(setting, loss):
    teacher, student, batch, companion, *_ = setting
    warmup = {"warmup_epochs": 0.0} if loss == "dkd" else {}
    weights = loss_params(loss, **warmup)
    step = DistillationStep(batch, companion)
    total = objective(setting, {"loss": weights, "sample_weight": "entropy"})(student, step, epoch=0)

    ours, theirs, tau = student(batch.images), teacher(batch.images), stored_temperatures(setting)
    soft = {
        "kd": lambda: kd(ours, theirs, tau),
        "dkd": lambda: dkd(ours, theirs, batch.labels, tau, 1.0, 8.0),
        "mlkd": lambda: mlkd(ours, theirs, tau, instance_weight=low_confidence(theirs)),
        "dist": lambda: dist(ours, theirs, tau, 2.0, 2.0),
    }[loss]()
    weighted = (entropy_weight(ours, theirs) * soft).mean()
    hard = F.cross_entropy(ours, batch.labels)
    mixed = kd(student(companion.images), teacher(companion.images), 4.0).mean()
    torch.testing.assert_close(total, weights.ce_weight * hard + weights.kd_weight * weighted + 0.9 * mixed)


class Half(nn.Module):
    """Its logits are half of the columns of its input [B, 2 K]."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.second = second

    def forward(self, images):
        return images.chunk(2, dim=1)[self.second]


@pytest.mark.parametrize(("loss", "key"), [("kd", "eakd_T4_t3_log100"), ("dkd", "eadkd_a1_b8_T4_t3_log100")])
def test_with_entropy_weight_value_and_gradient_equal_the_reference(setting, golden, loss, key):
    student_logits, teacher_logits = (torch.from_numpy(golden[f"{role}_logits"]) for role in ("student", "teacher"))
    images = torch.cat([student_logits, teacher_logits], dim=1).requires_grad_()
    batch = Batch(images, torch.from_numpy(golden["labels"]), torch.zeros(64, dtype=torch.int64))
    params = setting[-1]
    changes = {"ce_weight": 0.0, "kd_weight": 1.0} | ({"warmup_epochs": 0.0} if loss == "dkd" else {})
    equal = params.distill.temperatures.model_copy(update={"low_energy": 4.0, "high_energy": 4.0})
    chosen = {"loss": loss_params(loss, **changes), "temperatures": equal, "sample_weight": "entropy"}
    minimise = objective((Half(second=True), Half(second=False), *setting[2:]), chosen)
    value = minimise(Half(second=False), DistillationStep(batch), epoch=0)
    value.backward()
    assert value.item() == pytest.approx(float(golden[f"{key}_loss"]), rel=1e-5)
    expected = torch.from_numpy(golden[f"{key}_grad"])
    torch.testing.assert_close(images.grad[:, :100], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("loss", ["kd", "dkd", "mlkd", "dist"])
def test_standardized_logits_enter_every_logit_loss_and_no_cross_entropy(setting, loss):
    teacher, student, batch, companion, *_ = setting
    warmup = {"warmup_epochs": 0.0} if loss == "dkd" else {}
    changes = {"loss": loss_params(loss, **warmup), "logit_standardization": True}
    total = objective(setting, changes)(student, DistillationStep(batch, companion), epoch=0)

    raw, images, tau = teacher(batch.images), companion.images, stored_temperatures(setting)
    ours, theirs = standardize(student(batch.images)), standardize(raw)
    soft = {
        "kd": lambda: kd(ours, theirs, tau),
        "dkd": lambda: dkd(ours, theirs, batch.labels, tau, 1.0, 8.0),
        "mlkd": lambda: mlkd(ours, theirs, tau, instance_weight=low_confidence(raw)),
        "dist": lambda: dist(ours, theirs, tau, 2.0, 2.0),
    }[loss]()
    weights = changes["loss"]
    mixed = kd(standardize(student(images)), standardize(teacher(images)), 4.0).mean()
    hard = F.cross_entropy(student(batch.images), batch.labels)
    torch.testing.assert_close(total, weights.ce_weight * hard + weights.kd_weight * soft.mean() + 0.9 * mixed)


def test_mlkd_sees_both_views_and_selects_in_the_plain_one_only(setting):
    teacher, student, batch, *_ = setting
    strong = batch.images.flip(3) + 0.1
    total = objective(setting, {"loss": loss_params("mlkd")})(student, DistillationStep(batch, strong=strong), epoch=0)
    tau, unsure = stored_temperatures(setting), low_confidence(teacher(batch.images))
    plain = mlkd(student(batch.images), teacher(batch.images), tau, instance_weight=unsure).mean()
    second = mlkd(student(strong), teacher(strong), tau).mean()
    hard = F.cross_entropy(student(batch.images), batch.labels) + F.cross_entropy(student(strong), batch.labels)
    torch.testing.assert_close(total, 0.1 * hard + 0.9 * (plain + second))


class TwoStages(nn.Module):
    """Two stages of feature maps and a linear classifier, without batch statistics."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, width, 1), nn.Conv2d(width, width + 1, 1)
        self.head = nn.Linear(width + 1, 4)

    def forward(self, images):
        return self.head(self.second(self.first(images).tanh()).mean(dim=(2, 3)))


def test_a_feature_loss_adds_to_kd_with_energy_temperatures_and_sees_the_clean_batch_only(setting):
    _, _, batch, companion, groups, params = setting
    teacher, student = TwoStages(1, 5), TwoStages(2, 3)
    weights = {"ce_weight": 0.5, "kd_weight": 0.25, "feature_weight": 8.0, "warmup_epochs": 4.0}
    stages = {"student_stages": ["first", "second"], "teacher_stages": ["first", "second"]}
    changes = {"loss": loss_params("at", **weights, **stages)}
    minimise = objective((teacher, student, batch, companion, groups, params), changes)
    with minimise.base.reading_features():
        total = minimise(student, DistillationStep(batch, companion), epoch=1)

    def maps(network):
        first = network.first(batch.images)
        return [first, network.second(first.tanh())]

    soft = kd(student(batch.images), teacher(batch.images), stored_temperatures(setting)).mean()
    mixed = kd(student(companion.images), teacher(companion.images), 4.0).mean()
    hard = F.cross_entropy(student(batch.images), batch.labels)
    feature = Attention()(maps(student), maps(teacher)).mean()
    torch.testing.assert_close(total, 0.5 * hard + 0.25 * soft + 8.0 * 0.5 * feature + 0.9 * mixed)
