"""Pixels of a split: one uint8 tensor on the device, or image files that worker processes decode.

Both have the same interface, so crops, flips and normalisation use the same code and give the same numbers.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from pipeline.store.documents import ImageFormat, Shape
from pipeline.store.space import SMALL

MOST_WORKERS = 16
_AHEAD = 4  # batches that each worker prefetches
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  workers pass batches through it
_BLOCK = 256  # batches whose indices move to the CPU at once


class Pixels(Protocol):
    """Pixels of N images, with a black border for crops."""

    shape: Shape  # of an image without the border: channels, height, width
    padding: int  # width of the border, pixels

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each index int64 [B]: uint8 [M, P, Q, C] with border, and the positions [B] of the images in it."""
        ...


class ResidentPixels:
    """All images, uint8 [N, H, W, C], on the device; the training loop neither decodes nor moves pixels."""

    def __init__(self, images: np.ndarray[Any, np.dtype[np.uint8]], device: torch.device, padding: int) -> None:
        _, height, width, channels = images.shape
        self.shape, self.padding = (channels, height, width), padding
        # torch.tensor copies: from_numpy would keep the read-only memory map
        self._padded = _bordered(torch.tensor(images, device=device), padding)

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As in :class:`Pixels`: the whole split and the index itself."""
        for index in indices:
            yield self._padded, index.to(self._padded.device, non_blocking=True)


class StreamedPixels:
    """Image files that worker processes decode ahead of time; the images move to the device as uint8.

    Processes instead of threads: on two idle cores, two threads decode 0.48 times as many 64x64 images per second as
    two forked processes, and 1.09 times as many 500x375 images (bench/decoding.py). Small files need mostly Python
    code, and only one thread at a time can run it. If the second core is busy, threads are as fast or faster.

    Args:
        paths: of N files; a pyarrow array holds millions without one Python object each.
        form: that the images are brought into.
    """

    def __init__(self, paths: Sequence[str], form: ImageFormat, device: torch.device, padding: int) -> None:
        self.shape, self.padding, self._device = form.shape, padding, device
        self._files = _Files(paths, form)

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As in :class:`Pixels`. The workers decode a bounded number of batches ahead and end with the iterator.

        Raises:
            DataError: a file was removed or damaged after the stage prepare.
            SpaceError: the prefetched batches do not fit into shared memory.
        """
        batches = (index.tolist() for index in _on_cpu(indices))
        max_workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        first = list(islice(batches, max(max_workers, 2)))
        # a single batch is decoded in this process
        workers = min(max_workers, len(first)) if len(first) > 1 else 0
        if workers:
            _check_shared_memory((workers * _AHEAD + 1) * len(first[0]) * self._files.form.bytes)
        loader: DataLoader[Any] = DataLoader(
            self._files,
            batch_sampler=chain(first, batches),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_collate,
            pin_memory=self._device.type == "cuda",
            # the default in a spawned process is to spawn, which takes seconds at the start of every pass
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # seeds the workers; the default would draw from the global generator
        )
        for batch in _loaded(loader):
            if isinstance(batch, str):
                raise DataError(f"{batch}; the file was readable in the stage prepare, so run `dvc repro -f prepare`")
            moved = batch.to(self._device, non_blocking=True)
            yield _bordered(moved, self.padding), torch.arange(len(moved), device=self._device)


@dataclass
class _Files(Dataset[Any]):
    paths: Sequence[str]
    form: ImageFormat

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return torch.from_numpy(decode_at(str(self.paths[index]), self.form))
        except DataError as error:  # an exception would reach the parent process as a traceback
            return str(error)


def _collate(items: list[Tensor | str]) -> Tensor | str:
    """Stack the images to one tensor; if there are errors, return the first one."""
    images = [item for item in items if isinstance(item, Tensor)]
    if len(images) < len(items):
        return next(item for item in items if isinstance(item, str))
    if get_worker_info() is None:
        return torch.stack(images)
    # Allocated here: if memory is full in the sending thread, the batch is lost and the parent waits forever.
    batch = torch.empty(len(images), *images[0].shape, dtype=torch.uint8)
    batch.share_memory_()  # type: ignore[no-untyped-call]
    return torch.stack(images, out=batch)


def _loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches; a dead worker always raises the same RuntimeError."""
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # the worker died in the middle of a batch
        raise RuntimeError(f"DataLoader worker exited unexpectedly: {type(error).__name__}") from error


def _check_shared_memory(needed: int) -> None:
    """Raise SpaceError if shared memory has less than ``needed`` bytes free; the workers would crash later."""
    if not _SHARED_MEMORY.exists():
        return
    usage = shutil.disk_usage(_SHARED_MEMORY)
    if usage.total and needed + SMALL > usage.free:  # a total of 0 means no limit
        raise SpaceError(
            f"the images that are decoded ahead need {(needed + SMALL) / 1e6:,.1f} MB, but {_SHARED_MEMORY} has "
            f"{usage.free / 1e6:,.1f} MB free; enlarge it (docker run --shm-size), lower batch_size of the training, "
            "or set data.storage to packed"
        )


def _on_cpu(indices: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield each index on the CPU, moved in blocks, because every transfer from a GPU waits for all of its work."""
    remaining = iter(indices)
    while block := list(islice(remaining, _BLOCK)):
        yield from torch.split(torch.cat(block).cpu(), [len(index) for index in block])


def _bordered(images: Tensor, padding: int) -> Tensor:
    return F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
