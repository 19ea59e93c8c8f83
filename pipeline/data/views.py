"""Random views that image and number decide, so that what is stored about a view can be used when it comes again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
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


@dataclass(frozen=True)
class _Plan:
    """What numbers decide about views: their images, their keys, and the same for those that they are mixed with."""

    index: Tensor
    keys: Tensor
    partner: Tensor | None
    draws: KeyedDraws | None


def numbered_views(
    images: Images, wanted: Iterable[tuple[Tensor, Tensor]], seed: int, *, mixed: bool
) -> Iterator[View]:
    """Yield one view of each image of each batch [M]: the crop and flip, and the mixture, that its number decides.

    A mixed view is that of the image mixed with a view of another one, drawn at random from the whole split. Half of
    the views are mixed by MixUp (Zhang et al., arXiv 1710.09412), half by CutMix (Yun et al., arXiv 1905.04899), with a
    share that is uniform in [0, 1].

    Args:
        wanted: indices and numbers of views, int64 [M] each, on the device of the images; read a few batches ahead.
        seed: of all views, 63 bits.
    """
    plans, keys, indices = tee(
        (_plan(images, index, view_keys(seed, index, number), mixed) for index, number in wanted), 3
    )
    drawn = images.keyed_views((plan.index for plan in indices), (plan.keys for plan in keys))
    for views, plan in zip(drawn, plans, strict=True):
        if plan.partner is None or plan.draws is None:
            yield View(views, None)
            continue
        own, other = views.chunk(2)
        weights = _weights(plan.draws, *images.shape[1:])
        yield View(torch.lerp(other, own, weights), Mixture(plan.partner, weights.mean(dim=(1, 2, 3))))


def _plan(images: Images, index: Tensor, keys: Tensor, mixed: bool) -> _Plan:
    if not mixed:
        return _Plan(index, keys, None, None)
    # a stream of its own for the mixture, and one for the view of the partner
    mixture, other = (view_keys(stream, keys, torch.zeros_like(keys)) for stream in (1, 2))
    draws = KeyedDraws(mixture)
    partner = draws.integers(len(images))[0, :, 0]
    return _Plan(torch.cat([index, partner]), torch.cat([keys, other]), partner, draws)


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
