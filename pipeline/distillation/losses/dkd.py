"""Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.base import BaseLoss, Term, ViewLogits, warmup
from pipeline.distillation.losses.logits import as_column


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: Tensor | float,
    alpha: float,
    beta: float,
) -> Tensor:
    """tau_i^2 * (alpha * TCKD_i + beta * NCKD_i).

    TCKD is the divergence between the two-way distributions target / not target, NCKD the one between the
    distributions over the other classes. The non-target distribution is a softmax over the K - 1 other logits, so
    nothing is masked by a large negative number and nothing underflows to log(0).

    Args:
        student_logits, teacher_logits: [B, K] with K >= 2; computed in float32 or wider.
        labels: int64 [B].
        temperature: tau, [B] or a float, > 0.
        alpha, beta: weights of the two parts, >= 0.

    Returns:
        [B], >= 0.
    """
    tau = as_column(temperature, student_logits)
    student_target, student_rest, student_others = _decouple(student_logits / tau, labels)
    teacher_target, teacher_rest, teacher_others = _decouple(teacher_logits / tau, labels)
    target_part = _divergence(
        torch.stack([student_target, student_rest], dim=1), torch.stack([teacher_target, teacher_rest], dim=1)
    )
    other_part = _divergence(student_others, teacher_others)
    return (alpha * target_part + beta * other_part) * tau.square().squeeze(1)


def _decouple(scaled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(target) [B], log p(not target) [B], and log-softmax over the other classes [B, K - 1]."""
    batch, classes = scaled.shape
    others = torch.arange(classes - 1, device=scaled.device).expand(batch, -1)
    others = others + (others >= labels.unsqueeze(1))
    target_logit = scaled.gather(1, labels.unsqueeze(1)).squeeze(1)
    other_logits = scaled.gather(1, others)
    rest_logit = torch.logsumexp(other_logits, dim=1)
    margin = target_logit - rest_logit
    return F.logsigmoid(margin), F.logsigmoid(-margin), F.log_softmax(other_logits, dim=1)


def _divergence(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)


class DkdLoss(BaseLoss):
    """kd_weight * warm-up * DKD."""

    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        alpha, beta = self.params.alpha, self.params.beta
        values = dkd(view.student, view.teacher, view.labels, view.temperature, alpha, beta)
        return [Term(self.kd_weight * warmup(self.params.warmup_epochs, epoch), values)]
