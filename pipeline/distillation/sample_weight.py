"""The weight of each sample by the entropies of both networks: EA-KD (Su et al., ICCV 2025, arXiv 2311.13621)."""

import math

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.logits import widen

TEMPERATURE = 3.0  # of the entropies, as in the authors' code


def entropy_weight(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """w_i = (H_t,i + H_t,i * H_s,i / log K) / 2 with H the entropy of softmax(z_i / 3), in nats.

    Uncertain images weigh more. The mean of the weights is not 1, so part of any gain may come from a larger weight of
    the whole loss: the control is the same loss multiplied by the mean weight. log K, the largest entropy, is the bound
    of the text; the released code divides by K on CIFAR-100.

    Args:
        student_logits, teacher_logits: [B, K] with K >= 2, of any floating type; computed in float32 or wider.

    Returns:
        [B] in [0, log K], without gradient; 0 where the teacher is certain.
    """
    student, teacher = _entropy(student_logits), _entropy(teacher_logits)
    return (teacher + teacher * student / math.log(teacher_logits.shape[1])) / 2


def _entropy(logits: Tensor) -> Tensor:
    log_probabilities = F.log_softmax(widen(logits.detach()) / TEMPERATURE, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)
