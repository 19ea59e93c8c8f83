"""Networks for teachers and students, and the registry that builds them by name.

Names without a prefix are the networks of the CRD and mdistiller benchmarks for 32x32 images. They map images
[B, 3, H, W] to logits [B, num_classes]. Their state dicts match the public checkpoints in names, order and shapes, so
these load with `strict=True`. `torchvision:<name>` and `timm:<name>` build a classifier of these libraries, without
pretrained weights.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from models import libraries
from models.channels import with_channels
from models.libraries import NetworkOptionError, UnknownNetworkError, unknown
from models.mobilenet_v2 import MobileNetV2
from models.resnet import NARROW, WIDE, ResNet
from models.resnet_four_stage import BasicBlock, Bottleneck, FourStageResNet
from models.shufflenet_v1 import ShuffleNetV1
from models.shufflenet_v2 import ShuffleNetV2
from models.vgg import CONVOLUTIONS, VGG
from models.wide_resnet import WideResNet

__all__ = ["NetworkOptionError", "UnknownNetworkError", "available", "build", "stage_names"]

_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "MobileNetV2": MobileNetV2,
    "ResNet18": partial(FourStageResNet, BasicBlock, (2, 2, 2, 2)),
    "ResNet50": partial(FourStageResNet, Bottleneck, (3, 4, 6, 3)),
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    **{f"resnet{depth}": partial(ResNet, depth, NARROW) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(ResNet, depth, WIDE) for depth in (8, 32)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    **{f"wrn_{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)},
}


def available() -> list[str]:
    """The names without a prefix, sorted."""
    return sorted(_NETWORKS)


def build(
    name: str,
    num_classes: int,
    *,
    shape: tuple[int, int, int] | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: one of `available()`, or `torchvision:<name>`, or `timm:<name>`, where a tag after a dot, which names
            pretrained weights, changes nothing.
        num_classes: number of logits, at least 1.
        shape: channels (1 or 3), height and width of the images, for networks that are built for one size; None: RGB
            images of the library's own size.
        dropout, drop_path: rates in training, 0..1; for networks of the libraries that have them.

    Raises:
        UnknownNetworkError: no network has this name.
        NetworkOptionError: the network has no dropout or drop path, or cannot be built for this shape.
        ValueError: num_classes is below 1.
    """
    if num_classes < 1:
        raise ValueError(f'Network "{name}" needs at least 1 class, not {num_classes}: set the number of classes.')
    if libraries.owns(name):
        network = libraries.build(name, num_classes, shape and shape[1:], dropout, drop_path)
    elif name not in _NETWORKS:
        raise unknown(name, "", _NETWORKS, "python -m models")
    elif dropout or drop_path:
        raise NetworkOptionError(f"{name} has no dropout and no drop path; set both to 0")
    else:
        network = _NETWORKS[name](num_classes)
    return with_channels(network, shape[0]) if shape else network


def stage_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the submodules for feature losses, shallow to deep; each outputs features [B, C, H, W].

    The features have the shapes of the CRD and mdistiller benchmarks, without the stem. Networks of other libraries
    have no stage names.
    """
    names = getattr(network, "stage_names", ())
    return names if isinstance(names, tuple) else ()
