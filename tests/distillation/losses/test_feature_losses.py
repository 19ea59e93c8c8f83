"""Feature losses: fitnet, attention transfer and knowledge review."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import models
from pipeline.distillation.losses import make_loss
from pipeline.distillation.losses.attention import Attention
from pipeline.distillation.losses.fitnet import FitNet
from pipeline.distillation.losses.reviewkd import ReviewKD, hierarchical_context
from pipeline.errors import ParamsError
from tests.conftest import loss_params

OURS, THEIRS = (4, 6), (5, 7)
SIZES = (8, 5)

Build = Callable[[], nn.Module]
MODULES: dict[str, tuple[Build, int]] = {
    "fitnet": (lambda: FitNet(OURS[:1], THEIRS[:1]), 1),
    "at": (Attention, 2),
    "reviewkd": (lambda: ReviewKD(OURS, THEIRS), 2),
}
every = pytest.mark.parametrize(("build", "stages"), MODULES.values(), ids=MODULES.keys())
trainable = pytest.mark.parametrize(
    ("build", "stages"), [MODULES["fitnet"], MODULES["reviewkd"]], ids=["fitnet", "reviewkd"]
)


def features(channels: tuple[int, ...], sizes: tuple[int, ...], seed: int, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, count, size, size, generator=generator, dtype=torch.float64)
        for count, size in zip(channels, sizes, strict=False)
    ]


def make(build: Build) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


def inputs(stages: int, batch: int = 3, their_sizes: tuple[int, ...] = SIZES) -> tuple[list[Tensor], list[Tensor]]:
    return features(OURS, SIZES[:stages], 1, batch), features(THEIRS, their_sizes[:stages], 2, batch)


@every
@pytest.mark.parametrize("training", [True, False])
def test_one_value_per_sample_and_none_negative(build: Build, stages: int, training: bool) -> None:
    values = make(build).train(training)(*inputs(stages))
    assert values.shape == (3,)
    assert (values > 0).all()


@every
@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_batch_permutes_the_values(build: Build, stages: int, training: bool) -> None:
    module, (student, teacher) = make(build).train(training), inputs(stages)
    order = torch.tensor([2, 0, 1])
    permuted = module([feature[order] for feature in student], [feature[order] for feature in teacher])
    torch.testing.assert_close(permuted, module(student, teacher)[order])


@every
def test_rows_are_independent_in_eval_mode(build: Build, stages: int) -> None:
    module, (student, teacher) = make(build).eval(), inputs(stages)
    rows = [
        module([feature[i : i + 1] for feature in student], [feature[i : i + 1] for feature in teacher])
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(rows), module(student, teacher))


@every
def test_the_student_gets_a_gradient_and_the_teacher_none(build: Build, stages: int) -> None:
    module, (student, teacher) = make(build), inputs(stages)
    for feature in (*student, *teacher):
        feature.requires_grad_()
    module(student, teacher).mean().backward()
    assert all(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in student)
    assert all(feature.grad is None for feature in teacher)
    assert all(parameter.grad is not None for parameter in module.parameters())


@every
@pytest.mark.parametrize("their_sizes", [SIZES, (4, 3), (9, 8)])
def test_gradients_agree_with_finite_differences(build: Build, stages: int, their_sizes: tuple[int, ...]) -> None:
    module = make(build).eval()
    student, teacher = inputs(stages, batch=2, their_sizes=their_sizes)
    leaves = [feature.requires_grad_() for feature in student]
    assert torch.autograd.gradcheck(lambda *ours: module(ours, teacher), leaves, fast_mode=True)


@trainable
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("their_sizes", [SIZES, (4, 3)])
def test_gradients_of_the_connectors_agree_with_finite_differences(
    build: Build, stages: int, training: bool, their_sizes: tuple[int, ...]
) -> None:
    module = make(build).train(training)
    student, teacher = inputs(stages, batch=2, their_sizes=their_sizes)
    names, values = zip(*module.named_parameters(), strict=True)

    def loss(*parameters: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, parameters, strict=True)), (student, teacher))

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


@every
def test_different_heights_and_widths_are_brought_to_the_smaller(build: Build, stages: int) -> None:
    module = make(build).eval()
    student, teacher = inputs(stages)
    wide = [F.interpolate(feature, scale_factor=2, mode="nearest") for feature in teacher]
    torch.testing.assert_close(module(student, wide), module(student, teacher))
    odd = [torch.cat([feature, feature[:, :, :, :2]], dim=3)[:, :, :3] for feature in student]
    assert torch.isfinite(module(odd, teacher)).all()


@every
def test_low_precision_features_are_compared_in_float32(build: Build, stages: int) -> None:
    torch.manual_seed(0)
    module, (student, teacher) = build().eval(), inputs(stages)
    student, teacher = [x.bfloat16() for x in student], [x.bfloat16() for x in teacher]
    values = module(student, teacher)
    assert values.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = module(student, teacher)
    assert autocast.dtype == torch.float32
    torch.testing.assert_close(autocast, values, rtol=0.05, atol=0.05)


@every
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_dead_and_huge_features_give_finite_values_and_gradients(build: Build, stages: int, scale: float) -> None:
    torch.manual_seed(0)
    module, (student, teacher) = build(), inputs(stages)
    student = [(scale * feature).float().requires_grad_() for feature in student]
    values = module(student, [(scale * feature).float() for feature in teacher])
    values.mean().backward()
    assert torch.isfinite(values).all()
    assert all(feature.grad is not None and torch.isfinite(feature.grad).all() for feature in student)


@every
def test_features_that_are_not_maps_are_refused(build: Build, stages: int) -> None:
    module, (student, teacher) = make(build), inputs(stages)
    student[0] = student[0].flatten(2)
    with pytest.raises(ValueError, match=r"\[3, 4, 64\] and .* are not \[B, C, H, W\]"):
        module(student, teacher)


@every
def test_another_number_of_features_or_samples_is_refused(build: Build, stages: int) -> None:
    module, (student, teacher) = make(build), inputs(stages)
    with pytest.raises(ValueError, match="of the teacher are no pairs"):
        module(student, teacher[:-1])
    with pytest.raises(ValueError, match="of the teacher are no pairs"):
        module([], [])
    with pytest.raises(ValueError, match=r"features of shape \[3, .* and \[2, .* of one batch"):
        module(student, [feature[:2] for feature in teacher])


@trainable
def test_other_channels_are_refused(build: Build, stages: int) -> None:
    module, (_, teacher) = make(build), inputs(stages)
    with pytest.raises(RuntimeError, match=r"to have \d channels"):
        module(teacher, teacher)


def test_fitnet_takes_one_stage() -> None:
    with pytest.raises(ValueError, match="too many values"):
        FitNet((4, 5), (4, 5))


def identity_fitnet(channels: int) -> FitNet:
    module = FitNet((channels,), (channels,)).double().eval()
    with torch.no_grad():
        module.regressor[0].weight.copy_(torch.eye(channels)[:, :, None, None])
        module.regressor[1].eps = 1e-30  # lost beside a variance of 1; some versions of torch refuse 0
    return module


def test_fitnet_with_an_identity_regressor_is_the_mean_squared_error() -> None:
    student, teacher = features((4,), (6,), 1), features((4,), (6,), 2)
    module = identity_fitnet(4)
    torch.testing.assert_close(module(student, teacher), (student[0] - teacher[0]).square().mean(dim=(1, 2, 3)))
    assert torch.equal(module(student, student), torch.zeros(3, dtype=torch.float64))


def test_attention_is_free_for_equal_features_and_blind_to_scale_and_sign() -> None:
    student = features(OURS, SIZES, 1)
    assert torch.equal(Attention()(student, student), torch.zeros(3, dtype=torch.float64))
    scaled = [-3 * feature for feature in student]
    torch.testing.assert_close(Attention()(scaled, student), torch.zeros(3, dtype=torch.float64))
    assert list(Attention().parameters()) == []


def test_attention_follows_its_formula() -> None:
    student, teacher = inputs(2)
    expected = torch.zeros(3, dtype=torch.float64)
    for ours, theirs in zip(student, teacher, strict=True):
        maps = [feature.square().mean(1).reshape(3, -1) for feature in (ours, theirs)]
        unit = [values / values.norm(dim=1, keepdim=True) for values in maps]
        expected += (unit[0] - unit[1]).square().mean(1)
    torch.testing.assert_close(Attention()(student, teacher), expected)


# levels of a square map of this size: {pooled size: weight}, the map itself first
LEVELS = {
    8: {8: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8},
    5: {5: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8},
    4: {4: 1, 2: 1 / 2, 1: 1 / 4},
    3: {3: 1, 2: 1 / 2, 1: 1 / 4},
    2: {2: 1, 1: 1 / 2},
    1: {1: 1},
}


@pytest.mark.parametrize(("size", "levels"), LEVELS.items())
def test_the_hierarchical_context_halves_the_weight_of_each_level_that_is_smaller_than_the_map(
    size: int, levels: dict[int, float]
) -> None:
    student, teacher = features((4,), (size,), 1)[0], features((4,), (size,), 2)[0]
    error = (student - teacher).numpy()
    expected = np.zeros(3)
    for cells, weight in levels.items():
        # adaptive pooling: cell i is the mean of rows floor(i * size / cells) to ceil((i + 1) * size / cells)
        spans = [slice(i * size // cells, math.ceil((i + 1) * size / cells)) for i in range(cells)]
        pooled = [error[:, :, rows, columns].mean(axis=(2, 3)) for rows in spans for columns in spans]
        expected += weight * np.square(pooled).mean(axis=(0, 2))
    np.testing.assert_allclose(hierarchical_context(student, teacher), expected / sum(levels.values()), rtol=1e-12)


@pytest.mark.parametrize("size", [5, 4, 2, 1])
def test_a_constant_error_costs_the_same_at_every_size(size: int) -> None:
    teacher = features((4,), (size,), 1)[0]
    expected = torch.full((3,), 4.0, dtype=torch.float64)
    torch.testing.assert_close(hierarchical_context(teacher + 2, teacher), expected)


def test_reviewkd_lets_deep_features_reach_the_shallow_stage() -> None:
    module = ReviewKD(OURS, THEIRS).double().eval()
    student, teacher = inputs(2)
    shallow, _ = module.fusions[0](student[0], module.fusions[1](student[1], None)[0])
    changed, _ = module.fusions[0](student[0], module.fusions[1](2 * student[1], None)[0])
    assert shallow.shape == (3, 6, 8, 8)
    assert not torch.equal(shallow, changed)
    assert module(student, teacher).shape == (3,)


def test_reviewkd_bounds_its_width() -> None:
    assert ReviewKD((8, 1024), (8, 8)).fusions[0].entry[0].out_channels == 512
    assert ReviewKD((8, 16), (8, 8)).fusions[0].entry[0].out_channels == 16
    assert ReviewKD((8, 16), (8, 8), fusion_channels=3).fusions[0].entry[0].out_channels == 3


@trainable
def test_the_connectors_can_learn(build: Build, stages: int) -> None:
    module, (student, teacher) = make(build), inputs(stages)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    costs = []
    for _ in range(20):
        cost = module(student, teacher).mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < costs[0]


@pytest.mark.parametrize(
    ("name", "side", "batch_size", "refused"),
    [
        ("fitnet", 8, 1, True),  # the teacher's map has one pixel, to which the student's is pooled
        ("fitnet", 8, 2, False),
        ("fitnet", 16, 1, False),
        ("at", 8, 1, False),  # trains no layers
    ],
)
def test_single_images_are_refused_where_connectors_see_one_pixel(params, name, side, batch_size, refused):
    loss = loss_params(name, student_stages=["layer3"], teacher_stages=["layer3"])
    training = params.distill.training.model_copy(update={"batch_size": batch_size})
    distill = params.distill.model_copy(update={"loss": loss, "training": training})
    words = (
        r"^training\.batch_size is 1, but the layers that FitNet trains cannot learn from the "
        r"maps of single images \(Expected more than 1 value per channel .*\); set it to 2 or more$"
    )
    with pytest.raises(ParamsError, match=words) if refused else nullcontext():
        made = make_loss(distill, models.build("resnet8", 4), models.build("ShuffleV1", 4), (3, side, side))
        assert not any(int(value) for key, value in made.named_buffers() if key.endswith("num_batches_tracked"))
