"""The loss on labels, and the order in which the images are drawn."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import TrainingParams
from pipeline.data.loader import balanced_indices, shuffled_indices


class CrossEntropy:
    """Mean cross-entropy of float32 logits [B, K] and labels int64 [B], with smoothed labels and class weights.

    With ``class_balance: weights`` the term of an image of class c is weighted by N / (C * N_c), where N_c of the N
    training images are of class c and C classes occur, so that the mean weight is 1.

    Args:
        labels: int64 [N], of the training images, on the device of the logits.
    """

    def __init__(self, labels: Tensor, params: TrainingParams) -> None:
        self._smoothing = params.label_smoothing
        self._weights: Tensor | None = None  # [K'], up to the largest label that occurs
        if params.class_balance == "weights":
            counts = torch.bincount(labels)
            self._weights = len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        # not the argument weight, which divides by the weights of the batch: a rare class would count less in its batch
        values = F.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="none")
        return (self._weights[labels] * values).mean()


def epoch_indices(labels: Tensor, params: TrainingParams, generator: torch.Generator) -> list[Tensor]:
    """The batches int64 [B] of an epoch over images with these ``labels`` [N], as ``class_balance`` asks for."""
    if params.class_balance == "sampling":
        return balanced_indices(labels, params.batch_size, generator)
    return shuffled_indices(len(labels), params.batch_size, generator)
