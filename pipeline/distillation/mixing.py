"""CutMix and MixUp of the companion batch of HE-DA (Kim et al., arXiv 2311.14334, second half of the method).

Each step draws a companion batch from the high-energy subset, mixes its images with one another, and adds the
distillation loss on the mixed images; the clean batch is unchanged.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def companion_size(batch_size: int, fraction: float) -> int:
    """Images in the companion batch of a step: the same in all steps, for static shapes; at least 2, to be mixed."""
    return max(2, round(fraction * batch_size))


class Mixing(NamedTuple):
    """A random mixing of a batch of images within itself, drawn before the images are loaded.

    Attributes:
        partner: int64 [B] on the CPU, index of each image's partner in the batch.
        lam: lambda, the weight of each image itself in its mixture; for CutMix the exact share of pixels.
        box: rows and columns that CutMix takes from the partner; None for MixUp.
    """

    partner: Tensor
    lam: float
    box: tuple[slice, slice] | None

    def apply(self, images: Tensor, pool: Tensor, partner: Tensor) -> Tensor:
        """Mix each of ``images`` [M, C, H, W] with the image of ``pool`` that ``partner`` int64 [M] points to."""
        if self.box is None:
            return torch.lerp(pool[partner], images, self.lam)
        rows, columns = self.box
        mixed = images.clone(memory_format=torch.preserve_format)
        mixed[:, :, rows, columns] = pool[partner, :, rows, columns]
        return mixed


def draw_cutmix(batch: int, height: int, width: int, generator: torch.Generator) -> Mixing:
    """One box, the same for the whole batch, to be taken from the partner (Yun et al., arXiv 1905.04899).

    lambda ~ Beta(1, 1), the uniform distribution; the box has the area 1 - lambda, is centred uniformly and clipped at
    the border.

    Args:
        generator: a CPU generator; on another device the draw would make the host wait.
    """
    partner = torch.randperm(batch, generator=generator)
    share, centre_y, centre_x = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    half_side = (1 - share) ** 0.5 / 2
    top, bottom = _clipped(centre_y, half_side, height)
    left, right = _clipped(centre_x, half_side, width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixing(partner, kept, (slice(top, bottom), slice(left, right)))


def draw_mixup(batch: int, height: int, width: int, generator: torch.Generator) -> Mixing:
    """lambda ~ Beta(0.2, 0.2) for the whole batch (Zhang et al., arXiv 1710.09412); the size does not matter.

    Args:
        generator: a CPU generator; on another device the draw would make the host wait.
    """
    partner = torch.randperm(batch, generator=generator)
    # torch's Beta distribution takes no generator; numpy's does, seeded from ours
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return Mixing(partner, float(np.random.default_rng(seed).beta(0.2, 0.2)), None)


# batch size, height, width, CPU generator -> how to mix
MIXES: dict[str, Callable[[int, int, int, torch.Generator], Mixing]] = {"cutmix": draw_cutmix, "mixup": draw_mixup}


def _clipped(centre: float, half_side: float, length: int) -> tuple[int, int]:
    start, stop = round((centre - half_side) * length), round((centre + half_side) * length)
    return min(max(start, 0), length), min(max(stop, 0), length)
