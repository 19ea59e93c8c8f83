"""Runs whose client or processes are killed, with a real OpenSSH server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.device.service.lock import DeviceLock
from pipeline.portable.files import sha256_file
from pipeline.remote import BundleContent, RemoteError, run_bundle
from tests.remote.conftest import write
from tests.remote.server import (
    NEEDS_SSHD,
    Client,
    Running,
    client_process,
    connections,
    on_device,
    processes_of_run,
    running,
    wait_for,
)

pytestmark = NEEDS_SSHD


def test_a_killed_client_leaves_the_run_and_the_same_command_finds_it(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, _ = server
    out = tmp_path / "out"
    address = device.address
    killed = client_process(slow_bundle, device, out)
    killed.kill()
    killed.wait()
    assert [path.name for path in out.iterdir()] == [".run.json"]
    client = Client(slow_bundle, address, out)
    assert client.result().rows[0].error is None
    assert device.worker_count() == undisturbed
    assert not any(label.startswith("copying") for label in client.labels)
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "samples.npz"]


def test_a_killed_clients_run_is_ended_by_the_same_client_with_another_bundle(
    server: Running, content: BundleContent, bundle: Path, tmp_path: Path
) -> None:
    device, _ = server
    out = tmp_path / "out"
    address = device.address
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    killed = client_process(long, device, out)
    killed.kill()
    killed.wait()
    result = run_bundle(bundle, address, out, timeout_seconds=60)
    assert result.bundle_sha256 == sha256_file(bundle)


def test_an_interrupted_client_ends_its_run(server: Running, content: BundleContent, tmp_path: Path) -> None:
    device, _ = server
    out = tmp_path / "out"
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    client = client_process(long, device, out)
    client.send_signal(signal.SIGINT)
    assert client.wait(30) != 0
    assert DeviceLock(device.folder / "device").holder() is None
    assert list(out.iterdir()) == []


def test_a_run_that_ended_without_its_client_is_fetched_and_not_repeated(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, _ = server
    out = tmp_path / "out"
    address = device.address
    killed = client_process(slow_bundle, device, out)
    killed.kill()
    killed.wait()
    wait_for(lambda: any(name.endswith("outcome.json") for name in on_device(device)), "the run's end", 40)
    run_bundle(slow_bundle, address, out, timeout_seconds=60)
    assert device.worker_count() == undisturbed
    assert not any(name.endswith("outcome.json") for name in on_device(device))


def test_a_run_killed_on_the_device_is_one_sentence(server: Running, slow_bundle: Path, tmp_path: Path) -> None:
    device, _ = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    os.kill(processes_of_run(device)[1], signal.SIGKILL)
    with pytest.raises(
        RemoteError, match=r"^the run on device failed: it was ended by signal 9 \(Killed\); if .*memory"
    ):
        client.result()
    assert list((tmp_path / "out").iterdir()) == []
    assert DeviceLock(device.folder / "device").holder() is None


def test_a_run_killed_with_its_watcher_is_noticed_and_its_worker_ended_by_the_next(
    server: Running, content: BundleContent, bundle: Path, tmp_path: Path
) -> None:
    device, _ = server
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    client = Client(long, device.address, tmp_path / "out")
    client.wait_until_measuring()
    wait_for(lambda: device.worker_count() >= 2, "the worker that measures for long")
    watcher, measuring = processes_of_run(device)
    workers = connections(measuring)
    os.kill(watcher, signal.SIGKILL)
    os.kill(measuring, signal.SIGKILL)
    with pytest.raises(RemoteError, match="all its processes were ended from outside"):
        client.result()
    assert workers
    assert all(running(pid) for pid in workers)
    assert list((tmp_path / "out").iterdir()) == []
    run_bundle(bundle, device.address, tmp_path / "out", timeout_seconds=60)
    assert not any(running(pid) for pid in workers)


def test_a_run_over_the_time_limit_is_ended_on_the_device(
    server: Running, content: BundleContent, tmp_path: Path
) -> None:
    device, _ = server
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    with pytest.raises(RemoteError, match=r"^the run on device was ended at the limit of 0\.05 minutes"):
        run_bundle(long, device.address, tmp_path / "out", timeout_seconds=3)
    assert list((tmp_path / "out").iterdir()) == []
    assert DeviceLock(device.folder / "device").holder() is None
