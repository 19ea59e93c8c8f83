"""The device's side of a run, without a client: the commands of a bundle, on this machine."""

from __future__ import annotations

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
from pipeline.device.service import attend, detached
from pipeline.device.service.attend import clean, follow, stop
from pipeline.device.service.bundle import sha256_of
from pipeline.device.service.detached import start
from pipeline.device.service.files import told
from pipeline.device.service.lock import DeviceLock, Holder, LockedError
from pipeline.device.service.session import Session
from pipeline.remote import BundleContent
from pipeline.store.tables import sha256_file
from tests.remote.conftest import write
from tests.remote.server import connections, running, wait_for

RUN = "0123456789abcdef"


def install(bundle: Path, folder: Path, run: str = RUN) -> Session:
    session = Session(folder, sha256_of(bundle), run)
    session.archive.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(bundle, session.archive)
    return session


@pytest.fixture
def session(bundle: Path, tmp_path: Path) -> Iterator[Session]:
    session = install(bundle, tmp_path / "device")
    yield session
    stop(session)


@pytest.fixture
def long_session(content: BundleContent, tmp_path: Path) -> Iterator[Session]:
    session = install(write(tmp_path / "long.pyz", content, min_seconds=40), tmp_path / "device")
    yield session
    stop(session)


def end_of(session: Session) -> dict[str, Any]:
    told: list[Any] = []
    follow(session, told.append)
    end: dict[str, Any] = told[-1]["end"]
    return end


def measuring(session: Session) -> bool:
    return ((session.progress() or {}).get("label") or "").startswith("round ")


def test_a_run_ends_with_the_hashes_of_its_files(session: Session) -> None:
    assert start(session, "ann@laptop", 60) == "started"
    end = end_of(session)
    assert end["status"] == "finished"
    assert end["sha256"] == {name: sha256_file(session.path / name) for name in ("result.json", "samples.npz")}
    assert DeviceLock(session.folder).holder() is None
    assert not session.files.exists()


def test_the_same_run_is_never_started_twice(session: Session) -> None:
    assert start(session, "ann@laptop", 60) == "started"
    assert start(session, "ann@laptop", 60) == "running"
    first = end_of(session)
    assert start(session, "ann@laptop", 60) == "ended"
    assert end_of(session) == first


def test_another_run_of_the_same_bundle_is_another_measurement(session: Session) -> None:
    start(session, "ann@laptop", 60)
    first = end_of(session)
    other = Session(session.folder, session.bundle, "f" * 16)
    assert start(other, "ann@laptop", 60) == "started"
    assert end_of(other)["sha256"]["result.json"] != first["sha256"]["result.json"]


def test_another_run_is_refused_meanwhile(long_session: Session) -> None:
    start(long_session, "ann@laptop", 60)
    other = Session(long_session.folder, long_session.bundle, "f" * 16)
    with pytest.raises(LockedError, match=r"^locked by ann@laptop's run of bundle"):
        start(other, "bob@desk", 60)
    assert not other.path.exists()


