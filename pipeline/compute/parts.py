"""Results with a row for each image, computed by all processes in parts that are files, so a kill loses one part.

A part is whole batches of consecutive rows, so no value depends on the number of processes.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.distributed import World
from pipeline.errors import DataError
from pipeline.portable.files import atomic_file

BATCHES_PER_PART = 256  # at most: 65,536 small images, seconds on a GPU, about a megabyte
_PIXELS_PER_PART = 2**28  # for large images: a kill and waiting for another process cost minutes at most

T = TypeVar("T")  # a dataclass of arrays with a row for each image
Columns = tuple[Tensor, ...]  # the same of one batch, on the device


class Parts(Generic[T]):
    """The rows of a result, as files of consecutive rows in one folder.

    Args:
        folder: of this result alone; need not exist.
        count: number of rows.
        rows_per_part: the last part may have fewer.
        kind: a dataclass of arrays.

    Attributes:
        rows: the rows of each part.
    """

    def __init__(self, folder: Path, count: int, rows_per_part: int, kind: type[T]) -> None:
        self.folder, self.count, self._kind = folder, count, kind
        self._names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        self.rows = [range(start, min(start + rows_per_part, count)) for start in range(0, count, rows_per_part)]

    def __iter__(self) -> Iterator[tuple[range, T]]:
        return ((rows, self.read(rows)) for rows in self.rows)

    def path(self, rows: range) -> Path:
        """The file of a part."""
        return self.folder / f"{rows.start:012d}-{rows.stop:012d}.npz"

    def write(self, rows: range, columns: Sequence[NDArray[Any]]) -> None:
        """Keep a part. Atomic: after a kill the part is there or not."""
        with atomic_file(self.path(rows)) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = dict(zip(self._names, columns, strict=True))
            np.savez(file, **arrays)

    def read(self, rows: range) -> T:
        """A part. Raises DataError: it is missing or damaged."""
        path = self.path(rows)
        try:
            with np.load(path) as stored:
                part = {name: stored[name] for name in self._names}
        except Exception as error:  # numpy raises many kinds of errors on damaged files
            raise DataError(f"{path} is not readable ({error}); run `dvc repro` to make it anew") from None
        if any(len(column) != len(rows) for column in part.values()):
            raise DataError(f"{path} has not the rows {rows.start} to {rows.stop - 1}; run `dvc repro` to make it anew")
        return self._kind(**part)

    def column(self, name: str) -> Tensor:
        """One column of all rows, on the CPU."""
        return torch.from_numpy(np.concatenate([getattr(part, name) for _, part in self]))

    def missing(self) -> list[range]:
        """The parts that are still to be computed, including damaged ones."""
        return [rows for rows in self.rows if not self._is_whole(rows)]

    def _is_whole(self, rows: range) -> bool:
        try:
            self.read(rows)
        except DataError:  # missing or damaged: it is computed again
            return False
        return True


def rows_per_part(batch: int, pixels: int, batches: int | None = None) -> int:
    """Rows in a part: at most so many batches, by default :data:`BATCHES_PER_PART`; fewer of large images.

    Args:
        pixels: of an image.
    """
    return batch * min(batches or BATCHES_PER_PART, max(1, _PIXELS_PER_PART // (batch * pixels)))


def fill(
    parts: Parts[T],
    batch: int,
    compute: Callable[[list[range]], Generator[Columns]],
    check: Callable[[range, Sequence[NDArray[Any]]], None],
    world: World,
    device: torch.device,
    on_rows: Callable[[int], None],
) -> None:
    """Compute the missing parts; when it returns, every part exists.

    All processes of ``world`` call it with the same arguments. A barrier after each part tells all of them at once of
    an error in one.

    Args:
        batch: rows that ``compute`` yields at once; the last of a part may be fewer.
        compute: yields the columns of the given parts in order. One iterator over all parts, so that the workers also
            decode images of the next part ahead.
        check: may refuse the columns of a part with a DataError.
        on_rows: called with the number of further rows that are done, in all processes together.
    """
    todo = _agreed(parts, world, device)
    on_rows(parts.count - sum(map(len, todo)))
    with closing(compute(todo[world.rank :: world.size])) as batches:
        for turn in range(0, len(todo), world.size):
            at_once = todo[turn : turn + world.size]
            done = 0
            with world.barrier():
                if world.rank < len(at_once):
                    rows, found = at_once[world.rank], list[Columns]()
                    for columns in islice(batches, -(-len(rows) // batch)):
                        found.append(columns)
                        done += len(columns[0])
                        on_rows(len(columns[0]))
                    whole = [torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)]
                    check(rows, whole)
                    parts.write(rows, whole)
            on_rows(sum(map(len, at_once)) - done)


def _agreed(parts: Parts[Any], world: World, device: torch.device) -> list[range]:
    """The parts to compute, as the first process sees them, so that all processes share the same list."""
    flags = torch.zeros(len(parts.rows), dtype=torch.int64, device=device)
    if world.is_main:
        missing = set(parts.missing())
        flags = torch.tensor([rows in missing for rows in parts.rows], dtype=torch.int64, device=device)
    return [rows for rows, flag in zip(parts.rows, world.total(flags).tolist(), strict=True) if flag]
