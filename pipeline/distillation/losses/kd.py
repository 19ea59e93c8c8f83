"""Knowledge distillation on softened probabilities (Hinton, Vinyals, Dean, arXiv 1503.02531)."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.base import BaseLoss, Term, ViewLogits
from pipeline.distillation.losses.logits import as_column


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor:
    """tau_i^2 * KL(softmax(teacher_i / tau_i) || softmax(student_i / tau_i)), both sides in log space.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.

    Returns:
        [B], >= 0.
    """
    tau = as_column(temperature, student_logits)
    student = F.log_softmax(student_logits / tau, dim=1)
    teacher = F.log_softmax(teacher_logits / tau, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence * tau.square().squeeze(1)


class KdLoss(BaseLoss):
    """kd_weight * KD."""

    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        return [Term(self.kd_weight, kd(view.student, view.teacher, view.temperature))]
