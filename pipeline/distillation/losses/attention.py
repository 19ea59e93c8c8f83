"""Attention transfer (Zagoruyko and Komodakis, arXiv 1612.03928)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distillation.losses.feature_pairs import match_size, pair


class Attention(nn.Module):
    """Squared difference of unit-length attention maps; it has no parameters and its rows are independent.

    Args:
        student_channels, teacher_channels: not used, as maps are compared without regard to channels.
    """

    def __init__(self, student_channels: Sequence[int] = (), teacher_channels: Sequence[int] = ()) -> None:
        super().__init__()

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean over positions of the squared difference, summed over the stages.

        A map is the mean over channels of the squared feature, flattened and of Euclidean length 1.

        Args:
            student, teacher: one feature map [B, C, H, W] each per stage, at the smaller of two different sizes; C may
                differ. The teacher's get no gradient.

        Returns:
            [B], >= 0.

        Raises:
            ValueError: the sequences differ in length or are empty, or a feature is not [B, C, H, W].
        """
        stages = [match_size(*features) for features in pair(student, teacher)]
        differences = [_attention_map(ours) - _attention_map(theirs) for ours, theirs in stages]
        return torch.stack([difference.square().mean(dim=1) for difference in differences]).sum(dim=0)


def _attention_map(feature: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W]."""
    return F.normalize(feature.square().mean(dim=1).flatten(1), dim=1)
