"""Random views of images, made for whole batches on the device of the images.

Crops, flips, turns and erasing take the numbers that they are given, so that they do not depend on the number of
processes. torchvision's operations draw from torch's global generator, because they accept no other.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import AugmentationParams, NoCropParams, ResizedCropParams
from pipeline.store.documents import Shape

Part = slice | Tensor  # positions in a batch
_GROUP = 8  # images that share the operations of torchvision, which then run on whole tensors
_BITS = 24  # of a number that is drawn from a key: float32 holds all of them
# constants of SplitMix64 as signed numbers of 64 bits
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_ERASED, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # share of the area, and width : height (Zhong et al., 1708.04896)

NONE = AugmentationParams(
    crop=NoCropParams(name="none"),
    horizontal_flip=False,
    vertical_flip=False,
    quarter_turns=False,
    policy="none",
    color_jitter=0.0,
    erasing=0.0,
)


class Draws(Protocol):
    """Random numbers for M images."""

    device: torch.device

    def integers(self, below: int, count: int = 1) -> Tensor:
        """int64 [count, M, 1] in [0, below)."""
        ...

    def uniform(self, count: int = 1) -> Tensor:
        """float32 [count, M, 1] in [0, 1)."""
        ...


class BatchDraws:
    """:class:`Draws` of a generator for a batch of B images, of which those of M images are handed out.

    Args:
        part: the positions of the M images.
    """

    def __init__(self, batch: int, part: Part, generator: torch.Generator, device: torch.device) -> None:
        self._batch, self._part, self._generator, self.device = batch, part, generator, device

    def integers(self, below: int, count: int = 1) -> Tensor:
        shape = count, self._batch, 1
        return torch.randint(below, shape, generator=self._generator, device=self.device)[:, self._part]

    def uniform(self, count: int = 1) -> Tensor:
        return torch.rand((count, self._batch, 1), generator=self._generator, device=self.device)[:, self._part]


class KeyedDraws:
    """:class:`Draws` that are a function of a key for each image alone, the same on all devices and in any batch.

    Args:
        keys: int64 [M], of :func:`view_keys`.
    """

    def __init__(self, keys: Tensor) -> None:
        self.device = keys.device
        self._keys, self._drawn = keys, 0

    def integers(self, below: int, count: int = 1) -> Tensor:
        numbers: Tensor = (self._bits(count).double() * (below / 2**_BITS)).long()
        return numbers

    def uniform(self, count: int = 1) -> Tensor:
        numbers: Tensor = self._bits(count).float() / 2**_BITS
        return numbers

    def _bits(self, count: int) -> Tensor:
        numbers = torch.arange(self._drawn, self._drawn + count, device=self.device)[:, None, None]
        self._drawn += count
        bits = _mixed_bits(self._keys[:, None] + numbers * _GOLDEN)
        return bits.bitwise_right_shift(63 - _BITS).bitwise_and(2**_BITS - 1)


def view_keys(seed: int, index: Tensor, number: Tensor) -> Tensor:
    """Keys of random views: int64 [M], each of which depends on the seed, the image and the number of its view.

    Args:
        index, number: int64 [M].
    """
    return _mixed_bits(_mixed_bits(index + seed) + number)


def _mixed_bits(values: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on int64, whose products wrap around."""
    values = values + _GOLDEN
    for shift, factor in _SPLITMIX:
        values = values.bitwise_xor(_shifted(values, shift)) * factor
    return values.bitwise_xor(_shifted(values, 31))


def _shifted(values: Tensor, places: int) -> Tensor:
    """To the right, filled up with zeros: torch fills up with the sign."""
    return values.bitwise_right_shift(places).bitwise_and((1 << (64 - places)) - 1)


def crops(stored: Tensor, places: Tensor, shape: Shape, params: AugmentationParams, draws: Draws) -> Tensor:
    """Crop, flip and turn the images ``places`` [M] of ``stored``, uint8 [N, P, Q, C] with ``params.padding``.

    Args:
        shape: of a view: channels, height, width.

    Returns:
        uint8 [M, H, W, C].
    """
    if isinstance(params.crop, ResizedCropParams):
        boxes = _boxes(params.crop, draws)
        rows, columns = _turned(shape, params, draws)
        return _sampled(stored[places], rows, columns, boxes)
    top, left = draws.integers(2 * params.padding + 1, count=2)
    rows, columns = _turned(shape, params, draws)
    return stored[places[:, None, None], top[:, :, None] + rows, left[:, :, None] + columns]


