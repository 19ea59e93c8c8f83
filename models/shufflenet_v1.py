"""ShuffleNet with three groups for 32x32 images (after Zhang et al. 2018, table 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import channel_shuffle, conv1x1, conv3x3, initialise

GROUPS = 3
STEM_CHANNELS = 24


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1 convolution.

    A unit of stride 2 concatenates the average-pooled input, so its convolutions compute only the other channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        produced = out_channels - in_channels if stride == 2 else out_channels
        width = produced // 4
        # The stem's 24 channels are too few to be split (paper, section 3.2).
        self.first_groups = 1 if in_channels == STEM_CHANNELS else GROUPS
        self.conv1 = conv1x1(in_channels, width, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, produced, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(produced)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H/stride), ceil(W/stride)]."""
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.first_groups)
        # The public checkpoints have a ReLU here; the paper does not.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            pooled = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
            return F.relu(torch.cat((out, pooled), dim=1))
        return F.relu(out + x)


class ShuffleNetV1(nn.Module):
    """Stem and the stages `layer1` .. `layer3` of 240, 480 and 960 channels.

    Args:
        num_classes: number of logits.
    """

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM_CHANNELS)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _stage(STEM_CHANNELS, 240, units=4)
        self.layer2 = _stage(240, 480, units=8)
        self.layer3 = _stage(480, 960, units=4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(960, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = ShuffleUnit(in_channels, channels, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, stride=1) for _ in range(units - 1)))
