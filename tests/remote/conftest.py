"""A bundle with a tiny model, Pythons that a device may have, and a real OpenSSH server."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.portable.accuracy import Expected
from pipeline.remote import BundleContent, run_bundle, write_bundle
from tests.device.conftest import TinyModel, tiny_model  # noqa: F401  (a fixture)
from tests.remote.server import SSHD, Running, Server, free_port, serving

QUICK: dict[str, Any] = {"threads": 1, "warmup_seconds": 0.0, "warmup_count": 1, "min_seconds": 0.0, "min_count": 20}


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
            counter = (
                "import sys; 'pipeline.device.benchmark.worker' in sys.orig_argv and open({!r}, 'a').write('worker\\n')"
            )
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
        # A shell that believes to be an inner one leaves the login scripts of whoever runs the tests alone.
        "SetEnv SHLVL=1\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 50\n"
    )
    server.config.write_text(
        f"Host device\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {folder}/user_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    return server


@pytest.fixture
def server(server_base: Server) -> Iterator[Running]:
    """The server, running, with no trace of other tests on its device."""
    server_base.launches.unlink(missing_ok=True)
    shutil.rmtree(server_base.folder / "device", ignore_errors=True)
    with serving(server_base) as process:
        yield server_base, process


@pytest.fixture(scope="session")
def content(tiny_model: TinyModel) -> BundleContent:  # noqa: F811
    """One file in one round."""
    inputs = np.load(tiny_model.inputs)
    generator = np.random.default_rng(1)
    count = len(inputs)
    return BundleContent(
        plan=Plan(
            (Variant("ort", "onnxruntime", str(tiny_model.path), "fp32", "tiny", "tiny"),),
            rounds=1,
            max_seconds=60,
            **QUICK,
        ),
        inputs={"tiny": inputs},
        expected={
            "tiny": Expected(
                logits=generator.standard_normal((count, 4)).astype(np.float32),
                energy=generator.standard_normal(count).astype(np.float32),
                labels=np.arange(count, dtype=np.int64) % 4,
                groups=np.zeros(count, dtype=np.int8),
            )
        },
        card={"labels": ["a", "b", "c", "d"]},
    )


def write(path: Path, content: BundleContent, **changes: Any) -> Path:
    """A bundle with a changed plan."""
    write_bundle(path, dataclasses.replace(content, plan=dataclasses.replace(content.plan, **changes)))
    return path


@pytest.fixture
def bundle(content: BundleContent, tmp_path: Path) -> Path:
    """Measures for a moment."""
    return write(tmp_path / "bundle.pyz", content)


@pytest.fixture
def slow_bundle(content: BundleContent, tmp_path: Path) -> Path:
    """Measures for a second and more, in two rounds."""
    return write(tmp_path / "slow.pyz", content, min_seconds=0.6, rounds=2)


@pytest.fixture(scope="session")
def undisturbed(server_base: Server, content: BundleContent, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many workers a run of ``slow_bundle`` launches that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    address = dataclasses.replace(server_base.address, host=None, folder=str(folder / "device"))
    server_base.launches.unlink(missing_ok=True)
    run_bundle(write(folder / "b.pyz", content, min_seconds=0.1, rounds=2), address, folder / "out", timeout_seconds=60)
    count = server_base.worker_count()
    assert count >= 2
    return count
