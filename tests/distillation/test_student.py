"""Students trained with every base loss, on a few random images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import models
from pipeline.compute.device import can_compile
from pipeline.config import Params
from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.distillation.losses import LOSSES, make_loss
from pipeline.distillation.losses.base import ViewLogits
from pipeline.distillation.student import ScoredImages, train_student
from pipeline.energy.groups import EnergyGroups
from pipeline.errors import ParamsError
from pipeline.export.capture import capture, deployable
from pipeline.training import fastest
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.session import Session
from tests.conftest import loss_params, state_hash
from tests.distillation.helpers import CPU, build, distilling, images, scored, settings, train
from tests.training.helpers import Killed, killed_after


def _hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_the_student_and_nothing_else(params, loss):
    student, teacher = build("resnet8", 1), build("resnet14", 2)
    before, names = state_hash(teacher), list(student.state_dict())
    records = train(settings(params, loss=loss), student, teacher)
    assert all(np.isfinite(record.train_loss) for record in records)
    assert state_hash(teacher) == before
    assert state_hash(student) != state_hash(build("resnet8", 1))
    assert list(student.state_dict()) == names
    assert _hooks(student) == _hooks(teacher) == 0


@pytest.mark.parametrize(("loss", "view"), [("mlkd", "clean"), ("reviewkd", "clean"), ("kd", "mixed")])
def test_a_run_that_was_stopped_goes_on_to_bit_identical_weights(params, loss, view, tmp_path):
    chosen = settings(params, loss=loss, view=view)
    undisturbed = build("resnet8", 1)
    expected = train(chosen, undisturbed, build("resnet14", 2))

    class Killed(Exception):  # noqa: N818  not an error of ours
        pass

    steps = iter(range(4))

    def kill_later():
        if next(steps, None) is None:
            raise Killed

    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(Killed):
        train(chosen, build("resnet8", 1), build("resnet14", 2), checkpoint=checkpoint, on_step=kill_later)
    resumed = build("resnet8", 1)
    assert train(chosen, resumed, build("resnet14", 2), checkpoint=checkpoint) == expected
    assert state_hash(resumed) == state_hash(undisturbed)


def test_a_feature_loss_leaves_no_trace_in_the_exported_graph(params):
    def program(loss: str) -> str:
        student = build("resnet8", 1)
        train(settings(params, loss=loss), student, build("resnet14", 2))
        return str(capture(deployable(student), (3, 16, 16), "student").graph)

    assert program("reviewkd") == program("kd")


def test_feature_losses_take_networks_of_the_libraries_whose_stages_are_named(params):
    stages = {"student_stages": ["blocks.1", "blocks.3"], "teacher_stages": ["layer1", "layer3"]}
    student, teacher = build("timm:mobilenetv3_small_050", 1), build("torchvision:resnet18", 2)
    records = train(settings(params, loss=loss_params("reviewkd", **stages)), student, teacher)
    assert np.isfinite(records[-1].train_loss)


@pytest.mark.parametrize(
    ("student", "stages", "message"),
    [
        ("torchvision:mobilenet_v2", None, "student_stages is needed, because MobileNetV2 declares no stages"),
        ("resnet8", ["layer1"], r"student has 1 stages \(layer1\) and the teacher 3"),
        ("resnet8", ["layer1", "layer2", "lyer3"], 'no submodule "lyer3": the closest names are layer3'),
        ("resnet8", ["layer1", "layer2", "fc"], r'submodule "fc" of ResNet returns \[.B., 4\], not feature maps'),
    ],
)
def test_stages_that_cannot_be_compared_are_named(params, student, stages, message):
    chosen = params.distill.model_copy(update={"loss": loss_params("reviewkd", student_stages=stages)})
    with pytest.raises(ParamsError, match=message):
        make_loss(chosen, build(student, 0), build("resnet14", 0), (3, 32, 32))


@pytest.mark.parametrize(("teacher", "student"), [("vgg13", "MobileNetV2"), ("ResNet50", "vgg8")])
@pytest.mark.parametrize(("loss", "compared"), [("fitnet", 1), ("at", 4), ("reviewkd", 4)])
def test_networks_of_different_families_have_stages_to_compare(params, teacher, student, loss, compared):
    chosen, size = params.distill.model_copy(update={"loss": loss_params(loss)}), 32
    with torch.device("meta"):
        ours, theirs = models.build(student, 4), models.build(teacher, 4)
        base = make_loss(chosen, ours, theirs, (3, size, size))
        with base.reading_features():
            assert [_hooks(network) for network in (ours, theirs)] == [compared, compared]
            logits = [network(torch.zeros(2, 3, size, size)) for network in (ours, theirs)]
            labels, tau = torch.zeros(2, dtype=torch.int64), torch.full((2,), 4.0)
            [term] = base.terms(ViewLogits(*logits, logits[1], labels, tau, strong=False), epoch=0)
        assert term.values.shape == (2,)


def test_fitnet_compares_the_middle_stage(params):
    chosen = params.distill.model_copy(update={"loss": loss_params("fitnet")})
    base = make_loss(chosen, build("resnet8", 0), build("resnet14", 0), (3, 32, 32))
    assert base.loss.regressor[0].in_channels == 32


def test_random_groups_change_the_student_and_equal_temperatures_make_groups_irrelevant(params):
    def trained(assignment: str, *temperatures: float) -> str:
        low, mid, high = temperatures
        chosen = params.distill.temperatures.model_copy(update={"low_energy": low, "mid": mid, "high_energy": high})
        student = build("resnet8", 1)
        train(settings(params, assignment=assignment, temperatures=chosen), student, build("resnet14", 2))
        return state_hash(student)

    assert trained("sample", 6, 4, 2) != trained("random", 6, 4, 2)
    assert trained("sample", 4, 4, 4) == trained("random", 4, 4, 4)


def test_continuous_temperatures_are_assigned_in_three_ways_and_equal_limits_make_them_irrelevant(params):
    def trained(assignment: str, low: float = 6.0, high: float = 2.0, **changes: str) -> str:
        chosen = {"mode": "continuous", "low_energy": low, "high_energy": high, **changes}
        temperatures = params.distill.temperatures.model_copy(update=chosen)
        split = replace(scored(images(48)), certainty=torch.linspace(1, 9, 48))
        wanted, student = settings(params, assignment=assignment, temperatures=temperatures), build("resnet8", 1)
        list(train_student(student, build("resnet14", 2), split, images(16), wanted, Session(CPU)))
        return state_hash(student)

    ways = ["sample", "view", "random"]
    assert len({trained(assignment, student=student) for assignment in ways for student in ("same", "own")}) == 6
    assert len({trained(assignment, 4.0, 4.0, student="own") for assignment in ways}) == 1


def test_temperatures_that_cannot_follow_the_teacher_are_named_in_the_entry_of_the_student(params):
    continuous = params.distill.temperatures.model_copy(update={"mode": "continuous", "of": "energy"})
    split = replace(scored(images(48)), certainty=-torch.ones(48))
    wanted = settings(params, temperatures=continuous)
    epochs = train_student(
        build("resnet8", 1),
        build("resnet8", 2),
        split,
        images(16),
        wanted,
        Session(CPU),
        name="wide",
        block="students.wide",
    )
    with pytest.raises(ParamsError, match=r"^params\.yaml: students\.wide\.temperatures\.of is energy, but"):
        list(epochs)


def test_the_entropy_weight_changes_the_student(params):
    students = []
    for weight in ("none", "entropy"):
        students.append(build("resnet8", 1))
        train(settings(params, sample_weight=weight), students[-1], build("resnet14", 2))
    assert state_hash(students[0]) != state_hash(students[1])


@pytest.mark.e2e
def test_a_step_that_timing_compiles_trains_as_a_plain_one(params, monkeypatch):
    if not can_compile(CPU):
        pytest.skip("there is no C++ compiler or no Python.h")
    for name, value in (("_LONG", 0.0), ("_GAIN", float("inf")), ("_SECONDS", 0.0)):
        monkeypatch.setattr(fastest, name, value)

    def small(seed: int) -> nn.Module:
        """A network of few layers, each of which takes the compiler seconds."""
        torch.manual_seed(seed)
        features = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 4))

    weights = []
    for choice in ("off", "auto"):
        training = params.distill.training.model_copy(
            update={"epochs": 1, "batch_size": 16, "learning_rate": 0.02, "precision": "fp32", "compile": choice}
        )
        student = small(1)
        records = train(settings(params, training=training), student, small(2))
        assert [record.compiled for record in records] == [choice == "auto"]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in student.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


SUBSET = [1, 4, 6, 7, 15, 22, 23, 30, 38, 41, 44]


@pytest.fixture
def steps_of(params, monkeypatch):
    """The steps of an epoch, on 48 images of one colour each whose label is their index: (params, epoch) -> list."""
    pixels = np.broadcast_to(5 * np.arange(48)[:, None, None, None], (48, 16, 16, 3)).astype(np.uint8)
    plain = Images(ResidentPixels(pixels, CPU, padding=0), torch.arange(48), Normalisation([0.0] * 3, [1.0] * 3))
    scored = ScoredImages(plain, EnergyGroups.fit(torch.linspace(-9, -1, 48), 0.25, 0.25), 4.0, torch.tensor(SUBSET))

    def steps(chosen: Params, epoch: int = 0) -> list:
        made = []

        def collect(student, task, *_):
            made.extend(task.epoch_steps(epoch))
            return []

        monkeypatch.setattr("pipeline.distillation.student.train", collect)
        list(train_student(build("resnet8", 1), build("resnet8", 2), scored, plain, chosen, Session(CPU)))
        return made

    return steps


def with_heda(params: Params, **changes) -> Params:
    return params.model_copy(update={"heda": params.heda.model_copy(update=changes)})


def colours(index: torch.Tensor) -> torch.Tensor:
    return (5 * index / 255).view(-1, 1, 1, 1)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_companions_are_drawn_from_the_subset_each_member_before_any_twice(params, steps_of, mix):
    companions = [step.companion for step in steps_of(with_heda(settings(params), mix=mix, fraction=0.4))]
    drawn = torch.cat([companion.labels for companion in companions]).tolist()
    assert len(companions) == 3
    assert sorted(drawn[: len(SUBSET)]) == SUBSET
    assert set(drawn) == set(SUBSET)


def test_companions_are_mixed_as_asked(params, steps_of):
    for mix in ("cutmix", "mixup"):
        for step in steps_of(with_heda(settings(params), mix=mix)):
            companion, labels = step.companion, step.companion.labels
            own, theirs = colours(labels).expand_as(companion.images), colours(labels[companion.partner])
            if mix == "mixup":
                expected = companion.lam * own + (1 - companion.lam) * theirs
                torch.testing.assert_close(companion.images, expected)
            else:
                kept = torch.isclose(companion.images, own)
                assert (kept | torch.isclose(companion.images, theirs)).all()
                # an image may be there twice, as the last of a round and in the next
                moved = labels[companion.partner] != labels
                assert kept[moved].double().mean() == pytest.approx(companion.lam)


@pytest.mark.parametrize(("batch_size", "fraction", "size"), [(16, 0.4, 6), (16, 0.22, 4), (64, 0.4, 19)])
def test_a_companion_batch_is_the_rounded_share_of_the_clean_batch(params, steps_of, batch_size, fraction, size):
    training = params.distill.training.model_copy(update={"batch_size": batch_size})
    steps = steps_of(with_heda(settings(params, training=training), fraction=fraction))
    assert {len(step.companion.labels) for step in steps} == {size}
    assert {len(step.companion.images) for step in steps} == {size}


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_every_epoch_draws_and_mixes_other_companions_and_a_repeated_one_the_same(params, steps_of, mix):
    def draws(epoch: int) -> dict[str, list]:
        companions = [step.companion for step in steps_of(with_heda(settings(params), mix=mix), epoch)]
        return {
            "images": [companion.labels.tolist() for companion in companions],
            "partners": [companion.partner.tolist() for companion in companions],
            "shares": [companion.lam for companion in companions],
        }

    first, again, second = draws(0), draws(0), draws(1)
    assert first == again
    for what in first:
        assert first[what] != second[what], what


def test_mlkd_gets_strong_views_of_the_images_of_the_batch_where_they_are_asked_for(params, steps_of, monkeypatch):
    strong = steps_of(settings(params, loss="mlkd"))
    assert all(step.strong.shape == step.batch.images.shape for step in strong)
    weak = loss_params("mlkd", strong_view=False)
    assert all(step.strong is None for step in steps_of(settings(params, loss=weak)))
    assert all(step.strong is None for step in steps_of(settings(params, loss="dkd")))
    monkeypatch.setattr(Images, "strong_views", lambda self, indices, *_: (self.labels[index] for index in indices))
    for step in steps_of(settings(params, loss="mlkd")):
        assert torch.equal(step.strong, step.batch.index)


def test_a_mixed_batch_has_the_images_of_a_clean_one_each_mixed_with_another(params, steps_of):
    clean, mixed = (steps_of(settings(params, view=view)) for view in ("clean", "mixed"))
    assert [step.index.tolist() for step in mixed] == [step.index.tolist() for step in clean]
    for step in mixed:
        share, partners = step.mixture.share.view(-1, 1, 1, 1), step.partner_labels
        assert torch.equal(partners, step.mixture.partner), "the label of an image here is its index"
        mean = share * colours(step.batch.labels) + (1 - share) * colours(partners)
        torch.testing.assert_close(step.batch.images.mean(dim=(1, 2, 3), keepdim=True), mean)
    assert all(step.companion is not None for step in mixed), "HE-DA's companions come beside it"
    assert not torch.equal(mixed[0].mixture.partner, steps_of(settings(params, view="mixed"), 1)[0].mixture.partner)


@pytest.mark.parametrize("loss", ["fitnet", "reviewkd"])
def test_the_connectors_are_trained_with_the_student(params, loss, monkeypatch):
    made = []

    def remembered(*arguments):
        base = make_loss(*arguments)
        made.append((base, {name: value.detach().clone() for name, value in base.named_parameters()}))
        return base

    monkeypatch.setattr("pipeline.distillation.student.make_loss", remembered)
    training = params.distill.training.model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
    train(settings(params, loss=loss, training=training), build("resnet8", 1), build("resnet8", 2))
    [(base, before)] = made
    assert before
    for name, value in base.named_parameters():
        assert not torch.equal(value, before[name]), name


def with_training(params: Params, **changes) -> Params:
    """Settings with changes to the block training."""
    return distilling(params, training=params.distill.training.model_copy(update=changes))


@pytest.mark.parametrize("changes", [{"class_balance": "weights"}, {"label_smoothing": 0.1}])
def test_weights_and_smoothing_act_on_the_labels_and_not_on_what_the_teacher_says(params, changes):
    def trained(ce_weight: float, **changes) -> str:
        chosen = settings(params, loss=loss_params("kd", ce_weight=ce_weight))
        student = build("resnet8", 1)
        unequal = images(48)
        unequal.labels = torch.arange(48) % 7 % 4
        split = ScoredImages(unequal, scored(unequal).groups, 4.0, torch.arange(20))
        list(
            train_student(
                student, build("resnet14", 2), split, images(16), with_training(chosen, **changes), Session(CPU)
            )
        )
        return state_hash(student)

    assert trained(0.0, **changes) == trained(0.0)
    assert trained(0.1, **changes) != trained(0.1)


def test_sampling_draws_the_clean_batches_and_leaves_the_companions(params, steps_of):
    plain, sampled = (
        steps_of(with_training(settings(params), class_balance=choice)) for choice in ("none", "sampling")
    )
    assert len(torch.cat([step.index for step in plain]).unique()) == 48
    assert len(torch.cat([step.index for step in sampled]).unique()) < 48, "with replacement"
    assert [step.companion.labels.tolist() for step in sampled] == [step.companion.labels.tolist() for step in plain]


@pytest.mark.parametrize("loss", ["kd", "reviewkd"])
def test_everything_together_goes_on_to_the_same_bytes_with_and_without_connectors(params, loss, tmp_path):
    everything = {"optimizer": "adamw", "learning_rate": 1e-3, "layer_decay": 0.7, "decay_norms_and_biases": False}
    everything |= {"clip_grad_norm": 1.0, "ema_decay": 0.9, "keep": "best", "freeze": 1, "class_balance": "sampling"}
    chosen = with_training(settings(params, loss=loss), epochs=3, **everything)
    results = []
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
        checkpoint = Checkpoint(tmp_path / folder)
        if folder == "stopped":
            with pytest.raises(Killed):
                train(chosen, build("resnet8", 1), build("resnet14", 2), checkpoint, on_step=killed_after(4).on_step)
        student = build("resnet8", 1)
        results.append((train(chosen, student, build("resnet14", 2), checkpoint), state_hash(student)))
    assert results[0] == results[1]
