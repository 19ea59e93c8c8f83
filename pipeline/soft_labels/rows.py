"""Which row of the table has which view of which image."""

import torch
from torch import Tensor


class Rows:
    """The views of N images: ``views`` of each, and ``extra`` further ones of some.

    The row of view v of image i is v * N + i; those of further views follow.

    Args:
        extra_images: int64 [M], ascending, the images with further views.
    """

    def __init__(self, images: int, views: int, extra: int, extra_images: Tensor) -> None:
        self.images, self.views, self.extra, self._extra_images = images, views, extra, extra_images
        self._rank = torch.full((images,), -1, dtype=torch.int64, device=extra_images.device)
        self._rank[extra_images] = torch.arange(len(extra_images), device=extra_images.device)

    def __len__(self) -> int:
        return self.views * self.images + self.extra * len(self._extra_images)

    def of(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The view that each image has in an epoch, one after the other and then from the first on.

        Args:
            index: int64 [B].

        Returns:
            Its number and its row, int64 [B].
        """
        rank = self._rank[index]
        number = epoch % (self.views + self.extra * (rank >= 0))
        further = self.views * self.images + (number - self.views) * len(self._extra_images) + rank
        return number, torch.where(number < self.views, number * self.images + index, further)

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the number of its view in each of these rows: int64 [B] of int64 [B]."""
        first = self.views * self.images
        if not len(self._extra_images):
            return rows % self.images, rows // self.images
        beyond = (rows - first).clamp(min=0)
        index = torch.where(rows < first, rows % self.images, self._extra_images[beyond % len(self._extra_images)])
        number = torch.where(rows < first, rows // self.images, self.views + beyond // len(self._extra_images))
        return index, number
