"""This machine as the device: the same path as for another, without a connection."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.remote.address import Address
from pipeline.remote.errors import RemoteError


class LocalTransport:
    """Starts processes here, in the home folder."""

    def __init__(self, address: Address) -> None:
        self.name = address.name
        self.python = sys.executable if address.python == "python3" else address.python

    def open(self, words: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, cwd=Path.home())
        except (FileNotFoundError, PermissionError) as error:
            raise RemoteError(
                f"{self.name} has no program {words[0]} ({error.strerror}); set address.python to where Python is."
            ) from None

    def failure(self, code: int, stderr: str) -> RemoteError | None:
        del code, stderr
        return None
