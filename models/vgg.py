"""VGG with BatchNorm, global average pooling and one linear layer (after Simonyan and Zisserman 2015, table 1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import initialise

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Blocks `block0` .. `block4` of 3x3 convolutions with 2x2 max pooling between them.

    Images below 64 pixels skip the last max pooling (before `block4`), because the feature map would become too small.
    The public checkpoints were trained without this pooling at 32 pixels, and with it at 64 pixels.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: number of logits.

    Raises:
        ValueError: the depth has another value.
    """

    stage_names = ("block1", "block2", "block3", "block4")

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {sorted(CONVOLUTIONS)}, not {depth}")
        convolutions = CONVOLUTIONS[depth]
        self.block0 = _block(3, WIDTHS[0], convolutions[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convolutions[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convolutions[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convolutions[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convolutions[4])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        large = x.shape[2] >= 64
        x = F.max_pool2d(self.block0(x), 2)
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        x = self.block3(x)
        if large:
            x = F.max_pool2d(x, 2)
        x = self.block4(x)
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers += [
            nn.Conv2d(in_channels if index == 0 else channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
