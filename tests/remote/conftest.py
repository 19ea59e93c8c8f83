"""A bundle with a tiny model, Pythons that a device may have, and a real OpenSSH server on the loopback interface."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device import Plan, Variant
from pipeline.remote import Address, BundleContent, write_bundle
from tests.device.conftest import TinyModel, tiny_model  # noqa: F401  (a fixture)

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
QUICK: dict[str, Any] = {"threads": 1, "warmup_seconds": 0.0, "warmup_count": 1, "min_seconds": 0.0, "min_count": 20}


@dataclasses.dataclass(frozen=True)
class Server:
    """A running sshd and the ssh config with the alias "device" for it.

    Attributes:
        folder: of everything; ``device`` below it is the device's folder.
        launches: file with a line for each worker that the device's Python has started.
    """

    folder: Path
    port: int
    config: Path
    launches: Path
    python: Path
    sshd: Path

    @property
    def address(self) -> Address:
        return Address(
            host="device",
            ssh_config=str(self.config),
            python=str(self.python),
            folder=str(self.folder / "device"),
            connect_timeout_seconds=5,
        )

    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def worker_count(self) -> int:
        return len(self.launches.read_text().splitlines()) if self.launches.exists() else 0

    def start(self) -> subprocess.Popen[bytes]:
        # Connections are children of the listener; a session of its own lets a test end all of them.
        process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-p", str(self.port), "-f", str(self.sshd)],
            stderr=(self.folder / "sshd.log").open("ab"),
        )
        wait_for(lambda: answers(self.port), f"sshd on port {self.port}")
        return process


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connections(listener: int) -> list[int]:
    """The processes of a listener's connections."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == listener:
            children.append(int(stat.parent.name))
    return children


def cut(listener: int) -> int:
    """Kill the processes of all connections; how many there were."""
    found = connections(listener)
    for pid in found:
        for process in [*connections(pid), pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
    return len(found)


@pytest.fixture(scope="session")
def make_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes virtual environments with chosen modules of this one, and a record of the workers that they start."""

    def make(*modules: str, launches: Path | None = None) -> Path:
        folder = tmp_path_factory.mktemp("python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        site = next((folder / "venv/lib").glob("python3*/site-packages"))
        mine = Path(np.__file__).parents[1]
        if "*" in modules:
            (site / "all.pth").write_text(f"{mine}\n")
        else:
            for module in modules:
                for path in (mine / module, mine / f"{module}.libs"):
                    if path.exists():
                        (site / path.name).symlink_to(path)
        if launches is not None:
            counter = "import sys; 'pipeline.device.worker' in sys.orig_argv and open({!r}, 'a').write('worker\\n')"
            (site / "launches.pth").write_text(counter.format(str(launches)) + "\n")
        return folder / "venv/bin/python"

    return make


@pytest.fixture(scope="session")
def server_base(tmp_path_factory: pytest.TempPathFactory, make_python: Callable[..., Path]) -> Server:
    if SSHD is None:
        pytest.skip("no OpenSSH server here (apt-get install openssh-server)")
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host_key", "other_host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    if os.getuid() == 0:
        # The server insists on it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    launches = folder / "launches"
    server = Server(
        folder,
        free_port(),
        folder / "config",
        launches,
        make_python("*", launches=launches),
        folder / "sshd_config",
    )
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    server.sshd.write_text(
        f"ListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 50\n"
    )
    server.config.write_text(
        f"Host device\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {folder}/user_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    return server


@pytest.fixture
def server(server_base: Server, tmp_path: Path) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """The server, running, with the device's folder and the count of workers of this test."""
    server = server_base
    key = (server.folder / "host_key.pub").read_text()
    server.known_hosts().write_text(f"[127.0.0.1]:{server.port} {key}")
    server.launches.unlink(missing_ok=True)
    shutil.rmtree(server.folder / "device", ignore_errors=True)
    process = server.start()
    yield server, process
    cut(process.pid)
    process.kill()
    process.wait()


@pytest.fixture
def content(tiny_model: TinyModel) -> BundleContent:  # noqa: F811
    inputs = np.load(tiny_model.inputs)
    generator = np.random.default_rng(1)
    count = len(inputs)
    variants = (
        Variant("ort", "onnxruntime", str(tiny_model.path), "fp32"),
        Variant("ort-3", "onnxruntime", str(tiny_model.path), "fp32", batch=3),
    )
    return BundleContent(
        plan=Plan(variants, "unused", rounds=2, max_seconds=20.0, **QUICK),
        inputs=inputs,
        logits=generator.standard_normal((count, 4)).astype(np.float32),
        energy=generator.standard_normal(count).astype(np.float32),
        labels=np.arange(count, dtype=np.int64) % 4,
        groups=np.zeros(count, dtype=np.int8),
        card={"labels": ["a", "b", "c", "d"]},
    )


@pytest.fixture
def bundle(content: BundleContent, tmp_path: Path) -> Path:
    """Four workers, a second or two in all."""
    write_bundle(tmp_path / "bundle.pyz", content)
    return tmp_path / "bundle.pyz"


@pytest.fixture
def slow_bundle(content: BundleContent, tmp_path: Path) -> Path:
    """Two workers that measure for three seconds each."""
    plan = dataclasses.replace(content.plan, variants=content.plan.variants[:1], min_seconds=3.0)
    write_bundle(tmp_path / "slow.pyz", dataclasses.replace(content, plan=plan))
    return tmp_path / "slow.pyz"
