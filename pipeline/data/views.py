"""Random views that image and number decide, so that what is stored about a view can be used when it comes again."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.augmentation import KeyedDraws, view_keys
from pipeline.data.loader import Images


class Mixture(NamedTuple):
    """Which other image each of M images is mixed with, and how much of it is left."""

    partner: Tensor  # int64 [M], positions in the split
    share: Tensor  # float32 [M], of the image itself; the rest is its partner's


class View(NamedTuple):
    """Views of M images."""

    images: Tensor  # normalised, float32 [M, C, H, W], channels_last
    mixture: Mixture | None  # None if they are not mixed


def numbered_views(
    images: Images, indices: Sequence[Tensor], numbers: Sequence[Tensor], seed: int, *, mixed: bool
) -> Iterator[View]:
    """Yield one view of each image of each index [M]: the crop and flip, and the mixture, that its number decides.

    A mixed view is that of the image mixed with a view of another one, drawn at random from the whole split. Half of
    the views are mixed by MixUp (Zhang et al., arXiv 1710.09412), half by CutMix (Yun et al., arXiv 1905.04899), with a
    share that is uniform in [0, 1].

    Args:
        numbers: int64 [M] for each index, on the device of the images.
        seed: of all views, 63 bits.
    """
    keys = [view_keys(seed, index, number) for index, number in zip(indices, numbers, strict=True)]
    if not mixed:
        yield from (View(views, None) for views in images.keyed_views(indices, keys))
        return
    # a stream of its own for the mixture, and one for the view of the partner
    mixings = [KeyedDraws(view_keys(1, key, torch.zeros_like(key))) for key in keys]
    partners = [draws.integers(len(images))[0, :, 0] for draws in mixings]
    both = [torch.cat(pair) for pair in zip(indices, partners, strict=True)]
    keys = [torch.cat([key, view_keys(2, key, torch.zeros_like(key))]) for key in keys]
    for views, partner, draws in zip(images.keyed_views(both, keys), partners, mixings, strict=True):
        own, other = views.chunk(2)
        weights = _weights(draws, *images.shape[1:])
        yield View(torch.lerp(other, own, weights), Mixture(partner, weights.mean(dim=(1, 2, 3))))


def _weights(draws: KeyedDraws, height: int, width: int) -> Tensor:
    """Of each pixel of the image itself in its mixture: float32 [M, 1, H, W]."""
    kind, share, down, right = draws.uniform(count=4)[..., None]  # [M, 1, 1] each
    half_side = (1 - share).sqrt() / 2  # the box is centred uniformly and clipped at the border
    rows, columns = (
        ((torch.arange(side, device=draws.device) + 0.5) / side - centre).abs() <= half_side
        for side, centre in ((height, down), (width, right))
    )
    box = rows.transpose(1, 2) & columns
    cut = torch.where(box, 0.0, 1.0)
    return torch.where(kind < 0.5, cut, share)[:, None]
