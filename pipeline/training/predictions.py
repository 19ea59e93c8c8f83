"""Predicted classes of labelled images, and tests for chance level and collapse."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DEVIATIONS = 2.0  # standard deviations above chance; guessing gets there once in 44 times


@dataclass(frozen=True)
class Predictions:
    """Predicted class and label of each of N >= 1 images.

    Attributes:
        predicted, labels: int64 [N], on one device.
    """

    predicted: Tensor
    labels: Tensor

    @property
    def top1(self) -> float:
        """Share of predictions that are right."""
        return int((self.predicted == self.labels).sum()) / len(self.labels)

    @property
    def balanced(self) -> float:
        """Balanced accuracy: mean over the classes that occur of the top-1 within the class."""
        images, right = self._by_class()
        return float((right / images).mean())

    @property
    def guessing(self) -> float:
        """Upper bound of the balanced accuracy of guessing: 1 / C of the C classes that occur, plus two standard
        deviations, but at most half way from 1 / C to 1, because few images cannot separate a good network from luck.
        """
        images, _ = self._by_class()
        chance = 1 / len(images)
        variance = float((chance * (1 - chance) / images).sum()) / len(images) ** 2
        return min(chance + _DEVIATIONS * math.sqrt(variance), (1 + chance) / 2)

    @property
    def at_chance(self) -> bool:
        """Whether guessing explains the predictions; False where all images are of one class."""
        images, _ = self._by_class()
        return len(images) > 1 and self.balanced <= self.guessing

    @property
    def constant(self) -> int | None:
        """The class predicted for all images, if their labels are of several classes; else None."""
        first = int(self.predicted[0])
        alike = bool((self.predicted == first).all()) and bool((self.labels != self.labels[0]).any())
        return first if alike else None

    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Number of images and of right predictions of each class that occurs, float64 [C] each."""
        classes, which, images = torch.unique(self.labels, return_inverse=True, return_counts=True)
        right = torch.zeros(len(classes), dtype=torch.float64, device=self.labels.device)
        right.index_add_(0, which, (self.predicted == self.labels).double())
        return images.double(), right
