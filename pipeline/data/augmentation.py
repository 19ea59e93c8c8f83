"""Random views of images, made for whole batches on the device of the images.

Crops, flips, turns and erasing draw from the given generator, for the whole batch, so that they do not depend on the
number of processes. torchvision's operations draw from torch's global generator, because they accept no other.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import AugmentationParams, NoCropParams, ResizedCropParams
from pipeline.store.documents import Shape

Part = slice | Tensor  # positions in a batch
_GROUP = 8  # images that share the operations of torchvision, which then run on whole tensors
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


class Draws:
    """Random numbers for a batch of B images, of which those of M images are handed out.

    Args:
        part: the positions of the M images.
    """

    def __init__(self, batch: int, part: Part, generator: torch.Generator, device: torch.device) -> None:
        self._batch, self._part, self._generator, self._device = batch, part, generator, device

    def integers(self, below: int, count: int = 1) -> Tensor:
        """int64 [count, M, 1] in [0, below)."""
        shape = count, self._batch, 1
        return torch.randint(below, shape, generator=self._generator, device=self._device)[:, self._part]

    def uniform(self, count: int = 1) -> Tensor:
        """float32 [count, M, 1] in [0, 1)."""
        return torch.rand((count, self._batch, 1), generator=self._generator, device=self._device)[:, self._part]


def view_count(params: AugmentationParams) -> int:
    """Number of different views of an image, if ``params.has_few_views``."""
    return (2 * params.padding + 1) ** 2 * (2 if params.horizontal_flip else 1)


def crops(
    stored: Tensor, places: Tensor, shape: Shape, params: AugmentationParams, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Crop, flip and turn the images ``places`` [M] of ``stored``, uint8 [N, P, Q, C] with ``params.padding``.

    Args:
        shape: of a view: channels, height, width.

    Returns:
        uint8 [M, H, W, C], and int64 [M], the number of each view in [0, :func:`view_count`), if that is defined.
    """
    _, height, width = shape
    rows, columns = (torch.arange(side, device=stored.device) for side in (height, width))
    if isinstance(params.crop, ResizedCropParams):
        top, left, part_height, part_width = _boxes(params.crop, draws)
        numbers = torch.zeros_like(places)
    else:
        offsets = draws.integers(2 * params.padding + 1, count=2)
        numbers = ((2 * params.padding + 1) * offsets[0] + offsets[1])[:, 0]
    mirrored = draws.uniform()[0] < 0.5 if params.horizontal_flip else None
    inverted = draws.uniform()[0] < 0.5 if params.vertical_flip else None
    turns = draws.integers(4)[0] if params.quarter_turns else None
    if mirrored is not None:
        columns = torch.where(mirrored, width - 1 - columns, columns)
        numbers = 2 * numbers + mirrored[:, 0]
    if inverted is not None:
        rows = torch.where(inverted, height - 1 - rows, rows)
    if turns is not None:  # turned to the left: transposed and inverted once, both flips for twice
        rows = torch.where((turns == 1) | (turns == 2), height - 1 - rows, rows)
        columns = torch.where(turns >= 2, width - 1 - columns, columns)
    rows, columns = rows.expand(len(places), -1)[:, :, None], columns.expand(len(places), -1)[:, None, :]
    if turns is not None:
        transposed = (turns % 2 == 1)[:, :, None]
        rows, columns = torch.where(transposed, columns, rows), torch.where(transposed, rows, columns)
    if isinstance(params.crop, ResizedCropParams):
        y = top[:, :, None] + part_height[:, :, None] * (rows + 0.5) / height
        x = left[:, :, None] + part_width[:, :, None] * (columns + 0.5) / width
        return _sampled(stored[places], x, y), numbers
    return stored[places[:, None, None], offsets[0][:, :, None] + rows, offsets[1][:, :, None] + columns], numbers


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


def _sampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples of ``images``, uint8 [M, H, W, C], at places in [0, 1] that broadcast to [M, H, W]."""
    grid = torch.stack([(2 * x - 1).expand(images.shape[:3]), (2 * y - 1).expand(images.shape[:3])], dim=-1)
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
