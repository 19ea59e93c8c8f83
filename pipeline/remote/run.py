"""A whole measurement on a device: check, copy, start, follow, fetch, clean."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pipeline.device.errors import DeviceError, brief
from pipeline.device.service.bundle import Bundle, open_bundle
from pipeline.device.service.detached import LATE
from pipeline.device.service.files import printable
from pipeline.device.service.session import FINISHED, RESULT, SAMPLES
from pipeline.remote import preflight
from pipeline.remote.address import Address
from pipeline.remote.device import Device, remaining
from pipeline.remote.errors import LinkError, RemoteError
from pipeline.remote.ticket import Ticket
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import sha256_file

Json = dict[str, Any]
Progress = Callable[[int, int, str], None]
T = TypeVar("T")

# After the run's own time limit on the device, for it to end and to say so.
_GRACE_SECONDS = 60.0
_OFFLINE_SECONDS = 600.0
_PAUSES_SECONDS = (0.5, 1, 2, 5, 10, 20)


def run_bundle(
    bundle: Path,
    address: Address,
    destination: Path,
    *,
    timeout_seconds: float,
    on_progress: Progress | None = None,
) -> Json:
    """Measure a bundle on a device and fetch the result.

    The run goes on without its client. A client that was killed leaves a note in ``destination``; the same call finds
    the run by it and does not measure again, and a call with another bundle ends it. KeyboardInterrupt ends the run.

    Args:
        destination: folder of result.json and samples.npz, which are written last and whole.
        timeout_seconds: for everything; the run on the device is ended then.
        on_progress: called with steps done, steps in all (0: not known yet) and what comes next.

    Returns:
        what result.json holds.

    Raises:
        RemoteError: one sentence; ``destination`` holds nothing new.
    """
    try:
        contents = open_bundle(bundle)
    except DeviceError as error:
        raise RemoteError(str(error)) from error
    sha256 = sha256_file(bundle)
    destination.mkdir(parents=True, exist_ok=True)
    ticket = Ticket.take(destination, sha256, address)
    deadline = time.monotonic() + timeout_seconds
    device = Device(address, bundle, sha256, ticket.run, deadline + _GRACE_SECONDS)
    attempt = _Attempt(device, contents, ticket, deadline, timeout_seconds, on_progress or (lambda *_: None))
    return attempt.run(destination)


class _LostError(RemoteError):
    """The connection failed for too long; what it was used for may have happened or not."""


class _Attempt:
    def __init__(
        self,
        device: Device,
        contents: Bundle,
        ticket: Ticket,
        deadline: float,
        timeout_seconds: float,
        report: Progress,
    ) -> None:
        self._device = device
        self._contents = contents
        self._ticket = ticket
        self._deadline = deadline
        self._timeout_seconds = timeout_seconds
        self._report = report
        self._heard = time.monotonic()

    def run(self, destination: Path) -> Json:
        try:
            self._prepare()
            with self._ended_if_interrupted():
                self._patiently(lambda: self._device.start(remaining(self._deadline)))
        except _LostError:
            raise
        except RemoteError:
            # Nothing was started, unless by an earlier client.
            if not self._ticket.kept:
                self._ticket.drop()
            raise
        with self._ended_if_interrupted():
            outcome = self._patiently(self._follow)
        if outcome.get("status") != FINISHED:
            # Its log stays on the device for some days.
            self._ticket.drop()
            raise RemoteError(self._failed(brief(outcome.get("message", "it did not say why"), 500)))
        self._report(0, 0, "fetching the result")
        hashes = outcome.get("sha256")
        if not isinstance(hashes, dict) or not {SAMPLES, RESULT} <= hashes.keys():
            raise RemoteError(self._foreign("it names no hash of its files"))
        files = self._patiently(lambda: self._device.fetch({name: hashes[name] for name in (SAMPLES, RESULT)}))
        result = self._read(files[RESULT])
        for name, content in files.items():
            with atomic_file(destination / name) as temporary:
                temporary.write_bytes(content)
        self._ticket.drop()
        # What stays there is removed after some days.
        with suppress(RemoteError):
            self._device.clean()
        return result

    def _read(self, content: bytes) -> Json:
        """What result.json holds, as far as whoever asked for it takes it for granted.

        Raises:
            RemoteError: it is something else.
        """
        try:
            result = printable(json.loads(content))
            names = [variant["name"] for variant in result["variants"]]
            right = (
                isinstance(result["device"], str)
                and isinstance(result["provenance"], dict)
                and result["bundle_sha256"] == self._device.sha256
                and sorted(names) == sorted(variant.name for variant in self._contents.plan.variants)
                and {"started_at", "seconds", "tuning", "notes"} <= result.keys()
            )
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise RemoteError(self._foreign(brief(repr(error)))) from None
        if not right:
            raise RemoteError(self._foreign("it is not of this bundle"))
        found: Json = result
        return found

    def _foreign(self, reason: str) -> str:
        return (
            f"the result of {self._device.name} cannot be read ({reason}); look at the program in its folder there, "
            "which may not be ours"
        )

    @contextmanager
    def _ended_if_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            # Whoever interrupts wants the run to end; whoever is killed, or loses the connection, does not.
            with suppress(RemoteError):
                self._device.stop()
                self._ticket.drop()
            raise

    def _prepare(self) -> None:
        """See that the device can measure and has the bundle.

        Raises:
            RemoteError: it cannot.
        """
        device, contents = self._device, self._contents
        self._report(0, 0, f"asking {device.name}")
        facts = device.facts(preflight.modules(contents))
        preflight.check_python(device.name, device.python, facts)
        if facts["run_exists"]:
            return
        if self._ticket.replaced is not None and preflight.holds(facts, *self._ticket.replaced):
            device.other(*self._ticket.replaced).stop()
            facts = device.facts(preflight.modules(contents))
        preflight.check_lock(device.name, facts)
        preflight.check_runtimes(device.name, device.python, contents, facts)
        missing = facts["bundle"] != device.sha256
        size = contents.path.stat().st_size
        preflight.check_space(device.name, size if missing else 0, contents, facts)
        if missing:
            self._patiently(lambda: device.install(lambda sent: self._sent(sent, size)))

    def _sent(self, sent: int, size: int) -> None:
        self._heard = time.monotonic()
        self._report(0, 0, f"copying the bundle, {sent / 1e6:.0f} of {size / 1e6:.0f} MB")

    def _follow(self) -> Json:
        for told in self._device.follow():
            self._heard = time.monotonic()
            if "progress" in told:
                step = told["progress"]
                if not isinstance(step, dict) or not {"done", "total", "label"} <= step.keys():
                    continue
                self._report(step["done"], step["total"], step["label"])
            if isinstance(told.get("end"), dict):
                return dict(told["end"])
        raise LinkError(f"{self._device.name} stopped telling how its run is; run the same command again.")

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something, again and again while the connection fails.

        Raises:
            RemoteError: any other error; or the connection failed for too long.
        """
        pauses = iter(_PAUSES_SECONDS)
        failed_since: float | None = None
        while True:
            begun = time.monotonic()
            try:
                return action()
            except LinkError as error:
                now = time.monotonic()
                if failed_since is None or self._heard > begun:
                    failed_since, pauses = now, iter(_PAUSES_SECONDS)
                if now > self._deadline + _GRACE_SECONDS or now - failed_since > _OFFLINE_SECONDS:
                    raise _LostError(self._lost(error)) from error
                self._report(0, 0, f"reconnecting ({error})")
                time.sleep(next(pauses, _PAUSES_SECONDS[-1]))

    def _failed(self, message: str) -> str:
        if message == LATE:
            minutes = f"{self._timeout_seconds / 60:.3g} minutes"
            return (
                f"the run on {self._device.name} was ended at the limit of {minutes}; measure less or raise the limit."
            )
        return f"the run on {self._device.name} failed: {_sentence(message)}."

    def _lost(self, error: LinkError) -> str:
        return (
            f"the connection to {self._device.name} was lost and did not come back ({_sentence(str(error))}); a run "
            f"that was started goes on for {self._timeout_seconds / 60:.3g} minutes at most, and the same command "
            "fetches its result."
        )


def _sentence(text: str) -> str:
    return text.rstrip(".")
