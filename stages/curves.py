"""Learning curves while a network trains: a progress bar, and DVCLive files for `dvc plots` and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvclive import Live
from scmrepo.exceptions import SCMError
from tqdm import tqdm

from pipeline.compute.distributed import ALONE, World
from pipeline.errors import DataError
from pipeline.store.paths import CURVES_LINEAGE
from pipeline.store.tables import write_json
from pipeline.training.loop import EpochRecord


class Curves:
    """What the training loop calls after each step and each epoch.

    Args:
        open_live: starts the files of DVCLive.
    """

    def __init__(self, open_live: Callable[[], Live], bar: tqdm) -> None:
        self._open_live = open_live
        self._bar = bar

    @cached_property
    def live(self) -> Live:
        """The files; they are touched from here on."""
        return self._open_live()

    def step(self) -> None:
        self._bar.update()

    def epoch(self, record: EpochRecord) -> None:
        self.live.log_metric("train_loss", record.train_loss)
        self.live.log_metric("val_top1", record.val_top1)
        self.live.log_metric("learning_rate", record.learning_rate)
        self.live.next_step()
        self._bar.set_postfix(epoch=record.epoch + 1, loss=f"{record.train_loss:.3f}", val=f"{record.val_top1:.2%}")


class NoCurves:
    """What the training loop of the other processes calls."""

    def step(self) -> None:
        """Show nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Write nothing."""


def check_repository() -> None:
    """Learn before anything is computed whether curves can be kept.

    Raises:
        DataError: the Git repository has no commit.
    """
    with TemporaryDirectory() as folder, _live(Path(folder)):
        pass


def write_lineage(folder: Path, card: Mapping[str, Any]) -> None:
    """Say in a folder of finished curves whose they are: of the network with this card."""
    write_json(folder / CURVES_LINEAGE, {"lineage": {card["role"]: card["weights_sha256"]}})


@contextmanager
def learning_curves(
    folder: Path, role: str, epochs: int, steps: int, world: World = ALONE
) -> Iterator[Curves | NoCurves]:
    """Curves in ``folder``, and a bar over ``epochs * steps`` training steps, from the first process.

    The folder is emptied when the first epoch ends, or when the block ends well without one: what is refused before
    leaves it as it was.

    Raises:
        DataError: the Git repository around it has no commit yet, which DVCLive needs; raised when it first writes.
    """
    if not world.first:
        yield NoCurves()
        return
    with (
        ExitStack() as stack,
        tqdm(total=epochs * steps, desc=role, unit="step", mininterval=0.5, dynamic_ncols=True) as bar,
    ):
        curves = Curves(lambda: stack.enter_context(_live(folder)), bar)
        yield curves
        _ = curves.live


def _live(folder: Path) -> Live:
    try:
        return Live(str(folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
    except SCMError as error:
        raise DataError(
            f"the learning curves need a Git repository with a commit ({error}); run `git add --all && git commit` and "
            "then the same command again"
        ) from None
