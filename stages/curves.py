"""Learning curves while a network trains: a progress bar, and DVCLive files for `dvc plots` and the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvclive import Live
from tqdm import tqdm

from pipeline.training import EpochRecord


class Curves:
    """What the training loop calls after each step and each epoch."""

    def __init__(self, live: Live, bar: tqdm) -> None:
        self._live = live
        self._bar = bar

    def step(self) -> None:
        self._bar.update()

    def epoch(self, record: EpochRecord) -> None:
        self._live.log_metric("train_loss", record.train_loss)
        self._live.log_metric("val_top1", record.val_top1)
        self._live.log_metric("learning_rate", record.learning_rate)
        self._live.next_step()
        self._bar.set_postfix(epoch=record.epoch + 1, loss=f"{record.train_loss:.3f}", val=f"{record.val_top1:.2%}")


@contextmanager
def learning_curves(folder: Path, role: str, epochs: int, steps: int) -> Iterator[Curves]:
    """Curves in ``folder``, emptied first, and a bar over ``epochs * steps`` training steps."""
    with (
        Live(str(folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False) as live,
        tqdm(total=epochs * steps, desc=role, unit="step", mininterval=0.5, dynamic_ncols=True) as bar,
    ):
        yield Curves(live, bar)
