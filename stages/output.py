"""What a program says: stdout and stderr, and the log file that is kept of a stage."""

import io
import logging
import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline.store.paths import LOGS

_LARGEST = 2**22  # bytes of a log file, which then becomes <stage>.log.1


class _Log:
    """Lines in a file, each with its time. The file is opened for each line: several processes may share it, a kill
    loses nothing, and it may be removed meanwhile."""

    path: Path | None = None

    def add(self, line: str) -> None:
        path = self.path
        if path is None or not line:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # there is none yet, or another process has just moved it
                if path.stat().st_size > _LARGEST:
                    path.replace(f"{path}.1")
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError as error:
            self.path = None  # first, because the warning is a line as well
            logging.warning("%s cannot be written (%s); the stage goes on without it", path, error.strerror)


_log = _Log()


class _Descriptor(io.FileIO):
    """Drops what nobody takes any more: a reader that has gone, a closed terminal or a full disk under the redirected
    output of a training are no reason to end it."""

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:  # a pipe is full, and whoever made it lets no writer wait
                select.select([], [self], [])
            return count
        except OSError:
            return memoryview(data).nbytes


class _Stream(io.TextIOWrapper):
    """Takes any character in any encoding, and adds whole lines to the log, without what they were drawn over."""

    def __init__(self, descriptor: int, encoding: str) -> None:
        raw = io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False))
        super().__init__(raw, encoding, "backslashreplace", line_buffering=True)
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            _log.add(line.rstrip().rpartition("\r")[2])
        self._line = self._line.rpartition("\r")[2]
        return super().write(text)


def open_output(stage: str | None) -> None:
    """Make stdout and stderr take whatever is written, and begin the log of a stage; None: of no stage."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if _descriptor_of(stream) in (None, descriptor):
            setattr(sys, name, _Stream(descriptor, getattr(stream, "encoding", "utf-8")))
    # before the first line of the log, which may end in a warning, and with the new stderr
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # of several processes only the first is shown, and the one that starts them has begun the log
    rank = os.environ.get("RANK")
    _log.path = (LOGS / f"{stage}.log").absolute() if stage is not None and rank in (None, "0") else None
    if rank is None:
        _log.add(f"---- {stage} begins, process {os.getpid()}")


def _descriptor_of(stream: TextIO | None) -> int | None:
    """None for a stream that was closed when Python started; -1 for one without a descriptor."""
    try:
        return stream and stream.fileno()
    except OSError:
        return -1


def keep(line: str) -> None:
    """Add a line to the log alone."""
    _log.add(line)
