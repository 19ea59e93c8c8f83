"""What all stages share: how a stage starts, shows progress and fails."""

from __future__ import annotations

import csv
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.config import Params, load_params
from pipeline.errors import EnergyKDError, StoppedError
from pipeline.layout import CHECKPOINTS
from pipeline.lock import exclusive
from stages import restore_environment

BAD_INPUT = 2
INTERRUPTED = 128 + signal.SIGINT
# the folder in which each of several processes leaves the sentence it ended with, under its rank
SENTENCES = "ENERGYKD_SENTENCES"

# what the surroundings can refuse; any other error of the system is a defect, and its traceback is wanted
_REMEDIES = {
    errno.ENOSPC: "free space there and run the same command again",
    errno.EDQUOT: "free space there or raise the quota, and run the same command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use another disk",
    errno.EROFS: "run on a disk that can be written",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.EIO: "check the disk",
}


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
    """Run a program of ours; bad input, and a full or forbidden disk, end in one sentence on stderr and exit code 2.

    Args:
        bad_input: errors of packages that do not share the pipeline's own, to be treated alike.
    """
    restore_environment()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        program()
    except StoppedError:
        sys.exit(BAD_INPUT)
    except (EnergyKDError, *bad_input) as error:
        _say(str(error))
        sys.exit(BAD_INPUT)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{where}{os.strerror(error.errno)}; {_REMEDIES[error.errno]}")
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)


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
