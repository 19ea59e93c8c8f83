"""The stored answers: of each view the largest probabilities in half precision, and what the temperatures depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.parts import Parts
from pipeline.compute.seeds import NUMBERED, stream_seed
from pipeline.config import CertaintyName
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.portable.files import atomic_folder
from pipeline.portable.text import brief
from pipeline.soft_labels.rows import Rows
from pipeline.store.documents import SoftLabelCard
from pipeline.store.paths import CARD

_BY_CLASS = ("log_probability", "label")
_REMEDY = "run `dvc repro -f store_soft_labels`"
_MOST_IN_16_BITS = np.iinfo(np.int16).max  # classes
_SMALLEST = 1e-9  # probability of all classes together that are not kept, so that its logarithm is finite


@dataclass(frozen=True)
class StoredAnswers:
    """Answers to R views; k classes of each are kept, the most probable first."""

    log_probability: NDArray[np.float16]  # [R, k]
    label: NDArray[np.int16] | NDArray[np.int32]  # [R, k], of the smallest type that holds the classes
    energy: NDArray[np.float32]  # [R], as max_logit of the first teacher; see pipeline.energy
    max_logit: NDArray[np.float32]  # [R]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which of them hold finite numbers alone: bool [R]."""
        largest = np.abs(self.log_probability).max(axis=1)
        finite: NDArray[np.bool_] = np.isfinite(largest + self.energy + self.max_logit)
        return finite


class Answers(NamedTuple):
    """The teacher's answers to B views, computed or stored.

    Attributes:
        logits: float32 [B, K]. Stored ones are logarithms of probabilities; the classes that were not kept share the
            rest evenly.
        energy, max_logit: float32 [B]; None: to be computed from the logits.
    """

    logits: Tensor
    energy: Tensor | None = None
    max_logit: Tensor | None = None

    def certainty(self, of: CertaintyName) -> Tensor | None:
        """The certainty that was stored, as of :func:`pipeline.energy.temperatures.certainty`."""
        if of == "max_logit" or self.energy is None:
            return self.max_logit
        return -self.energy


def label_type(classes: int) -> torch.dtype:
    """The type of stored labels of so many classes."""
    return torch.int16 if classes <= _MOST_IN_16_BITS else torch.int32


def row_bytes(kept: int, classes: int) -> int:
    """Size of the answer to a view, of which so many of all classes are kept."""
    return (torch.float16.itemsize + label_type(classes).itemsize) * kept + 2 * torch.float32.itemsize


class SoftLabels:
    """The table of a run, which stays on the disk.

    Args:
        folder: of the table, for error messages.
        columns: memory-mapped.
        classes: K.

    Attributes:
        seed: of the views.
        mixed: whether they are.
    """

    def __init__(
        self, folder: Path, rows: Rows, columns: StoredAnswers, classes: int, seed: int, *, mixed: bool
    ) -> None:
        self._folder, self._rows, self._columns, self._classes = folder, rows, columns, classes
        self.seed, self.mixed = seed, mixed

    @classmethod
    def read(cls, run: Run, device: torch.device) -> Self:
        """The table of a run, for training on this device.

        Raises:
            DataError: a file is missing, damaged or of another size.
            LineageError: it was made from other artifacts than the present ones.
        """
        card, folder = run.soft_labels, run.places.soft_labels
        rows, classes = rows_of(run, card.views, card.extra_views, device), len(run.data.class_names)
        types = {"log_probability": np.float16, "label": np.int16 if classes <= _MOST_IN_16_BITS else np.int32}
        columns = {}
        for name in StoredAnswers.__dataclass_fields__:
            path = folder / f"{name}.npy"
            shape = (len(rows), card.kept) if name in _BY_CLASS else (len(rows),)
            try:
                column = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} is not readable ({brief(error)}); {_REMEDY}") from None
            if (column.shape, column.dtype) != (shape, types.get(name, np.float32)):
                raise DataError(f"{path} has the shape {column.shape} of {column.dtype}, not {shape}; {_REMEDY}")
            columns[name] = column
        seed = stream_seed(card.seed, NUMBERED)
        return cls(folder, rows, StoredAnswers(**columns), classes, seed, mixed=card.mixed)

    def of_epoch(self, indices: Sequence[Tensor], epoch: int) -> tuple[list[Tensor], Iterator[Answers]]:
        """Which view each image has in an epoch, and the answers to it.

        Args:
            indices: batches int64 [B] on the device.

        Returns:
            Numbers of views, int64 [B], and answers, of each batch, on the device.

        Raises:
            DataError: while the answers are read; they are none that a teacher can give.
        """
        numbers, rows = zip(*(self._rows.of(index, epoch) for index in indices), strict=True)
        sizes = [len(index) for index in indices]
        on_host = torch.split(torch.cat(rows).cpu(), sizes)  # at once: each transfer from a GPU waits for all its work
        return list(numbers), (self._answers(some, indices[0].device) for some in on_host)

    def _answers(self, rows: Tensor, device: torch.device) -> Answers:
        where = rows.numpy()
        answers = StoredAnswers(*(column[where] for column in vars(self._columns).values()))
        if not answers.finite.all() or answers.label.min() < 0 or answers.label.max() >= self._classes:
            raise DataError(f"{self._folder} has answers that no teacher can give; {_REMEDY}")
        kept, label, energy, max_logit = (torch.from_numpy(values).to(device) for values in vars(answers).values())
        others = self._classes - kept.shape[1]
        rest = (1 - kept.float().exp().sum(dim=1, keepdim=True)).clamp(min=_SMALLEST) / max(others, 1)
        logits = rest.log().repeat(1, self._classes).scatter_(1, label.long(), kept.float())
        return Answers(logits, energy, max_logit)


def rows_of(run: Run, views: int, extra: int, device: torch.device) -> Rows:
    """The rows of the training images of a run, of which those of the HE-DA subset have ``extra`` further views."""
    some = run.subset.columns["index"] if extra else np.empty(0, np.int64)
    return Rows(run.data.counts.train, views, extra, torch.from_numpy(some.copy()).to(device))


def write_soft_labels(folder: Path, parts: Parts[StoredAnswers], card: SoftLabelCard) -> None:
    """Write the table and its card as one folder, a part at a time. Atomic."""
    with atomic_folder(folder) as temporary:
        for rows, part in parts:
            for name, values in vars(part).items():
                path, shape = temporary / f"{name}.npy", (parts.count, *values.shape[1:])
                mode = "r+" if path.exists() else "w+"
                column = np.lib.format.open_memmap(path, mode, values.dtype, None if mode == "r+" else shape)
                column[rows.start : rows.stop] = values
                column.flush()
        card.write(temporary / CARD)
