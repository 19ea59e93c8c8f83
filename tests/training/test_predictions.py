"""Predictions of networks, and the limits of guessing."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.predictions import Predictions


def test_accuracy_overall_and_over_the_classes():
    found = Predictions(torch.tensor([0, 0, 0, 1, 5]), torch.tensor([0, 0, 0, 1, 2]))
    assert found.top1 == pytest.approx(0.8)
    assert found.balanced == pytest.approx(2 / 3)


def test_one_class_predicted_for_images_of_several_is_constant():
    labels = torch.tensor([0, 1, 2])
    assert Predictions(torch.tensor([1, 1, 1]), labels).constant == 1
    assert Predictions(torch.tensor([1, 1, 2]), labels).constant is None
    assert Predictions(torch.tensor([1, 1]), torch.tensor([1, 1])).constant is None, "there is one class only"


@pytest.mark.parametrize("counts", [[20] * 10, [400, 30, 5], [1000, 1000]])
def test_few_guessers_are_above_what_guessing_may_reach(counts):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    guesses = torch.randint(len(counts), (2000, len(labels)), generator=generator)
    above = [not Predictions(given, labels).at_chance for given in guesses]
    assert 0.005 < sum(above) / len(above) < 0.06
    assert Predictions(torch.zeros_like(labels), labels).at_chance


def test_a_network_that_knows_something_is_above_guessing_however_rare_the_classes():
    labels = torch.tensor([0] * 950 + [1] * 50)
    given = labels.clone()
    given[950:970] = 0  # top-1 is 98 %, against 95 % of always predicting 0
    assert not Predictions(given, labels).at_chance


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1, 1], [0, 1, 2], [3, 3]])
def test_few_images_are_no_reason_to_refuse_a_network_that_is_right_about_them(labels):
    assert not Predictions(torch.tensor(labels), torch.tensor(labels)).at_chance
