"""The frame of the two training stages: crash checkpoint, progress bar, and learning curves as DVCLive files."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from dvclive import Live
from scmrepo.exceptions import SCMError

from pipeline.compute.distributed import join
from pipeline.data.loader import steps_per_epoch
from pipeline.errors import DataError
from pipeline.lineage import NetworkRun
from pipeline.store.documents import CurvesCard, NetworkCard
from pipeline.store.paths import CHECKPOINTS, CURVES_CARD
from pipeline.store.space import require_space
from pipeline.training.card import EpochRecord
from pipeline.training.session import Session
from stages.progress import Bar


class Curves:
    """The learning curves in a folder, which is emptied before the first epoch is written."""

    def __init__(self, folder: Path, opened: ExitStack, bar: Bar) -> None:
        self._folder, self._opened, self._bar = folder, opened, bar
        self._best: EpochRecord | None = None
        self._ended = time.perf_counter()

    @cached_property
    def live(self) -> Live:
        """The DVCLive files; the first use empties their folder."""
        return self._opened.enter_context(_live(self._folder))

    def add(self, record: EpochRecord) -> None:
        """Write one epoch and show it."""
        for name in ("train_loss", "val_top1", "learning_rate"):
            self.live.log_metric(name, getattr(record, name))
        self.live.next_step()
        if self._best is None or record.val_top1 > self._best.val_top1:
            self._best = record
        now = time.perf_counter()
        if now - self._ended < record.seconds:  # it was restored
            self._bar.restart()
        self._ended = now
        self._bar.tell(
            f"val {record.val_top1:.2%}, best {self._best.val_top1:.2%} in epoch {self._best.epoch + 1}",
            f"epoch {record.epoch + 1}, loss {record.train_loss:.3f}",
        )


@contextmanager
def training_session(network: NetworkRun, device: torch.device, epochs: int, batch_size: int) -> Iterator[Session]:
    """The session of a training stage. An error before the end of the first epoch leaves earlier curves unchanged.

    Args:
        batch_size: images in a step of all processes together.

    Raises:
        DataError: the Git repository has no commit yet, which DVCLive needs; raised when it first writes.
        SpaceError: the disk is full.
    """
    folder = network.places.curves
    with join(device) as world:
        session = Session(device, world, CHECKPOINTS, keep=True)
        with world.barrier():
            count = network.run.data.counts.train
            images, steps = min(batch_size, count), epochs * steps_per_epoch(count, batch_size)
            if world.is_main:
                require_space(folder, 0, "the learning curves")
        if not world.is_main:
            yield session
            return
        with ExitStack() as opened, Bar(network.name, "image", steps * images) as bar:
            curves = Curves(folder, opened, bar)
            yield replace(session, on_step=lambda: bar.update(images) and None, on_epoch=curves.add, tell=bar.write)
            _ = curves.live  # a teacher from a checkpoint has no epochs, and the curves of an earlier one must go


def sign_curves(network: NetworkRun, card: NetworkCard) -> None:
    """Record in the folder of finished curves that they belong to the network with this card."""
    signed = CurvesCard(role=card.role, weights_sha256=card.weights_sha256)
    signed.write(network.places.curves / CURVES_CARD)


def check_repository() -> None:
    """Check, before anything is computed, that learning curves can be written.

    Raises:
        DataError: the Git repository has no commit.
    """
    with TemporaryDirectory() as folder, _live(Path(folder)):
        pass


def _live(folder: Path) -> Live:
    try:
        return Live(str(folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
    except SCMError as error:
        raise DataError(
            f"the learning curves need a Git repository with a commit ({error}); run `git add --all && git commit` and "
            "then the same command again"
        ) from None
