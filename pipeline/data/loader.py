"""Batches of views of images. Crop, flip and normalisation are one gather for the whole batch, on the device.

All randomness comes from a generator that the caller seeds, so the numbers do not depend on where pixels come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from pipeline.compute.distributed import ALONE, World
from pipeline.config import DataParams
from pipeline.data.pixels import Pixels, ResidentPixels, StreamedPixels
from pipeline.data.store import PackedSplit, read_card, read_split
from pipeline.errors import TrainingError

_STRONG_GROUP = 8  # images that share the operations of a strong view


class Views(TypedDict):
    """What random views of training images are made of: see :class:`Images`."""

    crop_padding: int
    horizontal_flip: bool


def training_views(params: DataParams) -> Views:
    """The views that ``params`` ask for."""
    return {"crop_padding": params.crop_padding, "horizontal_flip": params.horizontal_flip}


# which places of a batch are wanted
Part = slice | Tensor


class Drawn(NamedTuple):
    """Random views of images.

    Attributes:
        images: normalised, float32 [M, 3, S, S], channels_last.
        views: int64 [M], which crop and flip each is: in [0, :attr:`Images.view_count`).
    """

    images: Tensor
    views: Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one step.

    Attributes:
        images: normalised, float32 [B, 3, S, S], channels_last.
        labels: int64 [B].
        index: int64 [B], in the split.
        weight: of their mean in the objective; 1 unless they are one process's part of a larger batch.
        views: int64 [B], which crop and flip of its image each is, see :class:`Drawn`; None if they are un-augmented.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    weight: float = 1.0
    views: Tensor | None = None


@dataclass(frozen=True)
class _Consecutive:
    """The batches of ranges of images, each index made on the host when it is asked for."""

    rows: Sequence[range]
    batch_size: int

    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.rows:
            for start in range(rows.start, rows.stop, self.batch_size):
                yield torch.arange(start, min(start + self.batch_size, rows.stop))


class Images:
    """One split, with views of its images on the device.

    Args:
        pixels: of the N images, with the border that random crops reach into.
        labels: int64 [N], on the device.
        mean, std: per channel, on the scale [0, 1].
        horizontal_flip: whether views are mirrored half of the time.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        horizontal_flip: bool = False,
    ) -> None:
        self.labels = labels
        self.size = pixels.size
        self._pixels = pixels
        self._flip = horizontal_flip
        self._scale = 1 / (255 * torch.tensor(std, device=labels.device))
        self._shift = -torch.tensor(mean, device=labels.device) / torch.tensor(std, device=labels.device)

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def view_count(self) -> int:
        """How many different random views an image has."""
        return (2 * self._pixels.padding + 1) ** 2 * (2 if self._flip else 1)

    def centre(self, index: Tensor) -> Tensor:
        """The un-augmented images of ``index`` [B]: float32 [B, 3, S, S]."""
        return next(self.centres([index]))

    def centres(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """The un-augmented images of each index [B]: float32 [B, 3, S, S]."""
        inner = slice(self._pixels.padding, self._pixels.padding + self.size)
        for stored, places in self._pixels.fetch(indices):
            yield self._normalised(stored[places][:, inner, inner])

    def views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Drawn]:
        """Random crops and flips of the images of each index [B].

        Args:
            generator: on the device of the images.
            parts: the places of each index that are wanted, M of them, the same views as without; all unless given.
        """
        for crops, views in self._crops(indices, generator, parts):
            yield Drawn(self._normalised(crops), views)

    def strong_views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Tensor]:
        """Random crops and flips under RandAugment(2, 10) (Cubuk et al., arXiv 1909.13719): float32 [B, 3, S, S].

        Operations are drawn once for every few images, not for each, so that they run on whole tensors. They are drawn
        from torch's global generator, because RandAugment takes no other.

        Args:
            generator: of the crops and flips; on the device of the images.
            parts: as for :meth:`views`; the operations are drawn for each process's part by itself.
        """
        for crops, _ in self._crops(indices, generator, parts):
            groups = torch.split(crops.permute(0, 3, 1, 2), _STRONG_GROUP)
            augmented = torch.cat([_rand_augment()(group) for group in groups])
            yield self._normalised(augmented.permute(0, 2, 3, 1).contiguous())

    def batches(self, batch_size: int, rows: Sequence[range] | None = None) -> Iterator[Batch]:
        """The images of each range of ``rows``, un-augmented and in order; the last batch of a range may be smaller.

        Args:
            rows: ranges of step 1, one after the other; all images unless given.
        """
        indices = _Consecutive([range(len(self))] if rows is None else rows, batch_size)
        for index, images in zip(indices, self.centres(indices), strict=True):
            there = index.to(self.device, non_blocking=True)
            yield Batch(images, self.labels[there], there)

    def _crops(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [M, S, S, 3] of each index, and which view each is."""
        device, padding = self.device, self._pixels.padding
        pixels = torch.arange(self.size, device=device)
        chosen = [slice(None)] * len(indices) if parts is None else parts
        wanted = [index[part] for index, part in zip(indices, chosen, strict=True)]
        for (stored, places), index, part in zip(self._pixels.fetch(wanted), indices, chosen, strict=True):
            # drawn for the whole batch, so that a process's part of it is the same however many processes there are
            batch = index.numel()
            offsets = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator, device=device)[:, part]
            rows, columns = offsets[0] + pixels, pixels
            views = (2 * padding + 1) * offsets[0] + offsets[1]
            if self._flip:
                mirrored = torch.rand((batch, 1), generator=generator, device=device)[part] < 0.5
                columns = torch.where(mirrored, self.size - 1 - columns, columns)
                views = 2 * views + mirrored
            columns = offsets[1] + columns
            yield stored[places[:, None, None], rows[:, :, None], columns[:, None, :]], views[:, 0]

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
) -> Images:
    """One split of the store in ``folder``, normalised as the store's card says; packed images go to the device."""
    card, split = read_card(folder), read_split(folder, name)
    pixels: Pixels
    if isinstance(split, PackedSplit):
        pixels = ResidentPixels(split.images, device, crop_padding)
    else:
        pixels = StreamedPixels(split.paths, card["image_size"], device, crop_padding)
    labels = torch.tensor(split.labels, device=device)
    return Images(pixels, labels, card["mean"], card["std"], horizontal_flip=horizontal_flip)


def shuffled_indices(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The batches of one epoch over ``count`` images: int64 [B] each, on the generator's device.

    The last partial batch is left out, unless it is the only one.
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    return list(torch.split(order, batch_size)[: steps_per_epoch(count, batch_size)])


def shuffled_batches(
    images: Images, batch_size: int, generator: torch.Generator, world: World = ALONE
) -> Iterator[Batch]:
    """One epoch of random views: this process's part of each batch of :func:`shuffled_indices`."""
    indices = shuffled_indices(len(images), batch_size, generator)
    return view_batches(images, indices, generator, world)


def view_batches(
    images: Images, indices: Sequence[Tensor], generator: torch.Generator, world: World
) -> Iterator[Batch]:
    """Random views of this process's part of each batch, with labels and weight."""
    parts = shares(indices, world)
    for whole, part, drawn in zip(indices, parts, images.views(indices, generator, parts), strict=True):
        index = whole[part]
        yield Batch(drawn.images, images.labels[index], index, world.weight(len(index), len(whole)), drawn.views)


def shares(indices: Sequence[Tensor], world: World) -> list[slice]:
    """This process's part of each batch.

    Raises:
        TrainingError: a batch has fewer images than there are processes.
    """
    smallest = min(len(index) for index in indices)
    if smallest < world.size:
        raise TrainingError(
            f"a batch of {smallest} images cannot be divided among {world.size} processes; raise batch_size (or "
            "heda.fraction), or lower launcher.processes"
        )
    return [world.share(len(index)) for index in indices]


def cycled_indices(members: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """``steps`` batches of exactly ``batch_size`` indices out of ``members`` [M], each member once before any twice."""
    rounds = -(-batch_size * steps // members.numel())
    order = torch.cat(
        [members[torch.randperm(members.numel(), generator=generator, device=members.device)] for _ in range(rounds)]
    )
    return list(torch.split(order[: batch_size * steps], batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in ``count`` images; 1 if there is none."""
    return max(1, count // batch_size)
