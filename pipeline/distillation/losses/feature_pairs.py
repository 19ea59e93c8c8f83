"""Shared by the feature losses: pairs of feature maps, one spatial size, and the squared error."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pipeline.distillation.losses.logits import widen


def pair(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The feature maps stage by stage, in float32 or wider, the teacher's without gradient.

    Args:
        student, teacher: one [B, C, H, W] each per stage.

    Raises:
        ValueError: the lists differ in length or are empty, or a pair is not [B, C, H, W] of one batch.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} feature maps of the student and {len(teacher)} of the teacher are no pairs")
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.ndim != 4 or theirs.ndim != 4 or len(ours) != len(theirs):
            shapes = f"{list(ours.shape)} and {list(theirs.shape)}"
            raise ValueError(f"features of shape {shapes} are not [B, C, H, W] of one batch; name other submodules")
    return [(widen(ours), widen(theirs.detach())) for ours, theirs in zip(student, teacher, strict=True)]


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
