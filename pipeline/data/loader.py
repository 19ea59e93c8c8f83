"""Batches of views of images that live on the compute device as one uint8 tensor.

Random crop, flip and normalisation are a single gather for the whole batch, so there are no workers and nothing is
decoded in the training loop. All randomness comes from a generator that the caller seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from pipeline.config import DataParams
from pipeline.data.store import PackedSplit, read_card, read_split

_STRONG_GROUP = 8  # images that share the operations of a strong view


class Views(TypedDict):
    """What random views of training images are made of: see :class:`DeviceImages`."""

    crop_padding: int
    horizontal_flip: bool


def training_views(params: DataParams) -> Views:
    """The views that ``params`` ask for."""
    return {"crop_padding": params.crop_padding, "horizontal_flip": params.horizontal_flip}


@dataclass(frozen=True)
class Batch:
    """Normalised images float32 [B, 3, S, S] (channels_last), labels int64 [B], and index int64 [B] in the split."""

    images: Tensor
    labels: Tensor
    index: Tensor


class DeviceImages:
    """One split on the device.

    Args:
        split: the packed images and labels.
        mean, std: per channel, on the scale [0, 1].
        crop_padding: pixels of black border for random crops.
        horizontal_flip: whether views are mirrored half of the time.
    """

    def __init__(
        self,
        split: PackedSplit,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
    ) -> None:
        # ascontiguousarray would keep a read-only map; torch wants memory of its own
        images = torch.tensor(split.images, device=device)
        self.labels = torch.tensor(split.labels, device=device)
        self.size = images.shape[1]
        self.padding = crop_padding
        self.flip = horizontal_flip
        border = (0, 0, crop_padding, crop_padding, crop_padding, crop_padding)
        self._padded = torch.nn.functional.pad(images, border)
        self._scale = 1 / (255 * torch.tensor(std, device=device))
        self._shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def centre(self, index: Tensor) -> Tensor:
        """The un-augmented images of ``index`` [B]: float32 [B, 3, S, S]."""
        inner = slice(self.padding, self.padding + self.size)
        return self._normalised(self._padded[index][:, inner, inner])

    def views(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops and flips of the images of ``index`` [B]: float32 [B, 3, S, S].

        Args:
            generator: on the device of the images.
        """
        return self._normalised(self._crops(index, generator))

    def strong_views(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops and flips under RandAugment(2, 10) (Cubuk et al., arXiv 1909.13719): float32 [B, 3, S, S].

        Operations are drawn once for every few images, not for each, so that they run on whole tensors. They are drawn
        from torch's global generator, because RandAugment takes no other.

        Args:
            generator: of the crops and flips; on the device of the images.
        """
        crops = self._crops(index, generator).permute(0, 3, 1, 2)
        augmented = [_rand_augment()(part) for part in torch.split(crops, _STRONG_GROUP)]
        return self._normalised(torch.cat(augmented).permute(0, 2, 3, 1).contiguous())

    def _crops(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, S, S, 3]."""
        batch, device = index.numel(), self.device
        offsets = torch.randint(2 * self.padding + 1, (2, batch, 1), generator=generator, device=device)
        pixels = torch.arange(self.size, device=device)
        rows, columns = offsets[0] + pixels, pixels.expand(batch, -1)
        if self.flip:
            mirrored = torch.rand((batch, 1), generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, self.size - 1 - columns, columns)
        columns = offsets[1] + columns
        return self._padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All images once, un-augmented and in order; the last batch may be smaller."""
        for index in torch.split(torch.arange(len(self), device=self.device), batch_size):
            yield Batch(self.centre(index), self.labels[index], index)

    def _normalised(self, images: Tensor) -> Tensor:
        # NHWC in memory seen as NCHW is channels_last, the layout that convolutions are fastest in
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)


@cache
def _rand_augment() -> Callable[[Tensor], Tensor]:
    from torchvision.transforms.v2 import RandAugment  # noqa: PLC0415  slow import that one loss needs

    augment: Callable[[Tensor], Tensor] = RandAugment(num_ops=2, magnitude=10)
    return augment


def open_images(
    folder: Path, name: str, device: torch.device, *, crop_padding: int = 0, horizontal_flip: bool = False
) -> DeviceImages:
    """One split of the packed store in ``folder`` on the device, normalised as the store's card says."""
    card = read_card(folder)
    return DeviceImages(
        read_split(folder, name),
        card["mean"],
        card["std"],
        device,
        crop_padding=crop_padding,
        horizontal_flip=horizontal_flip,
    )


def shuffled_batches(images: DeviceImages, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """One epoch of random views. The last partial batch is left out, unless it is the only one."""
    order = torch.randperm(len(images), generator=generator, device=images.device)
    for index in torch.split(order, batch_size)[: steps_per_epoch(len(images), batch_size)]:
        yield Batch(images.views(index, generator), images.labels[index], index)


def cycled_indices(members: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` batches of exactly ``batch_size`` indices out of ``members`` [M], each member once before any twice."""
    rounds = -(-batch_size * steps // members.numel())
    order = torch.cat(
        [members[torch.randperm(members.numel(), generator=generator, device=members.device)] for _ in range(rounds)]
    )
    yield from torch.split(order[: batch_size * steps], batch_size)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in ``count`` images; 1 if there is none."""
    return max(1, count // batch_size)
