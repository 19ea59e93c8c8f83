"""The loss on labels, and the order in which the images are drawn."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import TrainingParams
from pipeline.data.loader import balanced_indices, shuffled_indices


class CrossEntropy:
    """Mean cross-entropy of float32 logits [B, K] and labels int64 [B], with smoothed labels and class weights.

    The term of each sample can be weighted, with ``share`` [B], as those of mixed images are.

    With ``class_balance: weights`` the term of an image of class c is weighted by N / (C * N_c), where N_c of the N
    training images are of class c and C classes occur, so that the mean weight is 1.

    Args:
        smoothing: share of each label that is spread over all classes.
        class_weights: [K'], up to the largest label that occurs, on the device of the logits; None: all are 1.
    """

    def __init__(self, smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self._smoothing, self._weights = smoothing, class_weights

    @classmethod
    def of(cls, labels: Tensor, params: TrainingParams) -> Self:
        """The loss that ``params`` ask for, on training images with these labels, int64 [N]."""
        if params.class_balance != "weights":
            return cls(params.label_smoothing)
        counts = torch.bincount(labels)
        return cls(params.label_smoothing, len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)))

    def __call__(self, logits: Tensor, labels: Tensor, share: Tensor | None = None) -> Tensor:
        if self._weights is None and share is None:
            return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        # not the argument weight, which divides by the weights of the batch: a rare class would count less in its batch
        values = F.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="none")
        for weights in (share, self._weights[labels] if self._weights is not None else None):
            values = values if weights is None else weights * values
        return values.mean()


def epoch_indices(labels: Tensor, params: TrainingParams, generator: torch.Generator) -> list[Tensor]:
    """The batches int64 [B] of an epoch over images with these ``labels`` [N], as ``class_balance`` asks for."""
    if params.class_balance == "sampling":
        return balanced_indices(labels, params.batch_size, generator)
    return shuffled_indices(len(labels), params.batch_size, generator)
