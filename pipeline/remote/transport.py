"""Asking a device: one command there, and the lines that it tells, with a limit on every silence."""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.device.errors import brief
from pipeline.device.service.files import told
from pipeline.remote.errors import LinkError, RemoteError

NOT_FOUND = (126, 127)  # how shells end where there is no such program, or none that can be run
_LOOK_SECONDS = 0.2
_END_SECONDS = 10.0
_STDERR_BYTES = 16384
_CHUNK = 1 << 16


class RefusedError(RemoteError):
    """The program on the device ended with an error of its own.

    Attributes:
        code: its exit code.
        sentence: what it said, without the name of the device.
    """

    def __init__(self, name: str, code: int, sentence: str) -> None:
        super().__init__(f"{name}: {sentence}")
        self.code = code
        self.sentence = sentence


class Transport(Protocol):
    """How commands reach a device.

    Attributes:
        name: of the device, for messages.
        python: the device's Python.
    """

    name: str
    python: str

    def open(self, words: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command in the device's home folder, with its standard output in a pipe.

        Raises:
            RemoteError: the program that makes the connection is not installed here.
        """
        ...

    def failure(self, code: int, stderr: str) -> RemoteError | None:
        """What a failed command says of the connection; None if the connection held and the command itself failed."""
        ...


def converse(
    transport: Transport,
    words: Sequence[str],
    *,
    silence_seconds: float,
    deadline: float,
    source: Path | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a command of the device's Python and yield what it tells, until it ends.

    Args:
        words: after the name of Python.
        silence_seconds: without a line, or a byte of ``source`` sent, the connection is taken for dead.
        deadline: of ``time.monotonic``; likewise.
        source: standard input; nothing by default.
        on_sent: called now and then with the bytes of ``source`` that were sent.

    Raises:
        LinkError: the connection was lost, or never made.
        RefusedError: the program ended with an error.
        RemoteError: any other reason why it could not run.
    """
    command = [transport.python, *words]
    with tempfile.TemporaryFile() as stderr, (source or Path(os.devnull)).open("rb") as stdin:
        process = transport.open(command, stdin, stderr)
        try:
            for line in _lines(process, stdin, silence_seconds, deadline, transport.name, on_sent):
                values = told(line)
                if values is not None:
                    yield values
            code = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise LinkError(f"the connection to {transport.name} did not end; run the same command again.") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if code:
            stderr.seek(0)
            raise _error(transport, code, stderr.read(_STDERR_BYTES).decode(errors="replace"))


def _error(transport: Transport, code: int, stderr: str) -> RemoteError:
    if (failure := transport.failure(code, stderr)) is not None:
        return failure
    if code in NOT_FOUND:
        return RemoteError(
            f"{transport.name} has no program {transport.python}; install Python 3.10 or newer there, "
            "or set address.python to where it is."
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"the program ended with exit code {code} and said nothing."
    return RefusedError(transport.name, code, brief(last.removeprefix("error: "), 500))


def _lines(
    process: subprocess.Popen[bytes],
    stdin: IO[bytes],
    silence_seconds: float,
    deadline: float,
    name: str,
    on_sent: Callable[[int], None] | None,
) -> Iterator[str]:
    """Lines of the process's output, until it closes that.

    The process reads ``stdin`` by itself; the position in the file is common to both and so tells how far it is.
    """
    assert process.stdout is not None  # noqa: S101
    rest = b""
    sent = 0
    heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(_LOOK_SECONDS)
            now = time.monotonic()
            position = os.lseek(stdin.fileno(), 0, os.SEEK_CUR)
            if position != sent:
                sent, heard = position, now
                if on_sent is not None:
                    on_sent(sent)
            if ready:
                heard = now
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            elif now - heard > silence_seconds or now > deadline:
                waited = "before its time limit" if now > deadline else f"within {silence_seconds:g} s"
                raise LinkError(f"{name} did not answer {waited}; check the connection and run the same command again.")
