"""Where the pixels of a split come from: one uint8 tensor on the device, or image files decoded by threads.

Both hand out the same thing, so that crops, flips and normalisation are the same code and the same numbers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.image_files import decode_at
from pipeline.errors import DataError

MOST_WORKERS = 16
_PART = 8  # images that a thread decodes in one go
_AHEAD = 4  # batches that are decoded before they are asked for
_BLOCK = 256  # batches whose indices are fetched at once


class Pixels(Protocol):
    """Pixels of N images, with a black border for crops.

    Attributes:
        size: side of the images without the border.
        padding: width of the border, pixels.
    """

    size: int
    padding: int

    @property
    def device(self) -> torch.device: ...

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index int64 [B], in order: uint8 [M, P, P, 3] with border, and where in it the B images are."""
        ...


class ResidentPixels:
    """All images on the device: nothing is moved or decoded in the training loop.

    Args:
        images: uint8 [N, S, S, 3].
    """

    def __init__(self, images: np.ndarray[Any, np.dtype[np.uint8]], device: torch.device, padding: int) -> None:
        self.size, self.padding = images.shape[1], padding
        # ascontiguousarray would keep a read-only map; torch wants memory of its own
        self._padded = _bordered(torch.tensor(images, device=device), padding)

    @property
    def device(self) -> torch.device:
        return self._padded.device

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Pixels`; the whole split and the index itself."""
        for index in indices:
            yield self._padded, index.to(self.device, non_blocking=True)


class StreamedPixels:
    """Image files, decoded ahead of time by threads and moved to the device as uint8.

    Threads and not processes: Pillow lets go of the interpreter while it decodes and scales, nothing is copied between
    processes, and threads start at once. A pass over 5,000 images of 64x64 took them 0.7 of the time that forked
    processes took, two of either on two busy cores, and one of 500x375 the same (bench/decoding.py); spawned processes
    take seconds to start.

    Args:
        paths: of N files; a sequence that holds millions without a Python object each.
        size: side that images are resized to.
    """

    def __init__(self, paths: Sequence[str], size: int, device: torch.device, padding: int) -> None:
        self.size, self.padding = size, padding
        self._device = device
        self._paths = paths

    @property
    def device(self) -> torch.device:
        return self._device

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Pixels`. A bounded number of batches is decoded ahead; the threads end with the iterator.

        Raises:
            DataError: a file was removed or damaged since it was prepared.
        """
        workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        waiting: deque[_Batch] = deque()
        pool = ThreadPoolExecutor(workers, "decode")
        try:
            for index in _on_cpu(indices):
                waiting.append(self._begin(pool, index))
                if len(waiting) > _AHEAD:
                    yield self._end(waiting.popleft())
            while waiting:
                yield self._end(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, index: Tensor) -> _Batch:
        """Have the images of ``index`` [B], on the CPU, decoded into one tensor."""
        shape = (len(index), self.size, self.size, 3)
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        parts = zip(torch.split(index, _PART), torch.split(images, _PART), strict=True)
        return _Batch(images, [pool.submit(self._decode, places, into) for places, into in parts])

    def _decode(self, index: Tensor, into: Tensor) -> None:
        target = into.numpy()
        for place, image in enumerate(index.tolist()):
            target[place] = decode_at(str(self._paths[image]), self.size)

    def _end(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        try:
            for part in batch.parts:
                part.result()
        except DataError as error:
            message = f"{error}; it was whole when the data were prepared, so run `dvc repro -f prepare`"
            raise DataError(message) from None
        moved = batch.images.to(self._device, non_blocking=True)
        return _bordered(moved, self.padding), torch.arange(len(moved), device=self._device)


@dataclass(frozen=True)
class _Batch:
    """uint8 images [B, S, S, 3], whole once all parts are done."""

    images: Tensor
    parts: list[Future[None]]


def _on_cpu(indices: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each index, on the CPU. Many at a time, because every transfer from a GPU waits for all of its work."""
    remaining = iter(indices)
    while block := list(islice(remaining, _BLOCK)):
        yield from torch.split(torch.cat(block).cpu(), [len(index) for index in block])


def _bordered(images: Tensor, padding: int) -> Tensor:
    return F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
