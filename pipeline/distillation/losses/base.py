"""The interface of a base loss: the terms that it adds to the cross-entropy, and its requirements."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.config import DistillParams, LossParams
from pipeline.store.documents import Shape


@dataclass(frozen=True)
class ViewLogits:
    """Logits of student and teacher for one view of a batch.

    Attributes:
        student, teacher: logits [B, K], float32, standardised where the parameters ask for it.
        raw_teacher: the teacher's logits [B, K] before any standardisation.
        labels: int64 [B].
        temperature: tau, [B].
        strong: whether this is the strongly augmented second view.
    """

    student: Tensor
    teacher: Tensor
    raw_teacher: Tensor
    labels: Tensor
    temperature: Tensor
    strong: bool


@dataclass(frozen=True)
class Term:
    """A summand of the objective: weight * mean_i values_i, values [B]."""

    weight: float
    values: Tensor


class BaseLoss(nn.Module, ABC):
    """A base loss with its parameters. Its submodules, never student or teacher, are trained with the student.

    Args:
        params: with the block of this loss.
        student, teacher: for losses on feature maps, whose shapes are found by one pass of each network.
        shape: of an image.

    Attributes:
        ce_weight, kd_weight: of the cross-entropy, and of the distillation loss on logits.
        strong_views: whether a step needs strongly augmented second views of its images.
        reads_features: whether it reads feature maps by hooks, which compiled networks do not run.
    """

    strong_views: bool = False
    reads_features: bool = False

    def __init__(self, params: DistillParams, student: nn.Module, teacher: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.params: Any = params.loss
        loss: LossParams = params.loss
        self.ce_weight, self.kd_weight = loss.ce_weight, loss.kd_weight

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has to compute the images."""
        return self.kd_weight > 0 or self.reads_features

    @abstractmethod
    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        """The summands for one view; ``epoch`` is counted from 0."""

    def reading_features(self) -> AbstractContextManager[None]:
        """The block in which the loss reads feature maps of the networks' forward passes."""
        return nullcontext()


def warmup(epochs: float, epoch: int) -> float:
    """Factor that rises linearly to 1 over ``epochs``; counts epochs from 1, as the authors' code does."""
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0
