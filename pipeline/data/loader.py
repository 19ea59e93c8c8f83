"""Batches of augmented and normalised views, made on the device.

The caller seeds the random generator, so packed and streamed pixels give the same numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.compute.distributed import ALONE, World
from pipeline.config import AugmentationParams
from pipeline.data.augmentation import (
    NONE,
    BatchDraws,
    Draws,
    KeyedDraws,
    Part,
    crops,
    erased,
    in_groups,
    policy,
    recoloured,
)
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import Pixels, ResidentPixels, StreamedPixels
from pipeline.data.store import PackedSplit, read_card, read_split
from pipeline.errors import TrainingError


@dataclass(frozen=True)
class Batch:
    """Images and labels of one training step."""

    images: Tensor  # normalised, float32 [B, C, H, W], channels_last
    labels: Tensor  # int64 [B]
    index: Tensor  # int64 [B], positions in the split
    process_weight: float = 1.0  # factor on the mean over this process's part (World.weight); 1 for a whole batch


class Images:
    """One split; makes views of its images on the device.

    Args:
        pixels: of the N images, with the border that ``augmentation`` needs.
        labels: int64 [N], on the device.
        normalisation: of the network that gets the images.
        augmentation: of the random views.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: Tensor,
        normalisation: Normalisation,
        augmentation: AugmentationParams = NONE,
    ) -> None:
        mean, std = (torch.tensor(values, device=labels.device) for values in normalisation)
        self.labels, self.normalisation = labels, normalisation
        self.shape = pixels.shape  # channels, height, width
        self._pixels = pixels
        self._augmentation = augmentation
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def centre(self, index: Tensor) -> Tensor:
        """Return the un-augmented images of ``index`` [B]: normalised, float32 [B, C, H, W]."""
        return next(self._centres([index]))

    def _centres(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        rows, columns = (slice(self._pixels.padding, self._pixels.padding + side) for side in self.shape[1:])
        for stored, places in self._pixels.fetch(indices):
            yield self._normalised(stored[places][:, rows, columns])

    def views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Tensor]:
        """Draw a random view for each image of each index [B]: normalised, float32 [M, C, H, W], channels_last.

        Args:
            generator: on the device of the images.
            parts: the M positions of each index to return, default all; the views do not depend on it, but for those of
                torchvision's operations.
        """
        return (self._view(cropped, draws) for cropped, draws in self._drawn_crops(indices, generator, parts))

    def strong_views(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None = None
    ) -> Iterator[Tensor]:
        """Random crops, flips and turns with RandAugment: float32 [M, C, H, W]. Arguments as in :meth:`views`."""
        for cropped, _ in self._drawn_crops(indices, generator, parts):
            yield self._normalised(in_groups(cropped, policy("randaugment")))

    def keyed_views(self, indices: Iterable[Tensor], keys: Iterable[Tensor]) -> Iterator[Tensor]:
        """The views of each index [B] that its keys int64 [B] decide, but for torchvision's operations: as
        :meth:`views`.
        """
        draws = map(KeyedDraws, keys)
        return (self._view(cropped, drawn) for cropped, drawn in self._crops(indices, draws))

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

    def _drawn_crops(
        self, indices: Sequence[Tensor], generator: torch.Generator, parts: Sequence[Part] | None
    ) -> Iterator[tuple[Tensor, Draws]]:
        chosen = [slice(None)] * len(indices) if parts is None else parts
        draws = (
            BatchDraws(len(index), part, generator, self.device) for index, part in zip(indices, chosen, strict=True)
        )
        return self._crops([index[part] for index, part in zip(indices, chosen, strict=True)], draws)

    def _crops(self, indices: Iterable[Tensor], draws: Iterable[Draws]) -> Iterator[tuple[Tensor, Draws]]:
        """Yield the crops uint8 [M, H, W, C] of each index, and what draws further numbers for them."""
        for (stored, places), drawn in zip(self._pixels.fetch(indices), draws, strict=True):
            yield crops(stored, places, self.shape, self._augmentation, drawn), drawn

    def _view(self, cropped: Tensor, draws: Draws) -> Tensor:
        images = self._normalised(recoloured(cropped, self._augmentation))
        return erased(images, self._augmentation.erasing, draws) if self._augmentation.erasing > 0 else images

    def _normalised(self, images: Tensor) -> Tensor:
        # NHWC memory permuted to NCHW is channels_last, the fastest layout for convolutions
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)


def open_images(
    folder: Path,
    name: str,
    device: torch.device,
    normalisation: Normalisation,
    augmentation: AugmentationParams = NONE,
) -> Images:
    """Open a split of the store in ``folder``; arguments as of :class:`Images`."""
    card, split = read_card(folder), read_split(folder, name)
    pixels: Pixels = (
        ResidentPixels(split.images, device, augmentation.padding)
        if isinstance(split, PackedSplit)
        else StreamedPixels(split.paths, card.image, device, augmentation.padding)
    )
    labels = torch.tensor(split.labels, device=device)
    return Images(pixels, labels, normalisation, augmentation)


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
    for whole, part, views in zip(indices, parts, images.views(indices, generator, parts), strict=True):
        index = whole[part]
        yield Batch(views, images.labels[index], index, world.weight(len(index), len(whole)))


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
