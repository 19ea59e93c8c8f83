from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from pipeline.device.errors import DeviceError
from pipeline.device.service import lock as lock_module
from pipeline.device.service.lock import DeviceLock, Holder, LockedError
from tests.processes import python

BUNDLE = "3fa9c02b" * 8


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_WAIT_SECONDS", 0.1)


@pytest.fixture
def holder() -> Holder:
    return Holder.now("ann@laptop", BUNDLE, "0123abcd")


def test_one_holds_the_lock_until_it_is_closed(tmp_path: Path, holder: Holder) -> None:
    lock = DeviceLock(tmp_path / "device")
    assert lock.holder() is None
    descriptor = lock.take(holder)
    assert lock.holder() == holder
    with pytest.raises(LockedError, match=r"^locked by ann@laptop's run of bundle 3fa9c02b since \d+ seconds?; wait"):
        DeviceLock(tmp_path / "device").take(holder)
    os.close(descriptor)
    assert lock.holder() is None
    os.close(lock.take(holder))


def test_those_who_look_do_not_take_each_other_for_a_holder(tmp_path: Path, holder: Holder) -> None:
    lock = DeviceLock(tmp_path)
    os.close(lock.take(holder))
    looking = os.open(tmp_path / "lock", os.O_RDWR)
    lock_module.fcntl.flock(looking, lock_module.fcntl.LOCK_SH)
    assert lock.holder() is None
    os.close(looking)


def test_the_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pipeline.device.service.lock import DeviceLock, Holder\n"
        f"DeviceLock(Path(sys.argv[1])).take(Holder.now('a@b', {BUNDLE!r}, '01234567'))\n"
        "print('taken', flush=True); time.sleep(60)"
    )
    process = python(program, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    assert DeviceLock(tmp_path).holder() is not None
    process.kill()
    process.communicate()
    assert DeviceLock(tmp_path).holder() is None


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "0 seconds"), (1.9, "1 second"), (119, "119 seconds"), (720, "12 minutes"), (7200, "2 hours"), (-5, "0 sec")],
)
def test_the_age_is_in_units_that_people_read(holder: Holder, seconds: float, age: str) -> None:
    assert f"since {age}" in dataclasses.replace(holder, seconds=0.0).describe(holder.boot, seconds)


def test_a_wall_clock_that_jumps_backwards_does_not_change_the_age(
    tmp_path: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DeviceLock(tmp_path)
    descriptor = lock.take(dataclasses.replace(holder, seconds=holder.seconds - 720))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(LockedError, match="since 12 minutes"):
        lock.take(holder)
    os.close(descriptor)


def test_an_age_from_before_a_restart_is_not_computed(holder: Holder) -> None:
    assert holder.describe("another boot", 1.0).endswith("since before the device was restarted")


def test_a_lock_without_a_description_is_still_a_lock(tmp_path: Path, holder: Holder) -> None:
    lock = DeviceLock(tmp_path)
    descriptor = lock.take(holder)
    for content in ("", "[]", '{"owner": "x"}', "\0"):
        (tmp_path / "lock.json").write_text(content)
        with pytest.raises(LockedError, match="locked by a run that has just begun"):
            lock.take(holder)
    os.close(descriptor)


def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    with pytest.raises(DeviceError, match=r"lock cannot be locked \(Operation not supported\); choose a folder"):
        DeviceLock(tmp_path).take(holder)
