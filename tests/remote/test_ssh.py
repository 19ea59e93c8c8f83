"""With a real OpenSSH server on another port, a key, and a host alias."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.portable.documents import Result
from pipeline.portable.files import sha256_file
from pipeline.remote import BundleContent, LinkError, run_bundle
from pipeline.remote.device import Device
from pipeline.store.documents import parse_as
from tests.remote.conftest import write
from tests.remote.server import (
    NEEDS_SSHD,
    Client,
    Running,
    Server,
    on_device,
    refusal,
    serving,
    wait_for,
)

pytestmark = NEEDS_SSHD
AGENT, ADD = (shutil.which(name) or name for name in ("ssh-agent", "ssh-add"))


def test_a_whole_run(server: Running, content: BundleContent, tmp_path: Path) -> None:
    device, _ = server
    variants = (content.plan.variants[0], dataclasses.replace(content.plan.variants[0], name="ort-3", batch=3))
    bundle = write(tmp_path / "whole.pyz", content, variants=variants, rounds=2)
    out = tmp_path / "out"
    client = Client(bundle, device.address, out)
    result = client.result()
    assert parse_as(Result, (out / "result.json").read_bytes()) == result
    assert json.loads((out / "result.json").read_text())["format"] == 1
    assert result.bundle_sha256 == sha256_file(bundle)
    assert result.card == content.card
    assert [row.error for row in result.rows] == [None, None]
    with np.load(out / "samples.npz") as samples:
        rounds = {name: len(samples[name]) for name in samples if "/round" in name}
    assert rounds == {f"{name}/round{number}": 20 for name in ("ort", "ort-3") for number in (0, 1)}
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "samples.npz"]
    text = (out / "result.json").read_text()
    for private in (f"{Path.home()}/", str(device.folder), os.uname().nodename):
        assert private not in text
    assert any(label.startswith("round ") for label in client.labels)
    assert on_device(device) == [sha256_file(bundle), f"{sha256_file(bundle)}/bundle.pyz"]


def test_a_second_client_is_refused_by_the_lock(
    server: Running, slow_bundle: Path, bundle: Path, tmp_path: Path
) -> None:
    device, _ = server
    first = Client(slow_bundle, device.address, tmp_path / "first")
    first.wait_until_measuring()
    sentence = refusal(bundle, device.address, tmp_path / "second")
    owner = r"\S+@\S+'s run of bundle " + sha256_file(slow_bundle)[:8]
    assert re.fullmatch(rf"device is locked by {owner} since \d+ seconds?; wait for its end or ask .*\.", sentence)
    assert first.result().rows[0].error is None


def test_a_changed_host_key_is_refused(server: Running, bundle: Path, tmp_path: Path) -> None:
    device, _ = server
    device.know("other_host_key")
    assert "shows another host key than the known one" in refusal(bundle, device.address, tmp_path / "out")
    assert on_device(device) == []


def test_an_unknown_host_key_is_refused(server: Running, bundle: Path, tmp_path: Path) -> None:
    device, _ = server
    device.known_hosts.write_text("")
    assert "the host key of device is unknown; run `ssh device` once" in refusal(
        bundle, device.address, tmp_path / "out"
    )
    assert device.known_hosts.read_text() == ""


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("PubkeyAuthentication no", "PasswordAuthentication yes"), "takes no keys, only password; allow Pubkey"),
        (("AuthorizedKeysFile none",), "refused the login without a password; install your key with `ssh-copy-id"),
    ],
)
def test_a_server_without_key_login_is_refused(
    server_base: Server, bundle: Path, lines: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    device = server_base.variant(*lines)
    with serving(device):
        assert words in refusal(bundle, device.address, tmp_path / "out")


def test_jump_hosts_and_keys_of_the_agent_work(
    server: Running, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, _ = server
    config = tmp_path / "config"
    config.write_text(
        f"Host behind\n  HostName 127.0.0.1\n  Port {device.port}\n  ProxyJump device\n  UserKnownHostsFile "
        f"{device.known_hosts}\n"
        + device.config.read_text()
        .replace("  IdentitiesOnly yes\n", "")
        .replace(f"  IdentityFile {device.folder}/user_key\n", "")
    )
    address = dataclasses.replace(device.address, host="behind", ssh_config=str(config))
    assert "refused the login without a password" in refusal(
        bundle, dataclasses.replace(address, host="device"), tmp_path / "out"
    )
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    agent = subprocess.Popen([AGENT, "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        wait_for((tmp_path / "agent").exists, "the agent")
        subprocess.run([ADD, "-q", str(device.folder / "user_key")], check=True)
        reached = Device(address, bundle, "0" * 64, "0" * 8, time.monotonic() + 60)
        assert reached.facts(["numpy"])["modules"] == {"numpy": True}
    finally:
        agent.kill()
        agent.wait()


def test_what_login_scripts_write_does_no_harm(server_base: Server, bundle: Path, tmp_path: Path) -> None:
    noise = """ForceCommand sh -c 'echo Welcome; echo "energykd {\\"" ; echo >&2 motd; eval "$SSH_ORIGINAL_COMMAND"'"""
    device = server_base.variant(noise, "Banner /etc/hostname", "PrintMotd yes")
    with serving(device):
        run_bundle(bundle, device.address, tmp_path / "out", timeout_seconds=60)


def test_a_port_where_nobody_listens_is_unreachable(server_base: Server, bundle: Path, tmp_path: Path) -> None:
    address = server_base.variant("").address
    assert "device cannot be reached (" in refusal(bundle, address, tmp_path / "out")
    with pytest.raises(LinkError, match="Connection refused"):
        run_bundle(bundle, address, tmp_path / "out", timeout_seconds=60)


def test_a_host_that_never_answers_is_unreachable_within_the_timeout(
    server_base: Server, bundle: Path, tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = dataclasses.replace(server_base.address, port=silent.getsockname()[1], connect_timeout_seconds=1)
        assert "timed out" in refusal(bundle, address, tmp_path / "out", 20)


def test_a_python_without_a_runtime_is_refused_before_anything_is_copied(
    server: Running, bundle: Path, make_python: Callable[..., Path], tmp_path: Path
) -> None:
    device, _ = server
    address = dataclasses.replace(device.address, python=str(make_python("numpy")))
    assert "has no runtime for these files (onnxruntime); install one there: `pip install onnxruntime`" in refusal(
        bundle, address, tmp_path / "out"
    )
    address = dataclasses.replace(address, python=str(make_python()))
    assert "has no numpy; install it there with" in refusal(bundle, address, tmp_path / "out")
    assert on_device(device) == []


def test_a_device_without_python_is_refused(server: Running, bundle: Path, tmp_path: Path) -> None:
    device, _ = server
    for python in ("/no/such/python3", "no-such-python3"):
        address = dataclasses.replace(device.address, python=python)
        assert f"device has no program {python}; install Python 3.10" in refusal(bundle, address, tmp_path / "out")
