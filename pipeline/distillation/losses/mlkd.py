"""Multi-level logit distillation (Jin et al., "Multi-level Logit Distillation", CVPR 2023).

The batch and class level compare Gram matrices over the batch, so a row's value depends on the other rows. They have no
factor tau^2, as in the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import DistillParams
from pipeline.distillation.losses.base import BaseLoss, Term, ViewLogits
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.logits import as_column, widen
from pipeline.store.documents import Shape

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    *,
    base: float = 4.0,
    instance_weight: Tensor | None = None,
) -> Tensor:
    """Instance, batch and class level, each summed over the temperatures {2, 3, 4, 5, 6} * tau_i / base.

    With tau_i = base that is the paper's set; energy temperatures scale the whole set per sample. The batch and class
    levels couple the rows. Single rows of the class level may be negative; the mean over the batch is >= 0.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.
        base: the temperature that stands for the paper's set, > 0.
        instance_weight: [B], bool or >= 0, a factor on each sample's instance level; `low_confidence` is the selection
            that the public code intends. None keeps every sample.

    Returns:
        [B].

    Raises:
        ValueError: instance_weight is not [B].
    """
    instance = instance_level(student_logits, teacher_logits, temperature, base=base)
    if instance_weight is not None:
        if instance_weight.shape != instance.shape:
            raise ValueError(f"instance_weight has shape {tuple(instance_weight.shape)}, not ({len(instance)},)")
        instance = instance * instance_weight.to(instance)
    relations = [
        level(student_logits, teacher_logits, temperature * (part / base))
        for part in TEMPERATURES
        for level in (batch_correlation, class_correlation)
    ]
    return torch.stack([instance, *relations]).sum(dim=0)


def instance_level(
    student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float, *, base: float = 4.0
) -> Tensor:
    """`kd` summed over the temperatures {2, 3, 4, 5, 6} * tau_i / base, tau^2 inside; the rows are independent.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.
        base: the temperature that stands for the paper's set, > 0.

    Returns:
        [B], >= 0.
    """
    parts = [kd(student_logits, teacher_logits, temperature * (part / base)) for part in TEMPERATURES]
    return torch.stack(parts).sum(dim=0)


def batch_correlation(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor:
    """sum_j (G_t - G_s)_ij^2 with G = P P^T [B, B] and P = softmax(z_i / tau_i); row i's share of ||G_t - G_s||^2.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.

    Returns:
        [B], >= 0, with mean ||G_t - G_s||^2 / B; couples the rows.
    """
    student, teacher = _soften(student_logits, teacher_logits, temperature)
    with torch.autocast(student.device.type, enabled=False):
        difference = teacher @ teacher.T - student @ student.T
    return difference.square().sum(dim=1)


def class_correlation(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> Tensor:
    """B/K * (pt_i' D pt_i - ps_i' D ps_i) with D = P_t^T P_t - P_s^T P_s [K, K] and P = softmax(z_i / tau_i).

    The brackets of all rows sum to ||D||^2, so each row carries a share of it.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.

    Returns:
        [B], single values of either sign, with mean ||D||^2 / K >= 0; couples the rows.
    """
    student, teacher = _soften(student_logits, teacher_logits, temperature)
    batch, classes = student.shape
    with torch.autocast(student.device.type, enabled=False):
        difference = teacher.T @ teacher - student.T @ student
        shares = ((teacher @ difference) * teacher).sum(dim=1) - ((student @ difference) * student).sum(dim=1)
    return shares * (batch / classes)


def _soften(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    tau = as_column(temperature, student_logits)
    return F.softmax(student_logits / tau, dim=1), F.softmax(teacher_logits / tau, dim=1)


def low_confidence(teacher_logits: Tensor) -> Tensor:
    """The less confident half of the batch: largest probability at temperature 1 at most the batch's median.

    With an even number of samples the median is the mean of the two middle values, so without ties exactly half of the
    batch is chosen; with an odd number the middle sample is chosen too.

    Args:
        teacher_logits: [B, K], raw, of any floating type, B >= 1.

    Returns:
        bool [B], without gradient.
    """
    confidence = F.softmax(widen(teacher_logits.detach()), dim=1).amax(dim=1)
    return confidence <= torch.quantile(confidence, 0.5)


class MlkdLoss(BaseLoss):
    """kd_weight * MLKD of each view; the selection by confidence applies to the clean view only."""

    def __init__(self, params: DistillParams, student: nn.Module, teacher: nn.Module, shape: Shape) -> None:
        super().__init__(params, student, teacher, shape)
        self.strong_views = self.params.strong_view
        self._base = params.temperatures.mid

    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        select = self.params.low_confidence_only and not view.strong
        values = mlkd(
            view.student,
            view.teacher,
            view.temperature,
            base=self._base,
            # by the teacher's logits before any standardisation
            instance_weight=low_confidence(view.raw_teacher) if select else None,
        )
        return [Term(self.kd_weight, values)]
