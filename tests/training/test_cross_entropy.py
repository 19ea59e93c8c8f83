"""The loss on labels, and the order of the images, where classes are not equally frequent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.training.cross_entropy import CrossEntropy, epoch_indices
from tests.training.helpers import settings

LABELS = torch.tensor([0] * 60 + [1] * 30 + [3] * 10)  # no image is of class 2
LOGITS = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))


def test_as_shipped_it_is_the_plain_mean(params):
    assert torch.equal(CrossEntropy.of(LABELS, settings(params))(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_smoothing_moves_a_share_of_each_label_to_all_classes(params):
    found = CrossEntropy.of(LABELS, settings(params, label_smoothing=0.2))(LOGITS, LABELS)
    soft = 0.8 * F.one_hot(LABELS, 4) + 0.2 / 4
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, soft))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_inverse_to_the_frequency_and_their_mean_is_1(params, smoothing):
    loss = CrossEntropy.of(LABELS, settings(params, class_balance="weights", label_smoothing=smoothing))
    weights = 100 / (3 * torch.tensor([60, 30, 1, 10]))[LABELS]
    assert float(weights.mean()) == pytest.approx(1)
    values = F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss(LOGITS, LABELS), (weights * values).mean())
    halves = [loss(LOGITS[part], LABELS[part]) for part in (slice(0, 50), slice(50, 100))]
    torch.testing.assert_close(sum(halves) / 2, loss(LOGITS, LABELS)), "each process computes its part"


@pytest.mark.parametrize("changes", [{}, {"class_balance": "weights", "label_smoothing": 0.1}])
def test_the_terms_of_the_samples_can_be_weighted(params, changes):
    loss, share = CrossEntropy.of(LABELS, settings(params, **changes)), torch.linspace(0, 1, 100)
    single = torch.stack([loss(LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(100)])
    torch.testing.assert_close(loss(LOGITS, LABELS, share), (share * single).mean())


def test_sampling_draws_all_classes_equally_often(params):
    def draw(seed: int, **changes) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return epoch_indices(LABELS, settings(params, batch_size=16, **changes), generator)

    plain, sampled = draw(0), draw(0, class_balance="sampling")
    assert [len(index) for index in sampled] == [len(index) for index in plain] == [16] * 6
    assert len(torch.cat(plain).unique()) == 96, "each image once"
    drawn = torch.cat([torch.cat(draw(seed, class_balance="sampling")) for seed in range(50)])
    shares = torch.bincount(LABELS[drawn], minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]), atol=0.03, rtol=0)
    assert len(drawn.unique()) == 100, "all images of a class"
    assert all(map(torch.equal, sampled, draw(0, class_balance="sampling")))
