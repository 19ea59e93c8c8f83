"""Logit standardization (Sun et al., arXiv 2403.01427)."""

from __future__ import annotations

import math

from torch import Tensor

from pipeline.distillation.losses.centring import centre
from pipeline.distillation.losses.precision import widen


def standardize(logits: Tensor) -> Tensor:
    """(z - mean(z)) / (std(z) + 1e-7) per row, with the unbiased standard deviation.

    Not a loss: the caller passes the standardized logits of student and teacher to a loss. A constant row becomes
    zeros and gets no gradient.

    Args:
        logits: [B, K], of any floating type; computed in float32 or wider.

    Returns:
        [B, K], mean 0 and standard deviation 1 in every row that is not constant.
    """
    centred, lengths = centre(widen(logits), dim=1)
    deviation = lengths / math.sqrt(max(logits.shape[1] - 1, 1))
    return centred / (deviation + 1e-7)
