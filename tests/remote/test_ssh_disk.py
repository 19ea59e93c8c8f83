"""Full disks and damaged files on a device, with a real OpenSSH server."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.portable.files import sha256_file
from pipeline.remote import Address, RemoteError, device, run, run_bundle, scripts
from tests.remote.server import NEEDS_SSHD, Client, Running, on_device, refusal

pytestmark = NEEDS_SSHD


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill(folder: Path) -> Path:
    """Write a file until nothing more fits."""
    filler = folder / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return filler


def on_disk(server: Running, folder: Path) -> Address:
    return dataclasses.replace(server[0].address, folder=str(folder / "device"))


def test_a_device_without_space_is_refused_before_anything_is_copied(
    server: Running, bundle: Path, small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (15 << 20))
    sentence = refusal(bundle, on_disk(server, small_disk), tmp_path / "out")
    assert f"device has 5 MB free in {small_disk}/device, but 17 MB are needed; free space there" in sentence
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_while_the_bundle_is_copied_leaves_nothing_there(
    server: Running, bundle: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = device.Device.install
    fillers = []

    def install(self: device.Device, on_progress: object) -> None:
        (small_disk / "device" / sha256_file(bundle)).mkdir(parents=True)
        fillers.append(fill(small_disk))
        genuine(self, on_progress)  # type: ignore[arg-type]

    monkeypatch.setattr(device.Device, "install", install)
    sentence = refusal(bundle, on_disk(server, small_disk), tmp_path / "out")
    assert "the bundle could not be copied to device (no space was left); free space there" in sentence
    assert not [path for path in small_disk.rglob("*") if path.is_file() and path not in fillers]
    fillers[0].unlink()
    monkeypatch.undo()
    run_bundle(bundle, on_disk(server, small_disk), tmp_path / "out", timeout_seconds=60)


def test_a_disk_that_fills_up_while_measuring_is_one_sentence(
    server: Running, slow_bundle: Path, small_disk: Path, tmp_path: Path
) -> None:
    client = Client(slow_bundle, on_disk(server, small_disk), tmp_path / "out")
    client.wait_until_measuring()
    filler = fill(small_disk)
    with pytest.raises(RemoteError, match=r"^the run on device failed: no space is left in .*; free space"):
        client.result()
    assert list((tmp_path / "out").iterdir()) == []
    filler.unlink()


def test_a_bundle_that_arrives_damaged_is_removed(
    server: Running, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "0" * 64
    monkeypatch.setattr(run, "sha256_file", lambda path: other)
    sentence = refusal(bundle, server[0].address, tmp_path / "out")
    assert (
        f"arrived on device with sha256 {sha256_file(bundle)[:12]} and not 000000000000, so it was removed" in sentence
    )
    assert on_device(server[0]) == []


def test_a_bundle_that_was_damaged_on_the_device_is_copied_again_and_a_whole_one_is_not(
    server: Running, bundle: Path, tmp_path: Path
) -> None:
    there = server[0].folder / "device" / sha256_file(bundle) / "bundle.pyz"
    there.parent.mkdir(parents=True)
    there.write_bytes(bundle.read_bytes()[:-100] + b"\0" * 100)
    copied, counts = [], []
    for _ in range(2):
        client = Client(bundle, server[0].address, tmp_path / "out")
        assert client.result().rows[0].error is None
        copied.append(any(label.startswith("copying") for label in client.labels))
        counts.append(server[0].worker_count())
        assert sha256_file(there) == sha256_file(bundle)
    assert copied == [True, False]
    assert counts[1] == 2 * counts[0] > 0


def test_a_result_that_arrives_damaged_is_not_taken_and_can_be_fetched_again(
    server: Running, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "FETCH", scripts.FETCH.replace("b64encode(chunk)", "b64encode(chunk[:-1])"))
    with pytest.raises(
        RemoteError, match=r"samples\.npz arrived from device with another sha256; run the same command"
    ):
        run_bundle(bundle, server[0].address, tmp_path / "out", timeout_seconds=60)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".run.json"]
    count = server[0].worker_count()
    monkeypatch.undo()
    run_bundle(bundle, server[0].address, tmp_path / "out", timeout_seconds=60)
    assert server[0].worker_count() == count
