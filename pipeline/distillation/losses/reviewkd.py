"""Knowledge review (Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distillation.losses.feature_pairs import match_size, pair, squared_error
from pipeline.distillation.losses.logits import widen

# pooled sizes of the hierarchical context loss, as in the paper
POOLED_SIZES = (4, 2, 1)
WIDEST_FUSION = 512


class ReviewKD(nn.Module):
    """Student stages fused from deep to shallow, each compared with the teacher's stage in several resolutions.

    The fusion layers are trained with the student and dropped afterwards. In training mode their batch statistics
    couple the rows; in eval mode the rows are independent.

    Args:
        student_channels, teacher_channels: C per stage, shallow to deep.
        fusion_channels: width of the map passed from stage to stage; by default the student's deepest stage, at most
            512.
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], fusion_channels: int | None = None
    ) -> None:
        super().__init__()
        width = fusion_channels or min(WIDEST_FUSION, student_channels[-1])
        deepest = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            Fusion(ours, width, theirs, reviews=stage < deepest)
            for stage, (ours, theirs) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The hierarchical context loss, summed over the stages.

        Args:
            student, teacher: one feature map [B, C, H, W] each per stage, shallow to deep, compared at the smaller of
                two different sizes. The teacher's get no gradient.

        Returns:
            [B], >= 0.

        Raises:
            ValueError: a feature is not [B, C, H, W], or the number of stages differs.
        """
        features = pair(student, teacher)
        passed: Tensor | None = None
        losses = []
        for fusion, (ours, theirs) in zip(reversed(self.fusions), reversed(features), strict=True):
            passed, reviewed = fusion(ours, passed)
            losses.append(hierarchical_context(*match_size(widen(reviewed), theirs)))
        return torch.stack(losses).sum(dim=0)


class Fusion(nn.Module):
    """Attention-based fusion of a student's stage with what the deeper stages passed on.

    Args:
        in_channels, channels, out_channels: C of the student's stage, of the passed map, of the teacher's stage.
        reviews: whether a deeper stage exists.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, reviews: bool) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.attention = nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid()) if reviews else None
        self.exit = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, feature: Tensor, passed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map to pass on, [B, channels, H, W], and the one to compare, [B, out_channels, H, W].

        Args:
            feature: [B, in_channels, H, W].
            passed: [B, channels, H', W'] of any size; None unless ``reviews``.
        """
        own: Tensor = self.entry(feature)
        if self.attention is not None and passed is not None:
            deeper = F.interpolate(passed, size=own.shape[2:], mode="nearest")
            share: Tensor = self.attention(torch.cat([own, deeper], dim=1))
            own = own * share[:, :1] + deeper * share[:, 1:]
        return own, self.exit(own)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the maps and of their average poolings to 4x4, 2x2 and 1x1.

    Each level has half the weight of the one before, and the weights are divided by their sum. A pooled size that is
    not smaller than the map is left out.

    Args:
        student, teacher: [B, C, H, W].

    Returns:
        [B], >= 0.
    """
    total, weight, weights = squared_error(student, teacher), 1.0, 1.0
    for size in POOLED_SIZES:
        if size < min(student.shape[2:]):
            pooled = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            weight /= 2
            total = total + weight * squared_error(*pooled)
            weights += weight
    return total / weights
