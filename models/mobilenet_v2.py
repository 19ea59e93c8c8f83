"""MobileNetV2 of half width for 32x32 images (after Sandler et al. 2018, table 2)."""

from typing import NamedTuple

from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, initialise


class Group(NamedTuple):
    """Blocks of one width; the first block has the stride."""

    expansion: int
    channels: int
    blocks: int
    stride: int


# Half of the paper's channels; the second group keeps the resolution because the images are small.
GROUPS = (
    Group(1, 8, 1, 1),
    Group(6, 12, 2, 1),
    Group(6, 16, 3, 2),
    Group(6, 32, 4, 2),
    Group(6, 48, 3, 1),
    Group(6, 80, 3, 2),
    Group(6, 160, 1, 1),
)
STEM_CHANNELS = 16
# The public checkpoints do not halve the last convolution.
HEAD_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolution, with a residual path for equal shapes."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.keeps_shape = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            conv1x1(in_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv3x3(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv1x1(hidden, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, ceil(H/stride), ceil(W/stride)]."""
        out: Tensor = self.conv(x)
        return x + out if self.keeps_shape else out


class MobileNetV2(nn.Module):
    """Stem `conv1`, the groups `blocks.0` .. `blocks.6`, head `conv2`; activations are ReLU.

    Args:
        num_classes: number of logits.
    """

    stage_names = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")  # the last group of each size

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv3x3(3, STEM_CHANNELS, stride=2), nn.BatchNorm2d(STEM_CHANNELS), nn.ReLU())
        inputs = (STEM_CHANNELS, *(group.channels for group in GROUPS))
        self.blocks = nn.Sequential(*map(_blocks, inputs, GROUPS))
        self.conv2 = nn.Sequential(conv1x1(inputs[-1], HEAD_CHANNELS), nn.BatchNorm2d(HEAD_CHANNELS), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(HEAD_CHANNELS, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        x = self.conv2(self.blocks(self.conv1(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _blocks(in_channels: int, group: Group) -> nn.Sequential:
    first = InvertedResidual(in_channels, group.channels, group.stride, group.expansion)
    others = (InvertedResidual(group.channels, group.channels, 1, group.expansion) for _ in range(group.blocks - 1))
    return nn.Sequential(first, *others)
