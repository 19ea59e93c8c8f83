"""A complete measurement on a device: check, copy, start, follow, fetch, clean."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import Bundle, open_bundle
from pipeline.device.service.detached import TIMED_OUT
from pipeline.device.service.run_folder import FINISHED, RESULT, SAMPLES
from pipeline.portable.documents import Result
from pipeline.portable.files import atomic_file, read_object, sha256_file, write_object
from pipeline.portable.text import brief, printable
from pipeline.remote import preflight
from pipeline.remote.address import Address
from pipeline.remote.device import GRACE_SECONDS, Device
from pipeline.remote.errors import LinkError, OccupiedError, RemoteError
from pipeline.store.documents import parse_as

Progress = Callable[[int, int, str], None]
T = TypeVar("T")

_OFFLINE_SECONDS = 600.0
_PAUSES_SECONDS = (0.5, 1, 2, 5, 10, 20)


def run_bundle(
    bundle: Path,
    address: Address,
    destination: Path,
    *,
    timeout_seconds: float,
    wait_seconds: float = 0,
    on_progress: Progress | None = None,
) -> Result:
    """Measure a bundle on a device and fetch the result.

    The run continues without its client. A killed client leaves a ticket in ``destination``: the same call again finds
    the run and does not measure twice, and a call with another bundle ends the run. KeyboardInterrupt ends it too.

    Args:
        destination: folder of result.json and samples.npz, written atomically at the end.
        timeout_seconds: time limit of the whole call without the wait; the device ends the run at this limit.
        wait_seconds: how long to wait at most for the end of another run that holds the device.
        on_progress: called with finished steps, all steps (0: unknown yet) and the label of the next step.

    Raises:
        RemoteError: one sentence; ``destination`` has no new result.
    """
    try:
        contents = open_bundle(bundle)
    except DeviceError as error:
        raise RemoteError(str(error)) from error
    sha256 = sha256_file(bundle)
    ticket = Ticket.take(destination, sha256, address)
    device = Device(address, bundle, sha256, ticket.run, time.monotonic() + timeout_seconds)
    attempt = _Attempt(device, contents, ticket, timeout_seconds, wait_seconds, on_progress or (lambda *_: None))
    return attempt.run(destination)


@dataclass(frozen=True)
class Ticket:
    """File that identifies a run on a device, kept in the result folder until the result has arrived.

    Attributes:
        run: hexadecimal id of the run.
        kept: true if an earlier client wrote the ticket, so the run may be on the device.
        replaced: bundle and id of an earlier run of another bundle, whose result nobody will fetch.
    """

    path: Path
    run: str
    kept: bool
    replaced: tuple[str, str] | None = None

    @classmethod
    def take(cls, destination: Path, bundle: str, address: Address) -> Ticket:
        """Return the ticket in ``destination`` if it is for this bundle on this device, else write a new one."""
        path = destination / ".run.json"
        device = {"host": address.host, "port": address.port, "folder": address.folder}
        content = read_object(path) or {}
        earlier, run = str(content.pop("bundle", "")), str(content.pop("run", ""))
        same_device = bool(run) and content == device
        if same_device and earlier == bundle:
            return cls(path, run, kept=True)
        new = secrets.token_hex(16)
        write_object(path, {"run": new, "bundle": bundle, **device})
        return cls(path, new, kept=False, replaced=(earlier, run) if same_device else None)

    def drop(self) -> None:
        """Delete the ticket, because the result has arrived or never will."""
        self.path.unlink(missing_ok=True)


class _LostError(RemoteError):
    """The connection failed for too long, and it is unknown if the request was carried out."""


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.3g} minute{'' if minutes == 1 else 's'}"


@dataclass
class _Attempt:
    device: Device
    contents: Bundle
    ticket: Ticket
    timeout_seconds: float
    wait_seconds: float
    report: Progress
    last_heard: float = field(default_factory=time.monotonic)
    wait_announced: bool = False

    def run(self, destination: Path) -> Result:
        try:
            self._begin()
        except _LostError:
            raise
        except RemoteError:
            # Only an earlier client can have started a run.
            if not self.ticket.kept:
                self.ticket.drop()
            raise
        with self._stop_on_interrupt():
            outcome = self._retrying(self._follow)
        if outcome.get("status") != FINISHED:
            self.ticket.drop()  # the run's log stays on the device for some days
            message = brief(outcome.get("message", "the device gave no reason"), 500).rstrip(".")
            if message == TIMED_OUT:
                ended = f"was ended at the limit of {_minutes(self.timeout_seconds)}; measure less or raise the limit"
                raise RemoteError(f"the run on {self.device.name} {ended}.")
            raise RemoteError(f"the run on {self.device.name} failed: {message}.")
        self.report(0, 0, "fetching the result")
        hashes = outcome.get("sha256")
        if not isinstance(hashes, dict) or not {SAMPLES, RESULT} <= hashes.keys():
            raise self._invalid("it has no hashes of its files")
        files = self._retrying(lambda: self.device.fetch({name: hashes[name] for name in (SAMPLES, RESULT)}))
        result = self._read(files[RESULT])
        for name, content in files.items():
            with atomic_file(destination / name) as temporary:
                temporary.write_bytes(content)
        self.ticket.drop()
        with suppress(RemoteError):  # the device removes leftovers after some days
            self.device.clean()
        return result

    def _read(self, content: bytes) -> Result:
        try:
            result: Result = parse_as(Result, json.dumps(printable(json.loads(content))).encode())
        except (RecursionError, ValueError) as error:
            raise self._invalid(brief(error)) from None
        names = sorted(row.name for row in result.rows)
        wanted = sorted(variant.name for variant in self.contents.plan.variants)
        if result.bundle_sha256 != self.device.sha256 or names != wanted:
            raise self._invalid("it belongs to another bundle")
        return result

    def _invalid(self, reason: str) -> RemoteError:
        return RemoteError(
            f"the result of {self.device.name} cannot be read ({reason}); check the program in its folder there, "
            "which may have been replaced."
        )

    @contextmanager
    def _stop_on_interrupt(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            # Ctrl-C ends the run on the device. A killed client or a lost connection leaves it running.
            with suppress(RemoteError):
                self.device.stop()
                self.ticket.drop()
            raise

    def _begin(self) -> None:
        """Prepare and start the run, again after each wait for another run that holds the device."""
        wait_until = time.monotonic() + self.wait_seconds
        self.report(0, 0, f"asking {self.device.name}")
        facts: preflight.Facts = self.device.facts(preflight.modules(self.contents))
        while True:
            try:
                self._prepare(facts)
                with self._stop_on_interrupt():
                    self._retrying(self.device.start)
                return
            except OccupiedError as error:
                if not self.wait_seconds:
                    raise
                if time.monotonic() >= wait_until:
                    raise OccupiedError(f"waited {_minutes(self.wait_seconds)} in vain: {error}") from None
                facts = self._wait(wait_until)

    def _wait(self, until: float) -> preflight.Facts:
        """Wait until no other run holds the device or until ``until``, and return its facts then.

        The wait does not count against the time limit of the run.
        """
        device, modules = self.device, preflight.modules(self.contents)
        remaining, device.deadline = device.deadline - time.monotonic(), until
        facts = self._retrying(lambda: device.facts(modules, max(until - time.monotonic(), 0), self._report_wait))
        device.deadline = time.monotonic() + remaining
        return facts

    def _report_wait(self, state: preflight.Facts) -> None:
        self.last_heard = time.monotonic()
        who, most = preflight.occupant(state), _minutes(self.wait_seconds)
        self.report(0, 0, f"waiting for {who}, {most} at most")
        if not self.wait_announced:
            logging.warning("%s is locked by %s; waiting for its end, %s at most", self.device.name, who, most)
            self.wait_announced = True

    def _prepare(self, facts: preflight.Facts) -> None:
        """Check that the device can measure, and copy the bundle if the device does not have it."""
        device, contents, replaced = self.device, self.contents, self.ticket.replaced
        preflight.check_python(device, facts)
        if facts["run_exists"]:
            return
        holder = preflight.holder_of(facts)
        if replaced is not None and holder is not None and (holder.bundle, holder.run) == replaced:
            device.other_run(*replaced).stop()
            facts = device.facts(preflight.modules(contents))
        size = contents.path.stat().st_size
        missing = size if facts["bundle"] != device.sha256 else 0
        preflight.check_ready(device, contents, facts, missing)
        if missing:
            self._retrying(lambda: device.install(lambda sent: self._report_copy(sent, size)))

    def _report_copy(self, sent: int, size: int) -> None:
        self.last_heard = time.monotonic()
        self.report(0, 0, f"copying the bundle, {sent / 1e6:.0f} of {size / 1e6:.0f} MB")

    def _follow(self) -> dict[str, Any]:
        for line in self.device.follow():
            self.last_heard = time.monotonic()
            step, end = line.get("progress"), line.get("end")
            if isinstance(step, dict) and {"done", "total", "label"} <= step.keys():
                self.report(step["done"], step["total"], step["label"])
            if isinstance(end, dict):
                return end
        raise LinkError(f"{self.device.name} stopped reporting the progress of its run; run the same command again.")

    def _retrying(self, action: Callable[[], T]) -> T:
        """Call ``action`` again while the connection fails, up to a time limit."""
        pauses = iter(_PAUSES_SECONDS)
        failed_since: float | None = None
        while True:
            begun = time.monotonic()
            try:
                return action()
            except LinkError as error:
                now = time.monotonic()
                if failed_since is None or self.last_heard > begun:
                    failed_since, pauses = now, iter(_PAUSES_SECONDS)
                if now > self.device.deadline + GRACE_SECONDS or now - failed_since > _OFFLINE_SECONDS:
                    raise _LostError(
                        f"the connection to {self.device.name} was lost and did not come back "
                        f"({str(error).rstrip('.')}); a run that was started goes on for "
                        f"{_minutes(self.timeout_seconds)} at most, and the same command fetches its result."
                    ) from error
                self.report(0, 0, f"reconnecting ({error})")
                time.sleep(next(pauses, _PAUSES_SECONDS[-1]))
