"""Where the pixels of a split come from: one uint8 tensor on the device, or image files decoded by worker processes.

Both hand out the same thing, so that crops, flips and normalisation are the same code and the same numbers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.data.image_files import decode_at
from pipeline.errors import DataError, SpaceError
from pipeline.store.space import SMALL

MOST_WORKERS = 16
_AHEAD = 4  # batches that each worker has ready
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where torch hands batches over
_BLOCK = 256  # batches whose indices are moved at once


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
    """Image files, decoded ahead of time in worker processes and moved to the device as uint8.

    Processes and not threads: on two idle cores two threads decode 0.48 times as many 64x64 images a second as two
    forked processes, and 1.09 times as many of 500x375 (bench/decoding.py). Most of the work on a small file is Python,
    which threads take turns at, so they stay at what one core does; only where other work keeps the second core busy
    are they as fast or faster (1.0 to 1.4).

    Args:
        paths: of N files; a sequence that holds millions without a Python object each.
        size: side that images are resized to.
    """

    def __init__(self, paths: Sequence[str], size: int, device: torch.device, padding: int) -> None:
        self.size, self.padding = size, padding
        self._device = device
        self._files = _Files(paths, size)

    @property
    def device(self) -> torch.device:
        return self._device

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`Pixels`. A bounded number of batches is decoded ahead; the workers end with the iterator.

        Raises:
            DataError: a file was removed or damaged since it was prepared.
            SpaceError: what is decoded ahead does not fit into shared memory.
        """
        batches = (index.tolist() for index in _on_cpu(indices))
        most = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        first = list(islice(batches, max(most, 2)))
        # a lone batch is decoded here: there is nothing to be ahead of
        workers = min(most, len(first)) if len(first) > 1 else 0
        if workers:
            _check_shared_memory((workers * _AHEAD + 1) * len(first[0]) * 3 * self.size**2)
        loader: DataLoader[Any] = DataLoader(
            self._files,
            batch_sampler=chain(first, batches),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_together,
            pin_memory=self._device.type == "cuda",
            # in a spawned process the default would be to spawn, which takes seconds at the start of every pass
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # it seeds workers, from the global generator unless told
        )
        for batch in _from_living(loader):
            if isinstance(batch, str):
                raise DataError(f"{batch}; it was whole when the data were prepared, so run `dvc repro -f prepare`")
            moved = batch.to(self._device, non_blocking=True)
            yield _bordered(moved, self.padding), torch.arange(len(moved), device=self._device)


class _Files(Dataset[Any]):
    def __init__(self, paths: Sequence[str], size: int) -> None:
        self._paths = paths
        self._size = size

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return torch.from_numpy(decode_at(str(self._paths[index]), self._size))
        except DataError as error:  # an exception would cross the process border as a traceback
            return str(error)


def _together(items: list[Tensor | str]) -> Tensor | str:
    """The images as one tensor, or the first problem among them."""
    images = [item for item in items if isinstance(item, Tensor)]
    problems = [item for item in items if isinstance(item, str)]
    if problems:
        return problems[0]
    if get_worker_info() is None:
        return torch.stack(images)
    # Left to the thread that sends it, the batch would be lost where shared memory is full, and the parent would wait.
    batch = torch.empty(len(images), *images[0].shape, dtype=torch.uint8)
    batch.share_memory_()  # type: ignore[no-untyped-call]
    return torch.stack(images, out=batch)


def _from_living(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches. A worker that is gone is one kind of error, also where torch meets it in the middle of a batch."""
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # of the socket over which memory is handed on
        raise RuntimeError(f"DataLoader worker exited unexpectedly: {type(error).__name__}") from error


def _check_shared_memory(needed: int) -> None:
    """Refuse more than shared memory can hold: workers would die of it at some later moment.

    Args:
        needed: bytes of the batches that are decoded ahead.
    """
    if not _SHARED_MEMORY.exists():
        return
    usage = shutil.disk_usage(_SHARED_MEMORY)
    if usage.total and needed + SMALL > usage.free:  # a size of 0: without a limit
        raise SpaceError(
            f"the images that are decoded ahead need {(needed + SMALL) / 1e6:,.1f} MB, but {_SHARED_MEMORY} has "
            f"{usage.free / 1e6:,.1f} MB free; enlarge it (docker run --shm-size), lower batch_size of the training, "
            "or set data.storage to packed"
        )


def _on_cpu(indices: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each index, on the CPU. Many at a time, because every transfer from a GPU waits for all of its work."""
    remaining = iter(indices)
    while block := list(islice(remaining, _BLOCK)):
        yield from torch.split(torch.cat(block).cpu(), [len(index) for index in block])


def _bordered(images: Tensor, padding: int) -> Tensor:
    return F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
