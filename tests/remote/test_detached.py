"""The device's side of a run, without a client: the commands of a bundle, on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.device.errors import DeviceError
from pipeline.device.service import detached
from pipeline.device.service.detached import clean, follow, start, stop
from pipeline.device.service.lock import DeviceLock, Holder, LockedError
from pipeline.device.service.run_folder import RunFolder, read_line
from pipeline.portable.files import sha256_file
from pipeline.remote import BundleContent
from tests.remote.conftest import write
from tests.remote.server import connections, running, wait_for

RUN = "0123456789abcdef"


def install(bundle: Path, folder: Path) -> RunFolder:
    run = RunFolder(folder, sha256_file(bundle), RUN)
    run.archive.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(bundle, run.archive)
    return run


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Iterator[RunFolder]:
    run = install(bundle, tmp_path / "device")
    yield run
    stop(run)


@pytest.fixture
def long_run(content: BundleContent, tmp_path: Path) -> Iterator[RunFolder]:
    run = install(write(tmp_path / "long.pyz", content, min_seconds=40), tmp_path / "device")
    yield run
    stop(run)


def end_of(run: RunFolder) -> dict[str, Any]:
    told: list[Any] = []
    follow(run, told.append)
    end: dict[str, Any] = told[-1]["end"]
    return end


def measuring(run: RunFolder) -> bool:
    return ((run.progress() or {}).get("label") or "").startswith("round ")


def test_a_run_is_started_once_and_ends_with_the_hashes_of_its_files_and_another_one_measures_again(
    run: RunFolder,
) -> None:
    assert start(run, "ann@laptop", 60) == "started"
    assert start(run, "ann@laptop", 60) == "running"
    end = end_of(run)
    assert end["status"] == "finished"
    assert end["sha256"] == {name: sha256_file(run.path / name) for name in ("result.json", "samples.npz")}
    assert DeviceLock(run.folder).holder() is None
    assert not run.files.exists()
    assert start(run, "ann@laptop", 60) == "ended"
    assert end_of(run) == end
    other = RunFolder(run.folder, run.bundle, "f" * 16)
    assert start(other, "ann@laptop", 60) == "started"
    assert end_of(other)["sha256"]["result.json"] != end["sha256"]["result.json"]


def test_another_run_is_refused_meanwhile(long_run: RunFolder) -> None:
    start(long_run, "ann@laptop", 60)
    other = RunFolder(long_run.folder, long_run.bundle, "f" * 16)
    with pytest.raises(LockedError, match=r"^locked by ann@laptop's run of bundle"):
        start(other, "bob@desk", 60)
    assert not other.path.exists()


def descriptors(pid: int) -> dict[str, str]:
    """Open files of a process by number; some close meanwhile."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = str(path.readlink())
    return found


