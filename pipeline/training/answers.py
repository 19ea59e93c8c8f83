"""What a network answers to labelled images, and whether the answers say anything at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DEVIATIONS = 2.0  # above chance by luck alone: one guesser in 44


@dataclass(frozen=True)
class Answers:
    """The class that a network gives each of N >= 1 images, and the right one.

    Attributes:
        given, labels: int64 [N], on one device.
    """

    given: Tensor
    labels: Tensor

    @property
    def top1(self) -> float:
        """Share of answers that are right."""
        return int((self.given == self.labels).sum()) / len(self.labels)

    @property
    def balanced(self) -> float:
        """Mean over the classes that occur of the share of their images that is answered rightly."""
        images, right = self._by_class()
        return float((right / images).mean())

    @property
    def guessing(self) -> float:
        """The balanced accuracy that guessing reaches, on average and with luck: 1 / C of C classes that occur, which
        one answer to all images has as well, and two standard deviations.

        Half way from there to 1 at most: few images cannot tell a good network from luck, and are no reason to
        refuse it.
        """
        images, _ = self._by_class()
        chance = 1 / len(images)
        variance = float((chance * (1 - chance) / images).sum()) / len(images) ** 2
        return min(chance + _DEVIATIONS * math.sqrt(variance), (1 + chance) / 2)

    @property
    def at_chance(self) -> bool:
        """Whether guessing explains the answers; False where all images are of one class, which tells nothing."""
        images, _ = self._by_class()
        return len(images) > 1 and self.balanced <= self.guessing

    @property
    def constant(self) -> int | None:
        """The one class that all images are given though they are of several, else None."""
        first = int(self.given[0])
        alike = bool((self.given == first).all()) and bool((self.labels != self.labels[0]).any())
        return first if alike else None

    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Of the classes that occur: how many images, and how many of them are answered rightly, float64 [C] each."""
        classes, which, images = torch.unique(self.labels, return_inverse=True, return_counts=True)
        right = torch.zeros(len(classes), dtype=torch.float64, device=self.labels.device)
        right.index_add_(0, which, (self.given == self.labels).double())
        return images.double(), right
