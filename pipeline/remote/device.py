"""Requests to a device. Each method is one request over its own connection."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.device.service.bundle import BUNDLE
from pipeline.device.service.detached import ALIVE_SECONDS, POLL_SECONDS
from pipeline.device.service.lock import owner
from pipeline.remote import scripts
from pipeline.remote.address import Address
from pipeline.remote.errors import OccupiedError, RemoteError
from pipeline.remote.ssh import SshTransport
from pipeline.remote.transport import LocalTransport, RefusedError, Transport, converse

Message = dict[str, Any]  # one line of the device

# Extra time after the run's time limit, in which the device ends the run and reports its outcome.
GRACE_SECONDS = 60.0
_LOCKED = 3
_HASH_BYTES_PER_SECOND = 20e6  # lower limit, for a slow device
_STALL_SECONDS = 60.0
_MISSED_HEARTBEATS = 6  # the connection counts as dead after this many
_MAX_BYTES = 1 << 30  # limit for a fetched file, because it is kept in memory


class Device:
    """One run of one bundle on one device.

    Args:
        bundle: path of the bundle on this machine.
        sha256: SHA-256 of the bundle.
        run: hexadecimal id of the run.
        deadline: value of ``time.monotonic`` at which the run ends; all requests end ``GRACE_SECONDS`` later.
    """

    def __init__(self, address: Address, bundle: Path, sha256: str, run: str, deadline: float) -> None:
        self._address, self._bundle, self.deadline = address, bundle, deadline
        self.sha256 = sha256
        self._transport: Transport = LocalTransport(address) if address.host is None else SshTransport(address)
        self.name, self.python = self._transport.name, self._transport.python
        self._answer_seconds = address.connect_timeout_seconds + _STALL_SECONDS
        self._hash_seconds = bundle.stat().st_size / _HASH_BYTES_PER_SECOND
        self._location = {"folder": address.folder, "sha256": sha256, "run": run}

    def facts(
        self, modules: list[str], wait_seconds: float = 0, on_wait: Callable[[Message], None] = lambda state: None
    ) -> Message:
        """Run ``scripts.PREFLIGHT``; returns properties and state of the device.

        Args:
            wait_seconds: how long to wait at most while another run holds the device.
            on_wait: called with the state of the lock at once and every few seconds of waiting.
        """
        times = {"wait_seconds": wait_seconds, "alive_seconds": ALIVE_SECONDS, "poll_seconds": POLL_SECONDS}
        words = scripts.words(scripts.PREFLIGHT, **self._location, **times, modules=modules)

        def answers() -> Iterator[Message]:
            for message in self._converse(words, self._answer_seconds + self._hash_seconds):
                if "waiting" in message:
                    on_wait(message["waiting"])
                else:
                    yield message

        return self._answer(answers())

    def install(self, on_progress: Callable[[int], None]) -> None:
        """Copy the bundle; RemoteError if the copy is damaged or the device has no space for it."""
        words = scripts.words(scripts.INSTALL, **self._location)
        limit = _STALL_SECONDS + self._hash_seconds
        answer = self._answer(self._converse(words, limit, source=self._bundle, on_sent=on_progress))
        if "installed" in answer:
            return
        if "wrong" in answer and answer["received"] != self._bundle.stat().st_size:
            raise RemoteError(
                f"only a part of the bundle arrived on {self.name}, so it was removed there; run the same command "
                "again, and make its login scripts read no input if that does not help."
            )
        if "wrong" in answer:
            raise RemoteError(
                f"the bundle arrived on {self.name} with sha256 {answer['wrong'][:12]} and not {self.sha256[:12]}, "
                "so it was removed there; run the same command again, and check the disks and memory of both machines "
                "if that does not help."
            )
        remedy = "free space there or set address.folder to another disk" if answer["full"] else "set address.folder"
        reason = "no space was left" if answer["full"] else answer["error"]
        raise RemoteError(f"the bundle could not be copied to {self.name} ({reason}); {remedy}.")

    def start(self) -> None:
        """Start the run, with its time limit at the deadline. A second start has no effect."""
        limit = f"{max(self.deadline - time.monotonic(), 1):.0f}"
        self._answer(self._command("start", self._answer_seconds, "--owner", owner(), "--limit", limit))

    def follow(self) -> Iterator[Message]:
        """Yield the messages of ``detached.follow``; the last one has the key "end"."""
        yield from self._command("follow", _MISSED_HEARTBEATS * ALIVE_SECONDS + self._address.connect_timeout_seconds)

    def stop(self) -> None:
        """End the run."""
        self._answer(self._command("stop", self._answer_seconds))

    def clean(self) -> None:
        """Remove the run and old bundles from the device."""
        self._answer(self._command("clean", self._answer_seconds))

    def other_run(self, sha256: str, run: str) -> Device:
        """Return another run on the same device."""
        return Device(self._address, self._bundle, sha256, run, self.deadline)

    def fetch(self, sha256: Mapping[str, str]) -> dict[str, bytes]:
        """Fetch files of the run and return their contents by name; RemoteError if a SHA-256 differs."""
        words = scripts.words(scripts.FETCH, **self._location, names=list(sha256))
        contents = dict.fromkeys(sha256, b"")
        for line in self._converse(words, _STALL_SECONDS):
            if "end" in line:
                break
            name = line.get("name")
            if isinstance(name, str) and name in contents:
                contents[name] += _decode(line.get("piece"))
                if len(contents[name]) > _MAX_BYTES:
                    raise RemoteError(f"{name} of {self.name} is larger than any result; measure less.")
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != sha256[name]:
                raise RemoteError(
                    f"{name} arrived from {self.name} with another sha256; run the same command to fetch it again."
                )
        return contents

    def _command(self, command: str, silence_seconds: float, *options: str) -> Iterator[Message]:
        """Run a command of the bundle on the device and yield its messages."""
        folder, sha256, run = self._location.values()
        words = [f"{folder}/{sha256}/{BUNDLE}", command, "--folder", folder, "--bundle", sha256, "--run", run, *options]
        try:
            yield from self._converse(words, silence_seconds)
        except RefusedError as error:
            if error.code == _LOCKED:
                raise OccupiedError(f"{self.name} is {error.sentence}") from None
            raise

    def _converse(self, words: list[str], silence_seconds: float, **options: Any) -> Iterator[Message]:
        deadline = self.deadline + GRACE_SECONDS
        return converse(self._transport, words, silence_seconds=silence_seconds, deadline=deadline, **options)

    def _answer(self, messages: Iterator[Message]) -> Message:
        for message in messages:
            return message
        raise RemoteError(
            f"{self.name} gave no answer to {self.python}; check that address.python is Python 3.10 or newer "
            "and that its login scripts run nothing else."
        )


def _decode(text: object) -> bytes:
    """Decode base64 text; invalid text gives no bytes, and the hash check then fails."""
    try:
        return base64.b64decode(text) if isinstance(text, str) else b""
    except ValueError:
        return b""
