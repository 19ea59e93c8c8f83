"""Batch- and class-level correlations of softened predictions (Jin et al., CVPR 2023).

Both compare Gram matrices over the batch, so a row's value depends on the other rows. No tau^2: the size of these terms
at the paper's temperatures is the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.temperature import as_column


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

    ||D||^2 is the sum of the brackets, so each row carries its share of a number that has no rows of its own.

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
