"""Hints from one intermediate stage (Romero et al., "FitNets", arXiv 1412.6550)."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.distillation.losses.feature_pairs import match_size, pair, squared_error


class FitNet(nn.Module):
    """Mean squared error between the teacher's feature map and a regression of it from the student's.

    The regressor, a 1x1 convolution and BatchNorm, is trained with the student and dropped afterwards. In training mode
    its batch statistics couple the rows; in eval mode the rows are independent.

    Args:
        student_channels, teacher_channels: C of the one stage, as a sequence of one number.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        [ours], [theirs] = student_channels, teacher_channels
        self.regressor = nn.Sequential(nn.Conv2d(ours, theirs, kernel_size=1, bias=False), nn.BatchNorm2d(theirs))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean over C, H and W of the squared difference, at the smaller of two different sizes.

        Args:
            student, teacher: one feature map [B, C, H, W] each, in a sequence; the teacher's gets no gradient.

        Returns:
            [B], >= 0.

        Raises:
            ValueError: a feature is not [B, C, H, W], or there is not exactly one.
        """
        [(ours, theirs)] = pair(student, teacher)
        ours, theirs = match_size(ours, theirs)
        return squared_error(self.regressor(ours), theirs)
