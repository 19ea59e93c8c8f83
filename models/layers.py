"""Layers and initialisation shared by the network families."""

import math

from torch import Tensor, nn


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias: [B, in_channels, H, W] -> [B, out_channels, ceil(H/stride), ceil(W/stride)]."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, groups=groups, bias=False)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias: [B, in_channels, H, W] -> [B, out_channels, ceil(H/stride), ceil(W/stride)]."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Residual path: identity for equal shapes, else a 1x1 convolution with BatchNorm (He et al. 2016, option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal groups; [B, C, H, W] -> [B, C, H, W], C divisible by groups.

    Source: ShuffleNet (Zhang et al. 2018), section 3.1.
    """
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


def initialise(network: nn.Module) -> None:
    """Set every convolution to Kaiming normal (fan out, ReLU gain), its bias to 0, and every BatchNorm to 1 and 0.

    The fan out is divided by the number of groups, because an input reaches only the outputs of its group.
    `nn.init.kaiming_normal_` does not divide and would make depthwise weights smaller by a factor of sqrt(C).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
