"""What all stages share: how a stage starts, shows progress and fails."""

from __future__ import annotations

import csv
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from pipeline.config import Params, load_params
from pipeline.errors import EnergyKDError, StoppedError
from pipeline.store.atomic import atomic_file
from pipeline.store.lock import exclusive
from pipeline.store.paths import CHECKPOINTS
from stages import restore_environment
from stages.refusal import refusal

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
# the folder in which each of several processes leaves the sentence it ended with, under its rank
SENTENCES = "ENERGYKD_SENTENCES"
_BURST_SECONDS = 1.0  # some send a signal to a process and at once to its group as well


def run(stage: Callable[[Params], None], *bad_input: type[Exception]) -> None:
    """Run a stage on params.yaml; the rest as for :func:`run_program`."""

    def program() -> None:
        with only_one(stage):
            stage(load_params())

    run_program(program, *bad_input)


def only_one(stage: Callable[[Params], None]) -> AbstractContextManager[None]:
    """Refuse a second process of a stage in this folder: a killed dvc leaves its stage alive, which would then write
    its outputs between those of the next one.

    Raises:
        BusyError: names the first process; raised on entry.
    """
    return exclusive(CHECKPOINTS / f"{stage.__name__}.lock", f"running stage {stage.__name__} here")


def run_program(program: Callable[[], None], *bad_input: type[Exception]) -> None:
    """Run a program of ours; bad input, and a disk or memory that does not suffice, end in one sentence on stderr and
    exit code 2. SIGTERM and SIGHUP end it as Ctrl-C does, so that what it holds is given back.

    Args:
        bad_input: errors of packages that do not share the pipeline's own, to be treated alike.
    """
    restore_environment()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _Signals() as signals:
        try:
            program()
        except BaseException as error:
            # torch raises an error wherever it learns that a worker was killed, even while the process ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if signals.received is not None:  # a signal to the whole group ends workers first
                print(stopped_by(signals.received), file=sys.stderr)
                sys.exit(128 + signals.received)
            _end(error, bad_input)
            raise


def stopped_by(number: int) -> str:
    """The sentence for a signal."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{how}; run the same command again to go on"


def _end(error: BaseException, bad_input: tuple[type[Exception], ...]) -> None:
    """Say what is wrong and exit; returns for a defect."""
    if isinstance(error, StoppedError):
        sys.exit(BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        print(stopped_by(signal.SIGINT), file=sys.stderr)
        sys.exit(INTERRUPTED)
    if isinstance(error, (EnergyKDError, *bad_input)):
        sentence: str | None = str(error)
    else:
        sentence = refusal(error) if isinstance(error, Exception) else None
    if sentence is not None:
        _say(sentence)
        sys.exit(BAD_INPUT)


class _Signals:
    """SIGTERM and SIGHUP raise SystemExit in this process, so that context managers end.

    Those that are ignored stay so, as SIGHUP under nohup. Of several processes each keeps what the system does:
    torchrun ends them with SIGTERM when one has failed, and it is that one's exit code that counts.
    """

    received: int | None = None
    _deaf_until = 0.0

    def __enter__(self) -> _Signals:
        self._process = os.getpid()
        numbers = () if SENTENCES in os.environ else (signal.SIGTERM, signal.SIGHUP)
        self._taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
        for number in self._taken:
            signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        # a second one, as timeout(1) sends, must not change the exit code of a process that is on its way out
        then = signal.SIG_DFL if self.received is None else signal.SIG_IGN
        for number in self._taken:
            signal.signal(number, then)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which has nothing to put in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() > self._deaf_until:
            self.received = number
            self._deaf_until = time.monotonic() + _BURST_SECONDS
            raise SystemExit(128 + number)


def _say(sentence: str) -> None:
    """Show what is wrong; one of several processes leaves it for the launcher, which shows it once."""
    if SENTENCES in os.environ:
        with atomic_file(Path(os.environ[SENTENCES]) / os.environ["RANK"]) as temporary:
            temporary.write_text(sentence, encoding="utf-8")
    else:
        print(f"error: {sentence}", file=sys.stderr)


@contextmanager
def progress(label: str, total: int, unit: str, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields the function that advances it."""
    with tqdm(total=total, desc=label, unit=unit, mininterval=0.5, dynamic_ncols=True, disable=not shown) as bar:
        yield bar.update


@contextmanager
def counted(label: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr; yields the function that sets it: done, in all (0: not known), and what comes next."""
    with tqdm(desc=label, unit=unit, dynamic_ncols=True) as bar:

        def on_progress(done: int, total: int, what: str) -> None:
            if total:
                bar.total, bar.n = total, done
            bar.set_postfix_str(what)

        yield on_progress


def write_csv(path: Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Columns of equal length as CSV, for `dvc plots`."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
