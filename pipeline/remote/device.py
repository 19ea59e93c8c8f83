"""What can be asked of a device: one method for each question, each a conversation of its own."""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.device.service.attend import BEAT_SECONDS
from pipeline.device.service.session import BUNDLE
from pipeline.remote import scripts
from pipeline.remote.address import Address
from pipeline.remote.errors import RemoteError
from pipeline.remote.local import LocalTransport
from pipeline.remote.ssh import SshTransport
from pipeline.remote.transport import RefusedError, Transport, converse

Json = dict[str, Any]

_LOCKED = 3
# A slow device hashes 20 MB/s at least.
_HASH_BYTES_PER_SECOND = 20e6
_STALL_SECONDS = 60.0
_SILENT_BEATS = 6
_MOST_BYTES = 1 << 30  # of a fetched file, which is held in memory


def transport_to(address: Address) -> Transport:
    """The way to a device."""
    return LocalTransport(address) if address.host is None else SshTransport(address)


class Device:
    """One run of one bundle on one device.

    Args:
        bundle: on this machine.
        sha256: of it.
        run: hexadecimal id.
        deadline: of ``time.monotonic``, for everything.
    """

    def __init__(self, address: Address, bundle: Path, sha256: str, run: str, deadline: float) -> None:
        self._address = address
        self._transport = transport_to(address)
        self.sha256 = sha256
        self._bundle = bundle
        self._deadline = deadline
        self._short = address.connect_timeout_seconds
        self._hashing = bundle.stat().st_size / _HASH_BYTES_PER_SECOND
        self._place = {"folder": address.folder, "sha256": sha256, "run": run}
        self._program = f"{address.folder}/{sha256}/{BUNDLE}"
        self._choice = ["--folder", address.folder, "--bundle", sha256, "--run", run]

    @property
    def name(self) -> str:
        return self._transport.name

    @property
    def python(self) -> str:
        return self._transport.python

    def facts(self, modules: list[str]) -> Json:
        """What ``scripts.PREFLIGHT`` finds."""
        return self._ask(scripts.words(scripts.PREFLIGHT, **self._place, modules=modules), self._hashing)

    def install(self, on_progress: Callable[[int], None]) -> None:
        """Copy the bundle.

        Raises:
            RemoteError: what arrived is not what was sent, or there is no room for it.
        """
        words = scripts.words(scripts.INSTALL, **self._place)
        silence = _STALL_SECONDS + self._hashing
        answer = self._only(
            converse(
                self._transport,
                words,
                silence_seconds=silence,
                deadline=self._deadline,
                source=self._bundle,
                on_sent=on_progress,
            )
        )
        if "installed" in answer:
            return
        if "wrong" in answer:
            raise RemoteError(
                f"the bundle arrived on {self.name} with sha256 {answer['wrong'][:12]} and not "
                f"{self._place['sha256'][:12]}, so it was removed there; run the same command again, and check the "
                "disks and memory of both machines if that does not help."
            )
        remedy = "free space there or set address.folder to another disk" if answer["full"] else "set address.folder"
        reason = "no space was left" if answer["full"] else answer["error"]
        raise RemoteError(f"the bundle could not be copied to {self.name} ({reason}); {remedy}.")

    def start(self, limit_seconds: float) -> str:
        """Start the run; harmless if it was started before. As ``detached.start``."""
        choice = [*self._choice, "--owner", owner(), "--limit", f"{max(limit_seconds, 1):.0f}"]
        return str(self._command("start", choice)["start"])

    def follow(self) -> Iterator[Json]:
        """What ``attend.follow`` tells; the last has "end"."""
        yield from self._converse("follow", self._choice, _SILENT_BEATS * BEAT_SECONDS + self._short)

    def stop(self) -> None:
        """End the run."""
        self._command("stop", self._choice)

    def other(self, sha256: str, run: str) -> Device:
        """Another run there."""
        return Device(self._address, self._bundle, sha256, run, self._deadline)

    def clean(self) -> None:
        self._command("clean", self._choice)

    def fetch(self, sha256: Mapping[str, str]) -> dict[str, bytes]:
        """Files of the run.

        Args:
            sha256: of each name.

        Raises:
            RemoteError: one did not arrive as it was written.
        """
        words = scripts.words(scripts.FETCH, **self._place, names=list(sha256))
        found = dict.fromkeys(sha256, b"")
        for told in converse(self._transport, words, silence_seconds=_STALL_SECONDS, deadline=self._deadline):
            if isinstance(told.get("name"), str) and told["name"] in found:
                found[told["name"]] += _piece(told.get("piece"))
                if len(found[told["name"]]) > _MOST_BYTES:
                    raise RemoteError(f"{told['name']} of {self.name} is larger than any result; measure less.")
        for name, content in found.items():
            if hashlib.sha256(content).hexdigest() != sha256[name]:
                raise RemoteError(
                    f"{name} arrived from {self.name} with another sha256; run the same command to fetch it again."
                )
        return found

    def _command(self, command: str, choice: list[str]) -> Json:
        return self._only(self._converse(command, choice, self._short + _STALL_SECONDS))

    def _converse(self, command: str, choice: list[str], silence_seconds: float) -> Iterator[Json]:
        words = [self._program, command, *choice]
        try:
            yield from converse(self._transport, words, silence_seconds=silence_seconds, deadline=self._deadline)
        except RefusedError as error:
            if error.code == _LOCKED:
                raise RemoteError(f"{self.name} is {error.sentence}") from None
            raise

    def _ask(self, words: list[str], extra_seconds: float) -> Json:
        silence = self._short + _STALL_SECONDS / 2 + extra_seconds
        return self._only(converse(self._transport, words, silence_seconds=silence, deadline=self._deadline))

    def _only(self, answers: Iterator[Json]) -> Json:
        found = list(answers)
        if not found:
            raise RemoteError(
                f"{self.name} gave no answer to {self.python}; check that address.python is Python 3.10 or newer "
                "and that its login scripts run nothing else."
            )
        return found[-1]


def _piece(text: object) -> bytes:
    """Bytes of a file; none for what is no such text, after which its hash does not fit."""
    try:
        return base64.b64decode(text) if isinstance(text, str) else b""
    except ValueError:
        return b""


def owner() -> str:
    """Who measures: user@host of this client."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def remaining(deadline: float) -> float:
    """Seconds until a deadline of ``time.monotonic``."""
    return max(deadline - time.monotonic(), 0.0)
