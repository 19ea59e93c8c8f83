"""Everything about a run that does not decide its numbers: device, processes, crash checkpoints, callbacks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import ALONE, World
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import Checkpoint, crash_folder


@dataclass(frozen=True)
class Session:
    """One run of a program that trains or scores.

    Attributes:
        device: where networks are computed.
        world: the processes that compute together; the first one writes.
        checkpoints: root of the crash checkpoints.
        keep: for a stage, see :func:`pipeline.training.checkpoint.crash_folder`.
        keep_best: keep the weights of the best epoch too, see :class:`pipeline.training.checkpoint.Checkpoint`.
        on_step: called after each step, also once per step of epochs that a checkpoint had finished.
        on_epoch: called with the record of each epoch, likewise.
        on_images: called with the number of further images that were scored.
        tell: called in the first process with a sentence about what was chosen.
    """

    device: torch.device
    world: World = ALONE
    checkpoints: Path = Path(".checkpoints")
    keep: bool = False
    keep_best: bool = False
    on_step: Callable[[], None] = lambda: None
    on_epoch: Callable[[EpochRecord], None] = lambda record: None
    on_images: Callable[[int], None] = lambda count: None
    tell: Callable[[str], None] = lambda sentence: None

    @classmethod
    def on(cls, device: Literal["auto", "cpu", "cuda"], **options: Any) -> Self:
        """A session of one process on the device that params.yaml asks for."""
        return cls(choose_device(device), **options)

    def watched(self, epochs: Iterable[EpochRecord]) -> list[EpochRecord]:
        """All records; ``on_epoch`` is called with each."""
        records = []
        for record in epochs:
            records.append(record)
            self.on_epoch(record)
        return records

    @contextmanager
    def checkpoint(self, role: str, key_parts: Mapping[str, Any], name: str | None = None) -> Iterator[Checkpoint]:
        """The crash checkpoint of the training that ``key_parts`` describe, locked; ``name`` of the student.

        Raises:
            BusyError: another process is training the same run.
        """
        with self.folder(role, key_parts, f"training this {role}", name) as folder:
            yield Checkpoint(folder)

    def folder(
        self, role: str, key_parts: Mapping[str, Any], work: str, name: str | None = None
    ) -> AbstractContextManager[Path]:
        """As :func:`pipeline.training.checkpoint.crash_folder`."""
        return crash_folder(self.checkpoints, role, key_parts, work, self.world, name=name, keep=self.keep)
