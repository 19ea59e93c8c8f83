"""What the feature losses share: the checks of their inputs, one spatial size, and the type of the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.precision import widen


def check_channels(
    loss: str, student_channels: Sequence[int], teacher_channels: Sequence[int], stages: int | None = None
) -> None:
    """Refuse lists of channels that cannot be paired.

    Raises:
        ValueError: the lists are empty or of different lengths, a number is below 1, or there are not ``stages``.
    """
    if len(student_channels) != len(teacher_channels) or not student_channels:
        raise ValueError(
            f"{loss} pairs the stages of student and teacher, at least one and as many of each: there are "
            f"{len(student_channels)} of the student and {len(teacher_channels)} of the teacher."
        )
    if stages is not None and len(student_channels) != stages:
        raise ValueError(f"{loss} takes exactly {stages} stage of each network, not {len(student_channels)}.")
    if min(*student_channels, *teacher_channels) < 1:
        raise ValueError(f"{loss} needs at least one channel in every stage.")


def pair(
    loss: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_channels: Sequence[int] | None = None,
    teacher_channels: Sequence[int] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The feature maps stage by stage, in float32 or wider, the teacher's without gradient.

    Args:
        student, teacher: one [B, C, H, W] each per stage.
        student_channels, teacher_channels: C per stage, where the loss has them fixed.

    Raises:
        ValueError: the lists differ in length or are empty, a feature is not [B, C, H, W], or B or C does not fit.
    """
    wanted = None if student_channels is None else len(student_channels)
    if len(student) != len(teacher) or not student or (wanted is not None and len(student) != wanted):
        number = "as many" if wanted is None else str(wanted)
        raise ValueError(
            f"{loss} takes {number} feature maps of student and teacher, at least one: there are {len(student)} and "
            f"{len(teacher)}."
        )
    _check("student", student, student_channels, len(student[0]))
    _check("teacher", teacher, teacher_channels, len(student[0]))
    return [(widen(ours), widen(theirs.detach())) for ours, theirs in zip(student, teacher, strict=True)]


def _check(role: str, features: Sequence[Tensor], channels: Sequence[int] | None, batch: int) -> None:
    for stage, feature in enumerate(features):
        shape = tuple(feature.shape)
        if feature.ndim != 4:
            raise ValueError(
                f"The {role}'s feature of stage {stage} has shape {shape}, but feature losses take [B, C, H, W]: "
                "name a submodule that returns feature maps."
            )
        if shape[0] != batch:
            raise ValueError(f"The {role}'s feature of stage {stage} holds {shape[0]} samples, not {batch}.")
        if channels is not None and shape[1] != channels[stage]:
            raise ValueError(f"The {role}'s feature of stage {stage} has {shape[1]} channels, not {channels[stage]}.")


def match_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width, by adaptive average pooling.

    Args:
        student: [B, C, H, W].
        teacher: [B, C', H', W'].
    """
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return _pool(student, height, width), _pool(teacher, height, width)


def _pool(feature: Tensor, height: int, width: int) -> Tensor:
    return feature if feature.shape[2:] == (height, width) else F.adaptive_avg_pool2d(feature, (height, width))


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of the squared difference over all but the batch: [B, ...] twice -> [B], in float32 or wider."""
    return (widen(student) - teacher).square().flatten(1).mean(dim=1)
