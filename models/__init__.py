"""Networks for teachers and students, and the registry that builds them by name.

Names without a prefix are the networks of the CRD and mdistiller benchmarks for 32x32 images. They map images
[B, 3, H, W] to logits [B, num_classes]. Their state dicts match the public checkpoints in names, order and shapes, so
these load with `strict=True`. `torchvision:<name>` and `timm:<name>` build a classifier of these libraries, without
pretrained weights.
"""

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from models.mobilenet_v2 import MobileNetV2
from models.resnet import NARROW, WIDE, ResNet
from models.resnet_four_stage import BasicBlock, Bottleneck, FourStageResNet
from models.shufflenet_v1 import ShuffleNetV1
from models.shufflenet_v2 import ShuffleNetV2
from models.vgg import CONVOLUTIONS, VGG
from models.wide_resnet import WideResNet

__all__ = ["UnknownNetworkError", "available", "build", "stage_names"]

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

# Without these options, both networks also return auxiliary logits in training mode.
_LOGITS_ONLY: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class UnknownNetworkError(ValueError):
    """No network has this name; the message has the closest names and the command that lists all names."""


def available() -> list[str]:
    """The names without a prefix, sorted."""
    return sorted(_NETWORKS)


def build(name: str, num_classes: int) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: one of `available()`, or `torchvision:<name>`, or `timm:<name>`.
        num_classes: number of logits, at least 1.

    Raises:
        UnknownNetworkError: no network has this name.
        ValueError: num_classes is below 1.
    """
    if num_classes < 1:
        raise ValueError(f'Network "{name}" needs at least 1 class, not {num_classes}: set the number of classes.')
    library, separator, rest = name.partition(":")
    if separator and library == "torchvision":
        return _build_torchvision(rest, num_classes)
    if separator and library == "timm":
        return _build_timm(rest, num_classes)
    if name not in _NETWORKS:
        raise _unknown(name, "", _NETWORKS, "python -m models")
    return _NETWORKS[name](num_classes)


def stage_names(network: nn.Module) -> tuple[str, ...]:
    """Names of the submodules for feature losses, shallow to deep; each outputs features [B, C, H, W].

    The features have the shapes of the CRD and mdistiller benchmarks, without the stem. Networks of other libraries
    have no stage names.
    """
    names = getattr(network, "stage_names", ())
    return names if isinstance(names, tuple) else ()


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models as library

    # Only the classifiers: the library's other families (detection, video, ...) do not map an image to logits.
    known = library.list_models(module=library)
    if name not in known:
        raise _unknown(
            name, "torchvision:", known, "python -c 'import torchvision.models as m; print(*m.list_models(m))'"
        )
    options = _LOGITS_ONLY.get(name, {})
    network: nn.Module = library.get_model(name, weights=None, num_classes=num_classes, **options)
    return network


def _build_timm(name: str, num_classes: int) -> nn.Module:
    import timm

    # A tag after the dot names pretrained weights; timm rejects a wrong tag even if it loads no weights.
    if not timm.is_model(name) or ("." in name and name not in timm.list_pretrained()):
        raise _unknown(name, "timm:", timm.list_models(), "python -c 'import timm; print(*timm.list_models())'")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return network


def _unknown(name: str, prefix: str, known: Iterable[str], listing: str) -> UnknownNetworkError:
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    architecture = name.partition(".")[0].lower()
    matches = difflib.get_close_matches(architecture, by_lower_case)
    closest = ", ".join(prefix + by_lower_case[match] for match in matches)
    suggestion = f"the closest names are {closest}" if closest else "no known name is close to it"
    libraries = "" if prefix else ", or take torchvision:<name> or timm:<name> from these libraries"
    return UnknownNetworkError(
        f"There is no network {prefix}{name}: {suggestion}; list the names with {listing}{libraries}."
    )
