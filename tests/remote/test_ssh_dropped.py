"""Runs whose connection is cut, with a real OpenSSH server."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.remote import RemoteError, run_bundle
from pipeline.remote import device as device_module
from pipeline.remote import run as run_module
from tests.remote.server import (
    NEEDS_SSHD,
    Client,
    Running,
    answers,
    connections,
    cut,
    serving,
    wait_for,
)

pytestmark = NEEDS_SSHD


def test_a_cut_connection_is_made_again_and_nothing_is_repeated(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path
) -> None:
    device, listener = server
    client = Client(slow_bundle, device.address, tmp_path / "out")
    client.wait_until_measuring()
    assert cut(listener.pid) >= 1
    wait_for(lambda: client.reported("reconnecting"), "the client to notice")
    assert [row.error for row in client.result().rows] == [None]
    assert device.worker_count() == undisturbed


def test_a_connection_that_falls_silent_is_given_up_and_made_again(
    server: Running, slow_bundle: Path, undisturbed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, listener = server
    monkeypatch.setattr(device_module, "_MISSED_HEARTBEATS", -0.7)
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
    assert Client(slow_bundle, device.address, tmp_path / "out").result().rows[0].error is None
