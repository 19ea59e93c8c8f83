"""Wide residual networks: three stages of pre-activation blocks (Zagoruyko and Komodakis 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import conv1x1, conv3x3, initialise


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions.

    If the shape changes, the residual path starts after the first BatchNorm and ReLU; otherwise it is the raw input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        keeps_shape = stride == 1 and in_channels == channels
        # The name in the public checkpoints.
        self.convShortcut = None if keeps_shape else conv1x1(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, ceil(H/stride), ceil(W/stride)]."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + shortcut


class Stage(nn.Module):
    """The blocks of one stage; the submodule `layer` has its name from the public checkpoints."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, ceil(H/stride), ceil(W/stride)]."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Stem and the stages `block1` .. `block3` of 16, 32 and 64 channels times `widen`.

    Args:
        depth: number of layers, 6n+4; every stage has n blocks.
        widen: factor on the channels of the stages.
        num_classes: number of logits.

    Raises:
        ValueError: the depth is not 6n+4.
    """

    stage_names = ("block1", "block2", "block3")

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n+4 (10, 16, 22, ...), not {depth}")
        first, second, third = 16 * widen, 32 * widen, 64 * widen
        self.conv1 = conv3x3(3, 16)
        self.block1 = Stage(16, first, blocks, stride=1)
        self.block2 = Stage(first, second, blocks, stride=2)
        self.block3 = Stage(second, third, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
