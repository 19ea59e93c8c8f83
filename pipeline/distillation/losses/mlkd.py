"""Multi-level logit distillation (Jin et al., "Multi-level Logit Distillation", CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.correlation import batch_correlation, class_correlation
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.precision import widen

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

    With tau_i = base that is the paper's set; energy temperatures scale the whole set per sample. A row's value
    depends on the other rows through the batch and class levels, whose single rows may be negative in the class level;
    the mean over the batch is >= 0.

    Args:
        student_logits, teacher_logits: [B, K], of any floating type; computed in float32 or wider.
        temperature: tau, [B] or a float, > 0.
        base: the temperature that stands for the paper's set, > 0.
        instance_weight: [B], bool or >= 0, a factor on each sample's instance level; `low_confidence` gives the
            selection that the public code means. None keeps every sample.

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
