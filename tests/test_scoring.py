from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.loader import Images
from pipeline.data.pixels import ResidentPixels
from pipeline.errors import DataError
from pipeline.inference import all_logits, top1
from pipeline.scoring import score_images


@pytest.fixture
def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    resident = ResidentPixels(pixels, torch.device("cpu"), padding=2)
    return Images(resident, torch.arange(300) % 5, [0.5] * 3, [0.25] * 3)


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 5))


def test_scores_are_those_of_the_plain_images_in_order(images, teacher):
    scores = score_images(teacher, images, 4.0)
    logits = all_logits(teacher, images).double()
    np.testing.assert_allclose(scores.energy, -4 * torch.logsumexp(logits / 4, dim=1), rtol=1e-5)
    np.testing.assert_allclose(scores.confidence, logits.softmax(dim=1).max(dim=1).values, rtol=1e-5)
    np.testing.assert_array_equal(scores.correct, logits.argmax(dim=1).numpy() == scores.label)
    np.testing.assert_array_equal(scores.label, np.arange(300) % 5)
    assert scores.correct.mean() == pytest.approx(top1(teacher, images))


def test_scoring_moves_no_batch_statistics(images, teacher):
    teacher.train()
    score_images(teacher, images, 4.0)
    assert teacher[1].num_batches_tracked == 0


def test_progress_counts_every_image(images, teacher):
    counts = []
    score_images(teacher, images, 4.0, counts.append)
    assert sum(counts) == 300


def test_energies_that_are_not_finite_stop_the_stage(images, teacher):
    with torch.no_grad():
        teacher[4].bias.fill_(float("inf"))
    with pytest.raises(DataError, match="not finite, the first at index 0"):
        score_images(teacher, images, 4.0)
