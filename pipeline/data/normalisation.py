"""Normalisation of the pixels that a network takes: each network has its own."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn


class Card(Protocol):
    """A card with a normalisation: of a network, or the statistics of the training images."""

    @property
    def mean(self) -> list[float]: ...

    @property
    def std(self) -> list[float]: ...


class Normalisation(NamedTuple):
    """Subtracted from, and divided into, pixel values in [0, 1]; one number per channel."""

    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def of(cls, card: Card) -> Self:
        """The normalisation that a card records."""
        return cls(tuple(card.mean), tuple(card.std))

    def of_channels(self, channels: int) -> Self:
        """The normalisation for images of 1 or 3 channels; for grey images the mean over red, green and blue."""
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in self)
        return type(self)((mean,) * channels, (std,) * channels)

    def __str__(self) -> str:
        return " / ".join(str([round(value, 4) for value in values]) for values in self)


# of the programs that public checkpoints come from
USUAL_NORMALISATIONS = {
    "ImageNet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "Inception": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP": Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "pixels as they are": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Renormalised(nn.Module):
    """A network that takes images in another normalisation than its own.

    Args:
        own: of the network.
        given: of the images [B, C, H, W] that it will be called with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: Normalisation, given: Normalisation) -> None:
        super().__init__()
        self.network = network
        (own_mean, own_std), (mean, std) = (torch.tensor(values, dtype=torch.float64) for values in (own, given))
        self.register_buffer("scale", (std / own_std).float()[:, None, None])
        self.register_buffer("shift", ((mean - own_mean) / own_std).float()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in the given normalisation -> logits [B, K]."""
        return cast(Tensor, self.network(images * self.scale + self.shift))


def taking(given: Normalisation, network: nn.Module, own: Normalisation) -> nn.Module:
    """The network for images in the ``given`` normalisation; the network itself if that is its own."""
    return network if given == own else Renormalised(network, own, given).to(next(network.parameters()).device)
