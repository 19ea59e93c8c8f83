"""Batches of augmented views: crop, flip and normalisation are one gather per batch, on the device.

The caller seeds the random generator, so packed and streamed pixels give the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from pipeline.compute.distributed import ALONE, World
from pipeline.config import DataParams
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import Pixels, ResidentPixels, StreamedPixels
from pipeline.data.store import PackedSplit, read_card, read_split
from pipeline.errors import TrainingError

_STRONG_GROUP = 8  # images with the same operations in a strong view


class Views(TypedDict):
    """Arguments of :func:`open_images` for random views."""

    crop_padding: int
    horizontal_flip: bool


def training_views(params: DataParams) -> Views:
    """Arguments of :func:`open_images` for the training views of ``params``."""
    return {"crop_padding": params.crop_padding, "horizontal_flip": params.horizontal_flip}


Part = slice | Tensor  # positions in a batch


class Drawn(NamedTuple):
    """Random views of images."""

    images: Tensor  # normalised, float32 [M, 3, S, S], channels_last
    views: Tensor  # int64 [M], number of the crop and flip, in [0, Images.view_count)


@dataclass(frozen=True)
class Batch:
    """Images and labels of one training step."""

    images: Tensor  # normalised, float32 [B, 3, S, S], channels_last
    labels: Tensor  # int64 [B]
    index: Tensor  # int64 [B], positions in the split
    process_weight: float = 1.0  # factor on the mean over this process's part (World.weight); 1 for a whole batch
    views: Tensor | None = None  # int64 [B], as in Drawn; None if the images are un-augmented


class Images:
    """One split; makes views of its images on the device.

    Args:
        pixels: of the N images, with the border for random crops.
        labels: int64 [N], on the device.
        normalisation: of the network that gets the images.
        horizontal_flip: mirror each view with probability 0.5.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        normalisation: Normalisation,
        *,
        horizontal_flip: bool = False,
    ) -> None:
        mean, std = (torch.tensor(values, device=labels.device) for values in normalisation)
        self.labels, self.normalisation = labels, normalisation
        self.size = pixels.size
        self._pixels = pixels
        self._flip = horizontal_flip
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def view_count(self) -> int:
        """Number of different random views of an image."""
        return (2 * self._pixels.padding + 1) ** 2 * (2 if self._flip else 1)

    def centre(self, index: Tensor) -> Tensor:
        """Return the un-augmented images of ``index`` [B]: normalised, float32 [B, 3, S, S]."""
        return next(self._centres([index]))

    def _centres(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        inner = slice(self._pixels.padding, self._pixels.padding + self.size)
        for stored, places in self._pixels.fetch(indices):
            yield self._normalised(stored[places][:, inner, inner])

    def views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Drawn]:
        """Draw a random crop and flip for each image of each index [B].

        Args:
            generator: on the device of the images.
            parts: the M positions of each index to return, default all; the views do not depend on it.
        """
        for crops, views in self._crops(indices, generator, parts):
            yield Drawn(self._normalised(crops), views)

    def strong_views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Tensor]:
        """Random crops and flips with RandAugment(2, 10) (Cubuk et al., arXiv 1909.13719): float32 [M, 3, S, S].

        Groups of 8 images share the drawn operations, so that these run on whole tensors. RandAugment draws from
        torch's global generator, because it accepts no other. Arguments as in :meth:`views`.
        """
        for crops, _ in self._crops(indices, generator, parts):
            groups = torch.split(crops.permute(0, 3, 1, 2), _STRONG_GROUP)
            augmented = torch.cat([_rand_augment()(group) for group in groups])
            yield self._normalised(augmented.permute(0, 2, 3, 1).contiguous())

    def batches(self, batch_size: int, rows: Sequence[range] | None = None) -> Iterator[Batch]:
        """Yield the un-augmented images of each range of ``rows`` (step 1, default all images) in order; the last batch
        of a range may be smaller.
        """
        whole = [range(len(self))] if rows is None else rows

        def indices() -> Iterator[Tensor]:  # on the host, made on demand
            for part in whole:
                for start in range(part.start, part.stop, batch_size):
                    yield torch.arange(start, min(start + batch_size, part.stop))

        for index, images in zip(indices(), self._centres(indices()), strict=True):
            device_index = index.to(self.device, non_blocking=True)
            yield Batch(images, self.labels[device_index], device_index)

    def _crops(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the crops uint8 [M, S, S, 3] of each index, and the numbers of the views [M]."""
        device, padding = self.device, self._pixels.padding
        pixels = torch.arange(self.size, device=device)
        chosen = [slice(None)] * len(indices) if parts is None else parts
        part_indices = [index[part] for index, part in zip(indices, chosen, strict=True)]
        for (stored, places), index, part in zip(self._pixels.fetch(part_indices), indices, chosen, strict=True):
            # drawn for the whole batch, so that the views do not depend on the number of processes
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
        # NHWC memory permuted to NCHW is channels_last, the fastest layout for convolutions
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)


@cache
def _rand_augment() -> Callable[[Tensor], Tensor]:
    from torchvision.transforms.v2 import RandAugment  # noqa: PLC0415  slow import for one loss

    augment: Callable[[Tensor], Tensor] = RandAugment(num_ops=2, magnitude=10)
    return augment


def open_images(
    folder: Path,
    name: str,
    device: torch.device,
    normalisation: Normalisation,
    *,
    crop_padding: int = 0,
    horizontal_flip: bool = False,
) -> Images:
    """Open a split of the store in ``folder``; arguments as of :class:`Images`."""
    card, split = read_card(folder), read_split(folder, name)
    pixels: Pixels = (
        ResidentPixels(split.images, device, crop_padding)
        if isinstance(split, PackedSplit)
        else StreamedPixels(split.paths, card.image_size, device, crop_padding)
    )
    labels = torch.tensor(split.labels, device=device)
    return Images(pixels, labels, normalisation, horizontal_flip=horizontal_flip)


def shuffled_indices(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffle ``count`` images into the full batches int64 [B] of one epoch; one smaller batch if none is full."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    return list(torch.split(order, batch_size)[: steps_per_epoch(count, batch_size)])


def balanced_indices(labels: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """As many batches as :func:`shuffled_indices`, of images that are drawn with replacement, so that each class of
    ``labels`` [N] has the same probability.
    """
    shares = 1 / torch.bincount(labels)[labels]
    order = torch.multinomial(shares, len(labels), replacement=True, generator=generator)
    return list(torch.split(order, batch_size)[: steps_per_epoch(len(labels), batch_size)])


def shuffled_batches(
    images: Images, batch_size: int, generator: torch.Generator, world: World = ALONE
) -> Iterator[Batch]:
    """Yield one epoch of random views: this process's part of each batch of :func:`shuffled_indices`."""
    indices = shuffled_indices(len(images), batch_size, generator)
    return view_batches(images, indices, generator, world)


def view_batches(
    images: Images, indices: Sequence[Tensor], generator: torch.Generator, world: World
) -> Iterator[Batch]:
    """Yield random views of this process's part of each batch, with labels and weight."""
    parts = shares(indices, world)
    for whole, part, drawn in zip(indices, parts, images.views(indices, generator, parts), strict=True):
        index = whole[part]
        yield Batch(drawn.images, images.labels[index], index, world.weight(len(index), len(whole)), drawn.views)


def shares(indices: Sequence[Tensor], world: World) -> list[slice]:
    """This process's part of each batch. Raises TrainingError: a batch has fewer images than processes."""
    smallest = min(len(index) for index in indices)
    if smallest < world.size:
        raise TrainingError(
            f"a batch size of {smallest} cannot be divided among {world.size} processes; raise batch_size (or "
            "heda.fraction), or lower launcher.processes"
        )
    return [world.share(len(index)) for index in indices]


def cycled_indices(members: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """``steps`` batches of ``batch_size`` indices from repeated shuffles of ``members`` [M]."""
    rounds = -(-batch_size * steps // members.numel())
    order = torch.cat(
        [members[torch.randperm(members.numel(), generator=generator, device=members.device)] for _ in range(rounds)]
    )
    return list(torch.split(order[: batch_size * steps], batch_size))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Number of full batches in ``count`` images, at least 1."""
    return max(1, count // batch_size)