def _turned(shape: Shape, params: AugmentationParams, draws: Draws) -> tuple[Tensor, Tensor]:
    """Row and column in the crop of each pixel of a view that is flipped and turned at random, int64, which broadcast
    to [M, H, W].
    """
    _, height, width = shape
    rows, columns = torch.arange(height, device=draws.device), torch.arange(width, device=draws.device)
    if params.horizontal_flip:
        columns = torch.where(draws.uniform()[0] < 0.5, width - 1 - columns, columns)
    if params.vertical_flip:
        rows = torch.where(draws.uniform()[0] < 0.5, height - 1 - rows, rows)
    if not params.quarter_turns:
        return rows[..., :, None], columns[..., None, :]
    turns = draws.integers(4)[0]  # to the left: transposed and upside down for one, both flips for two
    rows = torch.where((turns == 1) | (turns == 2), height - 1 - rows, rows)[:, :, None]
    columns = torch.where(turns >= 2, width - 1 - columns, columns)[:, None, :]
    transposed = (turns % 2 == 1)[:, :, None]
    return torch.where(transposed, columns, rows), torch.where(transposed, rows, columns)


def _boxes(crop: ResizedCropParams, draws: Draws) -> Tensor:
    """Top, left, height and width of random parts of images, as shares of the image's: float32 [4, M, 1]."""
    area, ratio, down, right = draws.uniform(count=4)
    height, width = _sides(area, ratio, crop.scale, crop.ratio)
    return torch.stack([down * (1 - height), right * (1 - width), height, width])


def _sides(
    area: Tensor, ratio: Tensor, areas: tuple[float, float], ratios: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Height and width, at most 1, of rectangles of an area uniform in ``areas`` and a log-uniform ratio.

    Args:
        area, ratio: uniform numbers in [0, 1).
    """
    share = areas[0] + (areas[1] - areas[0]) * area
    root = ratios[0] ** 0.5 * ((ratios[1] / ratios[0]) ** 0.5) ** ratio
    return (share.sqrt() / root).clamp(max=1), (share.sqrt() * root).clamp(max=1)


def _sampled(images: Tensor, rows: Tensor, columns: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge parts of images, uint8 [M, H, W, C], with bilinear interpolation.

    Args:
        rows, columns: of each pixel in the enlarged part; they broadcast to [M, H, W].
        boxes: as of :func:`_boxes`.
    """
    _, height, width, _ = images.shape
    top, left, part_height, part_width = boxes[..., None]
    # in the coordinates of grid_sample, from -1 at the first edge of an image to 1 at the last
    y = 2 * (top + part_height * (rows + 0.5) / height) - 1
    x = 2 * (left + part_width * (columns + 0.5) / width) - 1
    grid = torch.stack([x.expand(images.shape[:3]), y.expand(images.shape[:3])], dim=-1)
    values = images.permute(0, 3, 1, 2).float()
    sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def recoloured(images: Tensor, params: AugmentationParams) -> Tensor:
    """The policy and the change of colours that ``params`` ask for, on uint8 [M, H, W, C]; RandAugment and
    TrivialAugment also shift, turn and shear."""
    operations = [policy(params.policy)] if params.policy != "none" else []
    operations += [_color_jitter(params.color_jitter)] if params.color_jitter > 0 else []
    for operation in operations:
        images = in_groups(images, operation)
    return images


def in_groups(images: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """One of torchvision's random operations on groups of 8 images, uint8 [M, H, W, C]."""
    groups = torch.split(images.permute(0, 3, 1, 2), _GROUP)
    return torch.cat([operation(group) for group in groups]).permute(0, 2, 3, 1).contiguous()


@cache
def policy(name: str) -> Callable[[Tensor], Tensor]:
    """RandAugment(2, 10) (Cubuk et al., arXiv 1909.13719) or TrivialAugment (Müller and Hutter, arXiv 2103.10158)."""
    from torchvision.transforms import v2  # noqa: PLC0415  slow import that most trainings do not need

    operation: Callable[[Tensor], Tensor]
    operation = v2.RandAugment(num_ops=2, magnitude=10) if name == "randaugment" else v2.TrivialAugmentWide()
    return operation


@cache
def _color_jitter(strength: float) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # noqa: PLC0415  as above

    operation: Callable[[Tensor], Tensor] = v2.ColorJitter(strength, strength, strength)
    return operation


def erased(images: Tensor, probability: float, draws: Draws) -> Tensor:
    """Set a random rectangle of a random share of the images to the mean colour, in place.

    Args:
        images: normalised, float32 [M, C, H, W].
    """
    chance, area, ratio, down, right = draws.uniform(count=5)
    height, width = _sides(area, ratio, _ERASED, _ERASED_RATIO)
    inside = []
    for start, length, side in ((down, height, images.shape[2]), (right, width, images.shape[3])):
        centres = (torch.arange(side, device=images.device) + 0.5) / side
        start = start * (1 - length)  # noqa: PLW2901  a place becomes one where the rectangle fits in
        inside.append((centres >= start) & (centres < start + length))
    rectangle = inside[0][:, :, None] & inside[1][:, None, :] & (chance < probability)[:, :, None]
    return images.masked_fill_(rectangle[:, None], 0.0)