def test_the_run_has_a_session_of_its_own_and_none_of_our_descriptors(long_run: RunFolder, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        start(long_run, "ann@laptop", 60)
        wait_for(lambda: measuring(long_run), "the first round")
        holder = DeviceLock(long_run.folder).holder()
        assert holder is not None
        [child] = connections(holder.pid)
        for pid in (holder.pid, child):
            assert os.getsid(pid) == holder.pid
            opened = descriptors(pid)
            assert str(tmp_path / "ours") not in opened.values()
            log = str(long_run.log)
            assert [opened[number] for number in "012"] == ["/dev/null", log, log]
        lock = str(long_run.folder / "lock")
        # A worker that is just starting has the lock until it becomes another program.
        wait_for(
            lambda: not any(lock in descriptors(worker).values() for worker in connections(child)), "workers without it"
        )


def test_a_run_can_be_stopped_and_takes_its_worker_along(long_run: RunFolder) -> None:
    start(long_run, "ann@laptop", 60)
    wait_for(lambda: measuring(long_run), "the first round")
    holder = DeviceLock(long_run.folder).holder()
    assert holder is not None
    family = [holder.pid, *connections(holder.pid)]
    family += connections(family[1])
    assert stop(long_run)
    assert not stop(long_run)
    assert end_of(long_run) == {"status": "died", "message": detached.STOPPED}
    wait_for(lambda: not any(running(pid) for pid in family), "the end of all")
    assert not long_run.files.exists()


def test_a_run_ends_at_its_limit(long_run: RunFolder) -> None:
    start(long_run, "ann@laptop", 2)
    assert end_of(long_run) == {"status": "died", "message": detached.TIMED_OUT}


def test_a_number_that_now_belongs_to_another_process_is_left_alone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a death of the whole run, when the system gives its process number away again."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run.create()
    lock = DeviceLock(run.folder)
    descriptor = lock.take(dataclasses.replace(Holder.now("a@b", run.bundle, RUN), pid=bystander.pid, started=1))
    monkeypatch.setattr(detached, "_STOP_SECONDS", 0.2)
    with pytest.raises(DeviceError, match="could not be ended"):
        stop(run)
    os.close(descriptor)
    assert bystander.poll() is None
    assert end_of(run)["status"] == "died"
    assert start(run, "a@b", 60) == "ended"
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_restart_of_the_device_is_told_from_a_kill(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.create()
    assert end_of(run)["message"].startswith("all its processes were ended from outside")
    monkeypatch.setattr(detached.lock, "boot_id", lambda: "another")
    assert end_of(run)["message"] == "the device was restarted meanwhile"


def test_a_damaged_bundle_fails_with_the_name_of_the_file(run: RunFolder) -> None:
    content = run.archive.read_bytes()
    with_other_input = content.replace(b"\x93NUMPY", b"\x93NUMPX", 1)
    assert with_other_input != content
    run.archive.write_bytes(with_other_input)
    start(run, "ann@laptop", 60)
    end = end_of(run)
    assert end["status"] == "failed"
    assert re.search(r"(bundle/\S+ in|Bad CRC)", end["message"])


def test_a_python_without_numpy_fails_in_a_sentence(run: RunFolder, make_python: Callable[..., Path]) -> None:
    ids = ["--folder", run.folder, "--bundle", run.bundle, "--run", RUN]
    words = [make_python(), run.archive, "start", *ids, "--owner", "a@b", "--limit", "60"]
    subprocess.run(words, check=True, capture_output=True)
    assert end_of(run)["message"].startswith("numpy is not installed for this Python; install it with")


def test_following_shows_signs_of_life_and_ends_when_its_reader_is_gone(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(detached, "POLL_SECONDS", 0.05)
    run.create()
    descriptor = DeviceLock(run.folder).take(Holder.now("a@b", run.bundle, RUN))
    heard: list[Any] = []

    def tell(values: Any) -> None:
        heard.append(values)
        if len(heard) == 3:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(run, tell)
    assert heard == [{"alive": True}] * 3
    os.close(descriptor)


def test_following_ends_quietly_when_its_reader_is_gone(long_run: RunFolder) -> None:
    start(long_run, "ann@laptop", 60)
    ids = ["--folder", long_run.folder, "--bundle", long_run.bundle, "--run", RUN]
    words = [sys.executable, long_run.archive, "follow", *ids]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert DeviceLock(long_run.folder).holder() is not None


def test_what_a_killed_run_had_extracted_is_removed_by_the_next(run: RunFolder) -> None:
    old = RunFolder(run.folder, "7" * 64, RUN)
    old.files.mkdir(parents=True)
    (old.files / "model.onnx").touch()
    start(run, "ann@laptop", 60)
    assert not old.files.exists()


def test_following_a_run_that_was_never_started_is_refused(run: RunFolder) -> None:
    with pytest.raises(DeviceError, match="there is no run"):
        follow(run, lambda values: None)


@pytest.mark.parametrize(
    ("bundle_hash", "run_id"),
    [("../../etc", RUN), ("0" * 63, RUN), ("0" * 64, ".."), ("0" * 64, "a/b"), ("0" * 64, "")],
)
def test_ids_that_are_no_hashes_are_refused(tmp_path: Path, bundle_hash: str, run_id: str) -> None:
    with pytest.raises(DeviceError, match="hexadecimal digits"):
        RunFolder(tmp_path, bundle_hash, run_id)


def test_cleaning_keeps_what_is_new_in_use_or_not_fetched(run: RunFolder) -> None:
    def old(name: str, days: float) -> Path:
        folder = run.folder / (name * 64)
        folder.mkdir()
        (folder / "bundle.pyz").touch()
        os.utime(folder, (time.time() - days * 86400,) * 2)
        return folder

    run.create()
    ancient, surplus, recent, new, busy = old("1", 30), old("2", 3), old("3", 2), old("4", 0), old("5", 30)
    unfetched = old("6", 4)
    (unfetched / RUN).mkdir()
    (unfetched / RUN / "result.json").touch()
    (surplus / RUN).mkdir()
    os.utime(surplus, (time.time() - 3 * 86400,) * 2)
    os.utime(unfetched, (time.time() - 4 * 86400,) * 2)
    foreign = run.folder / "engines"
    foreign.mkdir()
    descriptor = DeviceLock(run.folder).take(Holder.now("a@b", busy.name, RUN))
    removed = clean(run, keep=2, days=14)
    os.close(descriptor)
    assert sorted(removed) == [ancient.name, surplus.name]
    assert all(path.is_dir() for path in (recent, new, busy, unfetched, foreign, run.archive.parent))
    assert not run.path.exists()


def test_cleaning_after_the_clock_jumped_backwards_removes_nothing_of_now(run: RunFolder) -> None:
    folders = []
    for digit in "1234":
        folder = run.folder / (digit * 64)
        folder.mkdir()
        os.utime(folder, (time.time() + 86400 * 365,) * 2)
        folders.append(folder)
    assert clean(run, keep=0, days=14) == []
    assert all(folder.is_dir() for folder in folders)


def test_the_commands_speak_in_marked_lines(run: RunFolder) -> None:
    def command(name: str, *more: str) -> list[dict[str, Any]]:
        ids = ["--folder", run.folder, "--bundle", run.bundle, "--run", RUN]
        words = [sys.executable, run.archive, name, *ids, *more]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
        assert ended.stderr == ""
        return [values for line in ended.stdout.splitlines() if (values := read_line(line)) is not None]

    assert command("start", "--owner", "a@b", "--limit", "60") == [{"start": "started"}]
    assert command("follow")[-1]["end"]["status"] == "finished"
    assert command("stop") == [{"stopped": False}]
    assert command("clean") == [{"removed": []}]
