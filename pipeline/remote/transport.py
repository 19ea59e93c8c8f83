"""Runs one command on a device and reads its messages, with a time limit for each pause."""

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.device.service.run_folder import read_line
from pipeline.portable.text import brief
from pipeline.remote.address import Address
from pipeline.remote.errors import LinkError, RemoteError

_ERROR = "error: "  # beginning of the error sentence of a bundle
_NOT_FOUND = (126, 127)  # exit codes of a shell for a program that cannot be run or is missing
_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_QUIT_SECONDS = 1.0
_STDERR_BYTES = 16384
_LINE_BYTES = 1 << 20  # no message is longer
_CHUNK = 1 << 16


class RefusedError(RemoteError):
    """The command on the device failed, with a sentence; ``code`` is the exit code of a bundle, else None."""

    def __init__(self, name: str, code: int | None, sentence: str) -> None:
        super().__init__(f"{name}: {sentence}")
        self.code, self.sentence = code, sentence


class Transport(Protocol):
    """Runs commands on a device and copies files to and from it."""

    name: str
    python: str

    def open(self, words: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command in the device's home folder, with its standard output in a pipe; may raise RemoteError."""
        ...

    def failure(self, code: int, stderr: str) -> RemoteError | None:
        """The connection error behind a failed command; None if the connection held and the command itself failed."""
        ...


class LocalTransport:
    """Runs commands on this machine, with the same steps as on another device."""

    def __init__(self, address: Address) -> None:
        self.name = address.name
        self.python = sys.executable if address.python == "python3" else address.python

    def open(self, words: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        home = Path.home()
        if not home.is_dir():
            raise RemoteError(f"{self.name} has no home folder {home}; set HOME to a folder that can be written.")
        try:
            return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, cwd=home)
        except (FileNotFoundError, PermissionError) as error:
            raise RemoteError(
                f"{self.name} has no program {words[0]} ({error.strerror}); set address.python to where Python is."
            ) from None

    def failure(self, code: int, stderr: str) -> RemoteError | None:
        return None


def converse(
    transport: Transport,
    words: Sequence[str],
    *,
    silence_seconds: float,
    deadline: float,
    source: Path | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a command of the device's Python and yield its messages until it ends.

    A caller that has its answer need not wait for the end: a program that the login scripts left behind can keep the
    output open.

    Args:
        words: arguments of Python.
        silence_seconds: longest time without a message or a sent byte of ``source``.
        deadline: value of ``time.monotonic`` at which the connection ends.
        source: file for standard input; empty by default.
        on_sent: called regularly with the number of sent bytes of ``source``.

    Raises:
        LinkError: the connection failed, or a time limit was reached.
        RefusedError: the program ended with an error.
    """
    with tempfile.TemporaryFile() as stderr, (source or Path(os.devnull)).open("rb") as stdin:
        process = transport.open([transport.python, *words], stdin, stderr)
        try:
            yield from _messages(process, stdin, silence_seconds, deadline, transport.name, on_sent)
            code = process.wait(_END_SECONDS)
        except GeneratorExit:
            with suppress(subprocess.TimeoutExpired):  # it may have to remove files yet
                process.wait(_QUIT_SECONDS)
            raise
        except subprocess.TimeoutExpired:
            raise LinkError(f"the connection to {transport.name} did not end; run the same command again.") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if code:
            stderr.seek(max(stderr.seek(0, os.SEEK_END) - _STDERR_BYTES, 0))
            raise _error(transport, code, stderr.read(_STDERR_BYTES).decode(errors="replace"))


def _error(transport: Transport, code: int, stderr: str) -> RemoteError:
    if (failure := transport.failure(code, stderr)) is not None:
        return failure
    if code in _NOT_FOUND:
        return RemoteError(
            f"{transport.name} has no program {transport.python}; install Python 3.10 or newer there, "
            "or set address.python to where it is."
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # What the shell or login scripts write at its end follows the error of the bundle.
    if errors := [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]:
        return RefusedError(transport.name, code, brief(errors[-1], 500))
    last = brief(lines[-1], 500).rstrip(".") if lines else "it wrote no error"
    remedy = "check it and the login scripts there"
    return RefusedError(transport.name, None, f"{transport.python} ended with exit code {code} ({last}); {remedy}.")


def _messages(
    process: subprocess.Popen[bytes],
    stdin: IO[bytes],
    silence_seconds: float,
    deadline: float,
    name: str,
    on_sent: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the messages on standard output until the process closes it, and skip what login scripts write there.

    The process reads ``stdin`` itself. Both share the file position, which therefore is the number of sent bytes.
    """
    assert process.stdout is not None  # noqa: S101
    rest = b""
    sent = 0
    last_active = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(_POLL_SECONDS)
            now = time.monotonic()
            position = os.lseek(stdin.fileno(), 0, os.SEEK_CUR)
            if position != sent:
                sent, last_active = position, now
                if on_sent is not None:
                    on_sent(sent)
            if ready:
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[-_LINE_BYTES:]
                for line in lines:
                    if (values := read_line(line.decode(errors="replace"))) is not None:
                        last_active = now
                        yield values
            if now - last_active > silence_seconds or now > deadline:
                waited = "before its time limit" if now > deadline else f"within {silence_seconds:g} s"
                raise LinkError(f"{name} did not answer {waited}; check the connection and run the same command again.")
