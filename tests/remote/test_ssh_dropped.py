"""Runs whose connection, client or processes are cut, with a real OpenSSH server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts import sha256_file
from pipeline.device.lock import DeviceLock
from pipeline.remote import BundleContent, RemoteError, run_bundle
from pipeline.remote import device as device_module
from pipeline.remote import run as run_module
from tests.remote.conftest import write
from tests.remote.server import (
    NEEDS_SSHD,
    Client,
    Running,
    answers,
    connections,
    cut,
    on_device,
    processes_of_run,
    running,
    serving,
    wait_for,
)

pytestmark = NEEDS_SSHD
CLIENT = """
import sys
from pathlib import Path
from pipeline.remote import device as device_module
from pipeline.remote import run as run_module
from pipeline.remote import Address, run_bundle
bundle, config, python, folder, out = sys.argv[1:]
address = Address("device", ssh_config=config, python=python, folder=folder)
run_bundle(Path(bundle), address, Path(out), timeout_seconds=60)
"""


def test_a_cut_connection_is_made_again_and_nothing_is_repeated(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, listener = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    assert cut(listener.pid) >= 1
    wait_for(lambda: client.reported("reconnecting"), "the client to notice")
    assert [row["error"] for row in client.result()["variants"]] == [None]
    assert device.worker_count() == undisturbed


def test_a_connection_that_falls_silent_is_given_up_and_made_again(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, listener = server
    monkeypatch.setattr(device_module, "_SILENT_BEATS", -0.7)
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    silent = connections(listener.pid)
    for pid in silent:
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: client.reported("reconnecting (device did not answer within 1.5 s"), "the client to give up")
    client.result()
    assert device.worker_count() == undisturbed
    for pid in silent:
        os.kill(pid, signal.SIGKILL)


def test_a_server_that_was_killed_and_comes_back_is_found_again(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, listener = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    cut(listener.pid, listener=True)
    listener.wait()
    assert not answers(device.port)
    wait_for(lambda: client.reported("reconnecting (device cannot be reached"), "the client to find nobody")
    with serving(device):
        client.result()
    assert device.worker_count() == undisturbed


def test_a_server_that_stays_away_is_given_up_and_the_run_goes_on(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, listener = server
    monkeypatch.setattr(run_module, "_OFFLINE_SECONDS", 1.0)
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    cut(listener.pid, listener=True)
    listener.wait()
    with pytest.raises(
        RemoteError, match=r"^the connection to device was lost .* the same command fetches its result\.$"
    ):
        client.result()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".run.json"]
    with serving(device):
        run_bundle(slow_bundle, device.address, tmp_path / "out", timeout_seconds=60)
    assert device.worker_count() == undisturbed


def test_a_killed_client_leaves_the_run_and_the_same_command_finds_it(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, _ = server
    out = tmp_path / "out"
    address = device.address
    words = [slow_bundle, address.ssh_config, address.python, address.folder, out]
    killed = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, words)], cwd=Path(__file__).parents[2])
    wait_for(device.worker_count, "the first worker", 30)
    killed.kill()
    killed.wait()
    assert [path.name for path in out.iterdir()] == [".run.json"]
    client = Client(slow_bundle, address, out)
    assert client.result()["variants"][0]["error"] is None
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
    words = [long, address.ssh_config, address.python, address.folder, out]
    killed = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, words)], cwd=Path(__file__).parents[2])
    wait_for(device.worker_count, "the first worker", 30)
    killed.kill()
    killed.wait()
    result = run_bundle(bundle, address, out, timeout_seconds=60)
    assert result["bundle_sha256"] == sha256_file(bundle)


def test_an_interrupted_client_ends_its_run(server: Running, content: BundleContent, tmp_path: Path) -> None:
    device, _ = server
    out = tmp_path / "out"
    address = device.address
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    words = [long, address.ssh_config, address.python, address.folder, out]
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + CLIENT
    client = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    wait_for(device.worker_count, "the first worker", 30)
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
    words = [slow_bundle, address.ssh_config, address.python, address.folder, out]
    killed = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, words)], cwd=Path(__file__).parents[2])
    wait_for(device.worker_count, "the first worker", 30)
    killed.kill()
    killed.wait()
    wait_for(lambda: any(name.endswith("outcome.json") for name in on_device(device)), "the run's end", 40)
    run_bundle(slow_bundle, address, out, timeout_seconds=60)
    assert device.worker_count() == undisturbed
    assert not any(name.endswith("outcome.json") for name in on_device(device))


def test_a_host_key_that_changes_within_a_run_ends_the_client_and_not_the_run(
    server: Running, slow_bundle: Path, tmp_path: Path
) -> None:
    device, listener = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    device.know("other_host_key")
    cut(listener.pid)
    with pytest.raises(RemoteError, match="shows another host key"):
        client.result()
    device.know()
    assert Client(slow_bundle, device.address, tmp_path / "out").result()["variants"][0]["error"] is None


def test_a_run_killed_on_the_device_is_one_sentence(
    server: Running, slow_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    device, _ = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    os.kill(processes_of_run(device)[1], signal.SIGKILL)
    with pytest.raises(
        RemoteError, match=r"^the run on device failed: it was ended by signal 9 \(Killed\); if .*memory"
    ):
        client.result()
    assert list((tmp_path / "out").iterdir()) == []
    run_bundle(bundle, device.address, tmp_path / "out", timeout_seconds=60)


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
    server: Running, content: BundleContent, bundle: Path, tmp_path: Path
) -> None:
    device, _ = server
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    with pytest.raises(RemoteError, match=r"^the run on device was ended at the limit of 0\.05 minutes"):
        run_bundle(long, device.address, tmp_path / "out", timeout_seconds=3)
    assert list((tmp_path / "out").iterdir()) == []
    run_bundle(bundle, device.address, tmp_path / "out", timeout_seconds=60)