def test_the_run_has_a_session_of_its_own_and_none_of_our_descriptors(long_session: Session, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        start(long_session, "ann@laptop", 60)
        wait_for(lambda: measuring(long_session), "the first round")
        holder = DeviceLock(long_session.folder).holder()
        assert holder is not None
        [child] = connections(holder.pid)
        for pid in (holder.pid, child):
            assert os.getsid(pid) == holder.pid
            opened = {
                path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()
            }
            assert str(tmp_path / "ours") not in opened.values()
            log = str(long_session.log)
            assert [opened[number] for number in "012"] == ["/dev/null", log, log]
        assert not any(
            path.readlink() == long_session.folder / "lock"
            for worker in connections(child)
            for path in Path(f"/proc/{worker}/fd").iterdir()
        )


def test_a_run_can_be_stopped_and_takes_its_worker_along(long_session: Session) -> None:
    start(long_session, "ann@laptop", 60)
    wait_for(lambda: measuring(long_session), "the first round")
    holder = DeviceLock(long_session.folder).holder()
    assert holder is not None
    family = [holder.pid, *connections(holder.pid)]
    family += connections(family[1])
    assert stop(long_session)
    assert not stop(long_session)
    assert end_of(long_session) == {"status": "died", "message": detached.STOPPED}
    wait_for(lambda: not any(running(pid) for pid in family), "the end of all")
    assert not long_session.files.exists()


def test_a_run_ends_at_its_limit(long_session: Session) -> None:
    start(long_session, "ann@laptop", 2)
    assert end_of(long_session) == {"status": "died", "message": detached.LATE}


def test_a_number_that_now_belongs_to_another_process_is_left_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a death of the whole run, when the system gives its process number away again."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    session.create()
    lock = DeviceLock(session.folder)
    descriptor = lock.take(dataclasses.replace(Holder.now("a@b", session.bundle, RUN), pid=bystander.pid, started=1))
    monkeypatch.setattr(attend, "_STOP_SECONDS", 0.2)
    with pytest.raises(DeviceError, match="could not be ended"):
        stop(session)
    os.close(descriptor)
    assert bystander.poll() is None
    assert end_of(session)["status"] == "died"
    assert start(session, "a@b", 60) == "ended"
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_restart_of_the_device_is_told_from_a_kill(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.create()
    assert end_of(session)["message"].startswith("all its processes were ended from outside")
    monkeypatch.setattr(detached, "boot_id", lambda: "another")
    assert end_of(session)["message"] == "the device was restarted meanwhile"


def test_a_damaged_bundle_fails_with_the_name_of_the_file(session: Session) -> None:
    content = session.archive.read_bytes()
    with_other_input = content.replace(b"\x93NUMPY", b"\x93NUMPX", 1)
    assert with_other_input != content
    session.archive.write_bytes(with_other_input)
    start(session, "ann@laptop", 60)
    end = end_of(session)
    assert end["status"] == "failed"
    assert re.search(r"(bundle/\S+ in|Bad CRC)", end["message"])


def test_a_python_without_numpy_fails_in_a_sentence(session: Session, make_python: Callable[..., Path]) -> None:
    ids = ["--folder", session.folder, "--bundle", session.bundle, "--run", RUN]
    words = [make_python(), session.archive, "start", *ids, "--owner", "a@b", "--limit", "60"]
    subprocess.run(words, check=True, capture_output=True)
    assert end_of(session)["message"].startswith("numpy is not installed for this Python; install it with")


def test_following_shows_signs_of_life_and_ends_when_its_reader_is_gone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(attend, "_LOOK_SECONDS", 0.05)
    session.create()
    descriptor = DeviceLock(session.folder).take(Holder.now("a@b", session.bundle, RUN))
    heard: list[Any] = []

    def tell(values: Any) -> None:
        heard.append(values)
        if len(heard) == 3:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(session, tell)
    assert heard == [{"alive": True}] * 3
    os.close(descriptor)


def test_following_ends_quietly_when_its_reader_is_gone(long_session: Session) -> None:
    start(long_session, "ann@laptop", 60)
    ids = ["--folder", long_session.folder, "--bundle", long_session.bundle, "--run", RUN]
    words = [sys.executable, long_session.archive, "follow", *ids]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert DeviceLock(long_session.folder).holder() is not None


def test_what_a_killed_run_had_extracted_is_removed_by_the_next(session: Session) -> None:
    old = Session(session.folder, "7" * 64, RUN)
    old.files.mkdir(parents=True)
    (old.files / "model.onnx").touch()
    start(session, "ann@laptop", 60)
    assert not old.files.exists()
    assert end_of(session)["status"] == "finished"


def test_following_a_run_that_was_never_started_is_refused(session: Session) -> None:
    with pytest.raises(DeviceError, match="there is no run"):
        follow(session, lambda values: None)


@pytest.mark.parametrize(
    ("bundle_hash", "run"), [("../../etc", RUN), ("0" * 63, RUN), ("0" * 64, ".."), ("0" * 64, "a/b"), ("0" * 64, "")]
)
def test_ids_that_are_no_hashes_are_refused(tmp_path: Path, bundle_hash: str, run: str) -> None:
    with pytest.raises(DeviceError, match="hexadecimal digits"):
        Session(tmp_path, bundle_hash, run)


def test_cleaning_keeps_what_is_new_in_use_or_not_fetched(session: Session) -> None:
    def old(name: str, days: float) -> Path:
        folder = session.folder / (name * 64)
        folder.mkdir()
        (folder / "bundle.pyz").touch()
        os.utime(folder, (time.time() - days * 86400,) * 2)
        return folder

    session.create()
    ancient, surplus, recent, new, busy = old("1", 30), old("2", 3), old("3", 2), old("4", 0), old("5", 30)
    unfetched = old("6", 4)
    (unfetched / RUN).mkdir()
    (unfetched / RUN / "result.json").touch()
    (surplus / RUN).mkdir()
    os.utime(surplus, (time.time() - 3 * 86400,) * 2)
    os.utime(unfetched, (time.time() - 4 * 86400,) * 2)
    foreign = session.folder / "engines"
    foreign.mkdir()
    descriptor = DeviceLock(session.folder).take(Holder.now("a@b", busy.name, RUN))
    removed = clean(session, keep=2, days=14)
    os.close(descriptor)
    assert sorted(removed) == [ancient.name, surplus.name]
    assert all(path.is_dir() for path in (recent, new, busy, unfetched, foreign, session.archive.parent))
    assert not session.path.exists()


def test_cleaning_after_the_clock_jumped_backwards_removes_nothing_of_now(session: Session) -> None:
    folders = []
    for digit in "1234":
        folder = session.folder / (digit * 64)
        folder.mkdir()
        os.utime(folder, (time.time() + 86400 * 365,) * 2)
        folders.append(folder)
    assert clean(session, keep=0, days=14) == []
    assert all(folder.is_dir() for folder in folders)


def test_the_commands_speak_in_marked_lines(session: Session) -> None:
    def command(name: str, *more: str) -> list[dict[str, Any]]:
        ids = ["--folder", session.folder, "--bundle", session.bundle, "--run", RUN]
        words = [sys.executable, session.archive, name, *ids, *more]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
        assert ended.stderr == ""
        return [values for line in ended.stdout.splitlines() if (values := told(line)) is not None]

    assert command("start", "--owner", "a@b", "--limit", "60") == [{"start": "started"}]
    assert command("follow")[-1]["end"]["status"] == "finished"
    assert command("stop") == [{"stopped": False}]
    assert command("clean") == [{"removed": []}]
