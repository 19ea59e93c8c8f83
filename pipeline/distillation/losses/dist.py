"""Distillation by correlation, DIST (Huang et al., arXiv 2205.10536)."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.base import BaseLoss, Term, ViewLogits
from pipeline.distillation.losses.logits import as_column, centre


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    inter_weight: float,
    intra_weight: float,
) -> Tensor:
    """tau_i^2 * (inter_weight * inter_i + intra_weight * intra_i) of the probabilities softmax(z_i / tau_i).

    inter_i = 1 - Pearson correlation of the two rows i. The intra-class part has one correlation per class, over the
    batch; with unit vectors a_c (student) and b_c (teacher), 1 - a_c.b_c = sum_i (a_ic - b_ic)^2 / 2, and row i
    carries its summand: intra_i = B/K * sum_c (a_ic - b_ic)^2 / 2, with mean_i intra_i = mean_c (1 - corr_c).

    A constant row or column counts as the zero vector: it costs 0 against another constant one and 1/2 against any
    other, without gradient from the constant side. A batch of one thus has no intra-class part.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.
        inter_weight, intra_weight: weights of the two parts, >= 0; rows are independent only with intra_weight = 0.

    Returns:
        [B], >= 0.
    """
    tau = as_column(temperature, student_logits)
    student, teacher = F.softmax(student_logits / tau, dim=1), F.softmax(teacher_logits / tau, dim=1)
    batch, classes = student.shape
    inter = _unit_distances(student, teacher, dim=1).sum(dim=1)
    intra = _unit_distances(student, teacher, dim=0).sum(dim=1) * (batch / classes)
    return (inter_weight * inter + intra_weight * intra) * tau.square().squeeze(1)


def _unit_distances(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Summands [B, K] of half the squared distance of the centred unit vectors along ``dim``."""
    student_centred, student_lengths = centre(student, dim)
    teacher_centred, teacher_lengths = centre(teacher, dim)
    return (student_centred / student_lengths - teacher_centred / teacher_lengths).square() / 2


class DistLoss(BaseLoss):
    """kd_weight * DIST."""

    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        weights = self.params.inter_weight, self.params.intra_weight
        return [Term(self.kd_weight, dist(view.student, view.teacher, view.temperature, *weights))]
