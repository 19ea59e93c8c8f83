"""The program that a bundle is: ``python3 bundle.pyz``.

Without a command it measures here and now. The commands are what a client of another machine uses.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.device.errors import DeviceError
from pipeline.device.service import attend, detached, selftest
from pipeline.device.service.bundle import open_bundle, sha256_of
from pipeline.device.service.execute import Progress, execute, table
from pipeline.device.service.files import tell
from pipeline.device.service.lock import DeviceLock, Holder, LockedError
from pipeline.device.service.processes import MARK, end_marked
from pipeline.device.service.session import RESULT, SAMPLES, Session

FOLDER = "~/.cache/energykd"
BAD_INPUT = 2
LOCKED = 3
_REPEAT_SECONDS = 30.0


def main(words: Sequence[str] | None = None, archive: Path | None = None) -> int:
    """Exit code: 0; 2 after one sentence on standard error; 3 likewise, if another run holds the device.

    Args:
        archive: the bundle; by default the file that Python was started with.
    """
    choice = _parser().parse_args(words)
    archive = archive or Path(sys.argv[0])
    try:
        if archive.suffix == ".py":
            raise DeviceError("this program is part of a bundle; run it as `python3 bundle.pyz`.")
        folder = _expanded(choice.folder)
        if choice.command is None:
            if choice.self_test:
                return 0 if selftest.report(archive, folder) else BAD_INPUT
            _here(archive, folder, Path(choice.out))
        else:
            _serve(choice, folder)
    except LockedError as error:
        return _fail(str(error), LOCKED)
    except DeviceError as error:
        return _fail(str(error), BAD_INPUT)
    except BrokenPipeError:
        # The client has gone; Python must not try to flush what it will never read.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = error.filename or choice.folder
        return _fail(f"{error.strerror or error} ({where}); free space there or choose another folder.", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted, so nothing was written.", 128 + signal.SIGINT)
    return 0


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise DeviceError("this user has no home folder; name another with --folder.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bundle.pyz", description="Measure accuracy and latency of the models in this file, on this device."
    )
    parser.add_argument("--self-test", action="store_true", help="only say whether all that is needed is here")
    parser.add_argument("--out", default=".", metavar="DIR", help=f"folder for {RESULT} and {SAMPLES} (here)")
    _add_folder(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="what a client on another machine uses")
    start = _add_run(commands.add_parser("start", help="measure in the background"))
    _add_run(commands.add_parser("follow", help="show the progress of a run until its end"))
    _add_run(commands.add_parser("stop", help="end a run"))
    clean = _add_run(commands.add_parser("clean", help="forget a run that was fetched, and remove old bundles"))
    run = _add_run(commands.add_parser("run", help="measure for a start command"))
    start.add_argument("--owner", required=True, metavar="USER@HOST", help="shown to whoever finds the device locked")
    clean.add_argument("--keep", type=int, default=3, help="bundles to keep beside this one (%(default)s)")
    clean.add_argument("--days", type=float, default=14.0, help="age at which bundles go (%(default)s)")
    run.add_argument("--lock", type=int, required=True, help="descriptor that holds the lock")
    for command in (start, run):
        command.add_argument("--limit", type=float, required=True, metavar="SECONDS", help="time limit of the run")
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default=FOLDER, metavar="DIR", help=f"folder of this program ({FOLDER})")


def _add_run(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    _add_folder(parser)
    parser.add_argument("--bundle", required=True, metavar="SHA256", help="of the bundle")
    parser.add_argument("--run", required=True, metavar="ID", help="hexadecimal, chosen by the client")
    return parser


def _serve(choice: argparse.Namespace, folder: Path) -> None:
    session = Session(folder, choice.bundle, choice.run)
    if choice.command == "start":
        tell({"start": detached.start(session, choice.owner, choice.limit)})
    elif choice.command == "follow":
        attend.follow(session, tell)
    elif choice.command == "stop":
        tell({"stopped": attend.stop(session)})
    elif choice.command == "clean":
        tell({"removed": attend.clean(session, keep=choice.keep, days=choice.days)})
    else:
        detached.supervise(session, choice.lock, choice.limit)


def _here(archive: Path, folder: Path, out: Path) -> None:
    """Measure in the foreground.

    Raises:
        DeviceError: one sentence; nothing was written.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    bundle = open_bundle(archive)
    sha256 = sha256_of(archive)
    lock = DeviceLock(folder).take(Holder.now(_owner(), sha256, "here"))
    files = folder / "here"
    try:
        end_marked(folder)
        os.environ[MARK] = str(folder)
        # What an earlier run left that was killed.
        shutil.rmtree(files, ignore_errors=True)
        result = execute(bundle, sha256, files, out, _shown())
    finally:
        # A worker that was just being started when the interrupt came is not known to who started it.
        end_marked(folder)
        shutil.rmtree(files, ignore_errors=True)
        os.close(lock)
    sys.stdout.write(f"{table(result)}\nwritten to {out / RESULT} and {out / SAMPLES}\n")


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _shown() -> Progress:
    """Progress on standard error: one line that changes on a terminal, else a line now and then."""
    terminal = sys.stderr.isatty()
    last = [-_REPEAT_SECONDS]

    def show(done: int, total: int, label: str) -> None:
        line = f"{done}/{total} {label}" if total else label
        if terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if total and done == total else ""))
        elif time.monotonic() - last[0] >= _REPEAT_SECONDS or done == total:
            last[0] = time.monotonic()
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    return show


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return code
