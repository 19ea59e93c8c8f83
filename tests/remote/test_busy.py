"""A device that another run holds: it is waited for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.device.service.lock import DeviceLock
from pipeline.remote import Address, run_bundle
from pipeline.remote import run as run_module
from pipeline.remote.device import Device
from tests.remote.server import NEEDS_SSHD, Client, Running, cut, refusal, wait_for

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from pipeline.device.service.lock import DeviceLock, Holder
lock = DeviceLock(Path(sys.argv[1])).take(Holder.now("ann@laptop", "3fa9c02b" * 8, "run"))
sys.stdin.read()
"""
ANN = "ann@laptop's run of bundle 3fa9c02b since 0 seconds"
Hold = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Starts a process that holds the device's lock until it is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "device")]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT))
        wait_for(lambda: DeviceLock(tmp_path / "device").holder(), "the holder")
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address(folder=str(tmp_path / "device"))


def test_a_device_is_waited_for_even_if_its_holder_is_killed(
    hold: Hold, bundle: Path, address: Address, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder = hold()
    client = Client(bundle, address, tmp_path / "out", wait_seconds=60)
    wait_for(lambda: client.reported("waiting"), "the client to wait")
    holder.send_signal(signal.SIGKILL)
    assert client.result().rows[0].error is None
    assert client.labels[:2] == ["asking this machine", f"waiting for {ANN}, 1 minute at most"]
    [said] = caplog.messages
    assert said == f"this machine is locked by {ANN}; waiting for its end, 1 minute at most"


def test_at_the_limit_of_the_wait_nothing_was_written(
    hold: Hold, bundle: Path, address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold()

    def impatient(*args: Any, **options: Any) -> Any:
        return run_bundle(*args, wait_seconds=0.6, **options)

    monkeypatch.setattr("tests.remote.server.run_bundle", impatient)
    sentence = refusal(bundle, address, tmp_path / "out")
    assert sentence.startswith("waited 0.01 minutes in vain: this machine is locked by ann@laptop's run of bundle")
    assert sentence.endswith("; wait for its end or ask its owner to stop it.")


def test_a_device_that_another_takes_while_the_bundle_is_copied_is_waited_for(
    hold: Hold, bundle: Path, address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = []
    install = Device.install

    def overtaken(self: Device, on_progress: Callable[[int], None]) -> None:
        install(self, on_progress)
        holders.append(hold())

    monkeypatch.setattr(Device, "install", overtaken)
    client = Client(bundle, address, tmp_path / "out", wait_seconds=60)
    wait_for(lambda: client.reported("waiting for ann@laptop"), "the client to wait")
    holders[0].kill()
    assert client.result().rows[0].error is None
    assert len(holders) == 1


def test_an_interrupt_ends_the_wait_here_and_there(hold: Hold, bundle: Path, address: Address, tmp_path: Path) -> None:
    holder = hold()
    before = set(psutil.Process().children())

    def interrupt(done: int, total: int, label: str) -> None:
        if label.startswith("waiting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bundle(bundle, address, tmp_path / "out", timeout_seconds=60, wait_seconds=60, on_progress=interrupt)
    assert not set(psutil.Process().children()) - before
    holder.kill()
    holder.wait()
    run_bundle(bundle, address, tmp_path / "out", timeout_seconds=60)


def test_the_wait_takes_no_time_from_the_run(bundle: Path, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    limits = []

    def facts(self: Device, modules: list[str], wait_seconds: float, on_wait: object) -> dict[str, Any]:
        nonlocal now
        limits.append((wait_seconds, self.deadline))
        now += 500
        return {}

    monkeypatch.setattr(Device, "facts", facts)
    device = Device(address, bundle, "0" * 64, "0" * 8, deadline=1020.0)
    contents: Any = SimpleNamespace(plan=SimpleNamespace(variants=[]))
    ticket: Any = None
    attempt = run_module._Attempt(device, contents, ticket, 20, 600, lambda *_: None)
    attempt._wait(until=1600.0)
    assert limits == [(600, 1600)]
    assert device.deadline == 1520


@NEEDS_SSHD
def test_a_second_client_over_ssh_waits_for_the_first_and_outlives_its_connection(
    server: Running, slow_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    device, listener = server
    first = Client(slow_bundle, device.address, tmp_path / "first")
    first.wait_until_measuring()
    second = Client(bundle, device.address, tmp_path / "second", wait_seconds=60)
    wait_for(lambda: second.reported("waiting for "), "the second client to wait")
    cut(listener.pid)
    assert first.result().rows[0].error is None
    assert second.result().rows[0].error is None
    assert any(label.startswith("reconnecting") for label in second.labels)
