"""Command line of a bundle: ``python3 bundle.pyz``.

Without a command it measures on this machine. Clients on other machines use the commands.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.device.errors import DeviceError
from pipeline.device.service import detached
from pipeline.device.service.bundle import open_bundle, verify
from pipeline.device.service.execute import execute
from pipeline.device.service.lock import RUN_VARIABLE, DeviceLock, Holder, LockedError, end_measuring_processes, owner
from pipeline.device.service.run_folder import RESULT, SAMPLES, RunFolder, send
from pipeline.portable.files import sha256_file

if TYPE_CHECKING:  # the import needs numpy, and the self-test must run without
    from pipeline.portable.documents import Result

FOLDER = "~/.cache/energykd"
BAD_INPUT = 2
LOCKED = 3
# How to install each runtime. The Python module has the same name.
INSTALL = {name: f"pip install {name}" for name in ("torch", "onnxruntime", "openvino")}
INSTALL |= {"tensorrt": "NVIDIA's packages for this device", "tensorrt_rtx": "pip install tensorrt-rtx-cu12"}
_ROOM = 32 << 20  # free bytes needed in addition to the extracted files
_REPEAT_SECONDS = 30.0


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, or 2 (3 if another run holds the device) after one sentence on standard error."""
    _open_streams()
    choice = _parser().parse_args(words)
    archive = Path(sys.argv[0])
    try:
        if archive.suffix == ".py":
            raise DeviceError("this program is part of a bundle; run it as `python3 bundle.pyz`.")
        folder = _absolute(choice.folder)
        if choice.command is not None:
            _serve(choice, folder)
        elif choice.self_test:
            _self_test(archive, folder)
        else:
            _measure_here(archive, folder, Path(choice.out))
    except DeviceError as error:
        return _fail(str(error), LOCKED if isinstance(error, LockedError) else BAD_INPUT)
    except BrokenPipeError:
        # The client has closed the connection. Without this, Python fails again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = error.filename or choice.folder
        return _fail(f"{error.strerror or error} ({where}); correct that there or choose another folder.", BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted, so nothing was written.", 128 + signal.SIGINT)
    return 0


def _open_streams() -> None:
    """Let standard output and standard error take any text: one may be closed, or have an encoding without a letter of
    a folder's name."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for the life of the process
        else:
            stream.reconfigure(errors="backslashreplace")


def _absolute(folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise DeviceError("this user has no home folder; name another with --folder.") from error


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", default=FOLDER, metavar="DIR", help=f"folder of this program ({FOLDER})")
    of_run = argparse.ArgumentParser(add_help=False, parents=[common])
    of_run.add_argument("--bundle", required=True, metavar="SHA256", help="SHA-256 of the bundle")
    of_run.add_argument("--run", required=True, metavar="ID", help="hexadecimal, chosen by the client")
    limited = argparse.ArgumentParser(add_help=False, parents=[of_run])
    limited.add_argument("--limit", type=float, required=True, metavar="SECONDS", help="time limit of the run")

    parser = argparse.ArgumentParser(
        prog="bundle.pyz",
        description="Measure accuracy and latency of the models in this file, on this device.",
        parents=[common],
    )
    parser.add_argument("--self-test", action="store_true", help="only check that everything needed is installed")
    parser.add_argument("--out", default=".", metavar="DIR", help=f"folder for {RESULT} and {SAMPLES} (here)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help="for clients on other machines")
    start = commands.add_parser("start", parents=[limited], help="measure in the background")
    start.add_argument("--owner", required=True, metavar="USER@HOST", help="shown while the device is locked")
    commands.add_parser("follow", parents=[of_run], help="send the progress of a run until its end")
    commands.add_parser("stop", parents=[of_run], help="end a run")
    clean = commands.add_parser("clean", parents=[of_run], help="remove a fetched run and old bundles")
    clean.add_argument("--keep", type=int, default=3, help="number of other bundles to keep (%(default)s)")
    clean.add_argument("--days", type=float, default=14.0, help="age limit of bundles (%(default)s)")
    run = commands.add_parser("run", parents=[limited], help="used by the start command itself")
    run.add_argument("--lock", type=int, required=True, help="file descriptor of the lock")
    return parser


def _serve(choice: argparse.Namespace, folder: Path) -> None:
    run = RunFolder(folder, choice.bundle, choice.run)
    if choice.command == "start":
        send({"start": detached.start(run, choice.owner, choice.limit)})
    elif choice.command == "follow":
        detached.follow(run, send)
    elif choice.command == "stop":
        send({"stopped": detached.stop(run)})
    elif choice.command == "clean":
        send({"removed": detached.clean(run, keep=choice.keep, days=choice.days)})
    else:
        detached.supervise(run, choice.lock, choice.limit)


def _self_test(archive: Path, folder: Path) -> None:
    """Print one line for each requirement of a run; works without numpy and without a runtime."""

    def report(fulfilled: bool, sentence: str) -> None:
        sys.stdout.write(f"{'ok' if fulfilled else 'missing'}: {sentence}\n")

    def check_module(module: str, install: str, purpose: str) -> None:
        installed = importlib.util.find_spec(module.partition(".")[0]) is not None
        missing = f"{module} is not installed, but needed {purpose}; install it with {install}."
        report(installed, f"{module} is installed, {purpose}; it was not imported." if installed else missing)

    bundle = open_bundle(archive)
    verify(bundle)
    files, variants = bundle.files, bundle.plan.variants
    size = sum(entry.size for entry in files.values())
    report(True, f"all {len(files)} files of the bundle have the sha256 of its manifest ({size / 1e6:.1f} MB).")
    report(True, f"Python {'.'.join(map(str, sys.version_info[:3]))} is 3.10 or newer.")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = bundle.data_bytes + _ROOM, shutil.disk_usage(existing).free
    report(free >= needed, f"{folder} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed.")
    check_module("numpy", "pip install numpy", "for everything")
    for runtime, count in sorted(Counter(variant.runtime for variant in variants).items()):
        check_module(runtime, INSTALL.get(runtime, "its own instructions"), f"for {count} of {len(variants)} files")


def _measure_here(archive: Path, folder: Path, out: Path) -> None:
    """Measure in the foreground. After a DeviceError nothing is written."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    bundle = open_bundle(archive)
    sha256 = sha256_file(archive)
    lock = DeviceLock(folder).take(Holder.now(owner(), sha256, "here"))
    files = folder / "here"
    try:
        end_measuring_processes(folder)
        os.environ[RUN_VARIABLE] = str(folder)
        shutil.rmtree(files, ignore_errors=True)  # leftovers of a killed run
        result = execute(bundle, sha256, files, out, _progress_on_stderr())
    finally:
        # An interrupt during the start of a worker can leave it without a parent that waits for it.
        end_measuring_processes(folder)
        shutil.rmtree(files, ignore_errors=True)
        os.close(lock)
    sys.stdout.write(f"{_table(result)}\nwritten to {out / RESULT} and {out / SAMPLES}\n")


def _progress_on_stderr() -> Callable[[int, int, str], None]:
    """Progress display: one updated line on a terminal, else a line every 30 seconds."""
    terminal = sys.stderr.isatty()
    last = [-_REPEAT_SECONDS]

    def show(done: int, total: int, label: str) -> None:
        line = f"{done}/{total} {label}" if total else label
        with suppress(OSError):  # a measurement goes on when nobody reads its progress any more
            if terminal:
                sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if total and done == total else ""))
            elif time.monotonic() - last[0] >= _REPEAT_SECONDS or done == total:
                last[0] = time.monotonic()
                sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    return show


def _table(result: Result) -> str:
    """Text table of the result."""
    rows = [("file", "runtime", "executed", "p50 ms", "p90 ms", "verdict")]
    for row in result.rows:
        p50, p90 = (f"{ms:.3f}" if ms is not None else "-" for ms in (row.latency_p50_ms, row.latency_p90_ms))
        verdict = row.error if row.error and row.latency_p50_ms is None else row.verdict
        rows.append((row.name, row.runtime, row.precision_executed or "-", p50, p90, str(verdict)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"error: {sentence}\n")
    return code
