"""How every stage starts and ends: with its result, one sentence about bad input, or a signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.config import TEACHER, Params, load_params
from pipeline.errors import EnergyKDError, ParamsError, StoppedError
from pipeline.portable.files import atomic_file
from pipeline.store.lock import exclusive
from pipeline.store.paths import CHECKPOINTS, PARAMS
from stages import restore_environment
from stages.environment_error import environment_error
from stages.output import open_output

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
# environment variable: the folder in which each of several processes leaves its error message, under its rank
ERROR_MESSAGES = "ENERGYKD_ERROR_MESSAGES"
_BURST_SECONDS = 1.0  # some programs signal a process and, at once, its whole group


def run_stage(stage: Callable[..., None], *bad_input: type[Exception], network: str | None = None) -> None:
    """Run a stage on params.yaml; errors as in :func:`run_program`.

    Args:
        stage: called with the parameters, and with ``network`` if one is given.
        network: name of the student, or "teacher".
    """

    def program() -> None:
        arguments = stage_arguments(network, TEACHER)
        with only_one(stage, network):
            stage(*arguments)

    run_program(program, *bad_input, log=stage_name(stage, network))


def stage_arguments(network: str | None, *others: str) -> tuple[Params] | tuple[Params, str]:
    """The parameters and, for a stage of one network, its name.

    Args:
        others: names of networks, beside the students, that the stage can work on.

    Raises:
        ParamsError: the parameters are wrong, or no network has this name.
    """
    params = load_params()
    if network is None:
        return (params,)
    known = (*params.students, *others)
    if network not in known:
        raise ParamsError(f"{PARAMS} has no student {network!r}; choose from {', '.join(known)}")
    return params, network


def stage_name(stage: Callable[..., None], network: str | None) -> str:
    """Of the lock and the log of a stage; students may be made side by side."""
    # the name of a file, whatever was typed
    return stage.__name__ if network is None else f"{stage.__name__}-{quote(network, safe='')}"


def only_one(stage: Callable[..., None], network: str | None) -> AbstractContextManager[None]:
    """Refuse a second process of a stage in this folder: the stage of a killed dvc continues, and would mix its outputs
    with those of the next run.

    Raises:
        BusyError: names the first process; raised on entry.
    """
    work = f"running stage {stage.__name__}" + (f" of {network}" if network else "")
    return exclusive(CHECKPOINTS / f"{stage_name(stage, network)}.lock", f"{work} here")


def run_program(program: Callable[[], None], *bad_input: type[Exception], log: str | None = None) -> None:
    """Run a program; bad input and a lack of disk space or memory end with one sentence on stderr and exit code 2.
    SIGTERM and SIGHUP end it as Ctrl-C does, so that locks are released and temporary files removed.

    Args:
        bad_input: further error classes that are reported like EnergyKDError.
        log: name of the file in ``.checkpoints/logs`` that also gets what the program says; None: there is none.
    """
    restore_environment()
    open_output(log)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with logging_redirect_tqdm(), _Signals() as signals:
        try:
            program()
        except BaseException as error:
            # torch raises an error wherever it learns that a worker was killed, even while the process ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if signals.received is not None:  # a signal to the whole group ends workers first
                print(stopped_by(signals.received), file=sys.stderr)
                sys.exit(128 + signals.received)
            _exit_for(error, bad_input)
            raise


def device_argument(module: str, doc: str | None) -> str:
    """Parse the only argument of a program about a device: its name."""
    return _name_argument(module, doc, "folder in targets/")


def student_argument(module: str, doc: str | None) -> str:
    """Parse the only argument of a program about a student: its name."""
    return _name_argument(module, doc, "a student of params.yaml")


def network_argument(module: str, doc: str | None) -> str:
    """Parse the only argument of a program about a network: its name."""
    return _name_argument(module, doc, f"a student of params.yaml, or {TEACHER}")


def _name_argument(module: str, doc: str | None, what: str) -> str:
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("name", help=what)
    return str(parser.parse_args().name)


def stopped_by(number: int) -> str:
    """The sentence to show for a signal."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{how}; run the same command again to go on"


def _exit_for(error: BaseException, bad_input: tuple[type[Exception], ...]) -> None:
    """Show one sentence and exit; returns for a defect of the program, so that its traceback is shown."""
    if isinstance(error, StoppedError):
        sys.exit(BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        print(stopped_by(signal.SIGINT), file=sys.stderr)
        sys.exit(INTERRUPTED)
    if isinstance(error, (EnergyKDError, *bad_input)):
        sentence: str | None = str(error)
    else:
        sentence = environment_error(error) if isinstance(error, Exception) else None
    if sentence is not None:
        _show(sentence)
        sys.exit(BAD_INPUT)


class _Signals:
    """SIGTERM and SIGHUP raise SystemExit in this process, so that context managers end.

    Ignored signals stay ignored, such as SIGHUP under nohup. Processes of torchrun keep the system's handlers: when one
    fails, torchrun ends the others with SIGTERM and reports the exit code of the failed one.
    """

    received: int | None = None
    _ignore_until = 0.0

    def __enter__(self) -> _Signals:
        self._process = os.getpid()
        numbers = () if ERROR_MESSAGES in os.environ else (signal.SIGTERM, signal.SIGHUP)
        self._taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
        for number in self._taken:
            signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        # a second signal, as timeout(1) sends, must not change the exit code of a process that is ending
        then = signal.SIG_DFL if self.received is None else signal.SIG_IGN
        for number in self._taken:
            signal.signal(number, then)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which holds nothing
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() > self._ignore_until:
            self.received = number
            self._ignore_until = time.monotonic() + _BURST_SECONDS
            raise SystemExit(128 + number)


def _show(sentence: str) -> None:
    """Print an error message; one of several processes leaves it for the launcher, which prints it once."""
    if ERROR_MESSAGES in os.environ:
        with atomic_file(Path(os.environ[ERROR_MESSAGES]) / os.environ["RANK"]) as temporary:
            temporary.write_text(sentence, encoding="utf-8")
    else:
        print(f"error: {sentence}", file=sys.stderr)
