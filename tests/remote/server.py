"""A real OpenSSH server on the loopback interface, and a client of it in a thread."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.portable.documents import Result
from pipeline.portable.files import read_object
from pipeline.remote import Address, RemoteError, run_bundle

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
NEEDS_SSHD = pytest.mark.skipif(SSHD is None, reason="no OpenSSH server here (apt-get install openssh-server)")


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
            port=self.port if self.sshd.suffix else None,
            ssh_config=str(self.config),
            python=str(self.python),
            folder=str(self.folder / "device"),
            connect_timeout_seconds=5,
        )

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def know(self, key: str = "host_key") -> None:
        """Let the client know a host key of this server."""
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}")

    def variant(self, *lines: str) -> Server:
        """The same on another port, with these lines before those of its configuration."""
        sshd = self.folder / f"sshd_config.{len(lines)}"
        sshd.write_text("\n".join(lines) + "\n" + self.sshd.read_text())
        return dataclasses.replace(self, port=free_port(), sshd=sshd)

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


def running(pid: int) -> bool:
    """Whether a process does anything still: one that waits for its parent to notice its end does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


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


def cut(listener_pid: int, *, listener: bool = False) -> int:
    """Kill the processes of all connections, and the listener too on request; how many connections there were."""
    found = connections(listener_pid)
    ending = [*[child for pid in found for child in connections(pid)], *found]
    for pid in [*([listener_pid] if listener else []), *ending]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


@contextmanager
def serving(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """The server's listener, whose connections end with it."""
    server.know()
    process = server.start()
    try:
        yield process
    finally:
        cut(process.pid, listener=True)
        process.wait()


Running = tuple[Server, "subprocess.Popen[bytes]"]


class Client:
    """``run_bundle`` in a thread, with what it reported."""

    def __init__(self, bundle: Path, address: Address, out: Path, **options: Any) -> None:
        self.labels: list[str] = []
        self._future = ThreadPoolExecutor(1).submit(
            run_bundle,
            bundle,
            address,
            out,
            **({"timeout_seconds": 60} | options),
            on_progress=lambda done, total, label: self.labels.append(label),
        )

    def reported(self, beginning: str) -> bool:
        assert not self._future.done(), self._future.exception() or self.labels
        return any(label.startswith(beginning) for label in self.labels)

    def wait_until_measuring(self) -> None:
        wait_for(lambda: self.reported("round "), "the first round")

    def result(self) -> Result:
        return self._future.result(90)


def on_device(server: Server) -> list[str]:
    """All that is in the device's folder, but the lock."""
    root = server.folder / "device"
    # not by rglob, which raises an error if a folder is removed meanwhile
    found = (Path(parent, name) for parent, folders, files in os.walk(root) for name in (*folders, *files))
    return sorted(path.relative_to(root).as_posix() for path in found if not path.name.startswith("lock"))


def processes_of_run(server: Server) -> tuple[int, int]:
    """The process that watches over the run on the device, and the one that measures."""
    holder = read_object(server.folder / "device/lock.json")
    assert holder is not None
    [measuring] = connections(holder["pid"])
    return holder["pid"], measuring


def refusal(bundle: Path, address: Address, out: Path, seconds: float = 30) -> str:
    """The sentence that a client ends with, which leaves nothing behind."""
    begun = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        run_bundle(bundle, address, out, timeout_seconds=seconds)
    assert time.monotonic() - begun < seconds
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert address.name in sentence
    assert not out.exists() or not list(out.iterdir())
    return sentence


CLIENT = """
import signal, sys
from pathlib import Path
from pipeline.remote import Address, run_bundle
signal.signal(signal.SIGINT, signal.default_int_handler)
bundle, config, python, folder, out = sys.argv[1:]
address = Address("device", ssh_config=config, python=python, folder=folder)
run_bundle(Path(bundle), address, Path(out), timeout_seconds=60)
"""


def client_process(bundle: Path, server: Server, out: Path) -> subprocess.Popen[bytes]:
    """A client that can be killed, once its run on the device has launched a worker."""
    address = server.address
    words = [bundle, address.ssh_config, address.python, address.folder, out]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CLIENT, *map(str, words)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    wait_for(server.worker_count, "the first worker", 30)
    return process
