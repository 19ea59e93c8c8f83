"""Files of dvc that a kill has cut short."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.dvc_files import repair_dvc_files

LOCK = """schema: '2.0'
stages:
  prepare:
    cmd: python -m stages.prepare
    deps:
    - path: data
      hash: md5
      md5: 2f2e1a7f38ba2f1f1ac9bdc4f1fd7d2c.dir
      size: 10
      nfiles: 1
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    for name in ("lock", "rwlock.lock"):
        (tmp_path / ".dvc/tmp" / name).touch()
    (tmp_path / "targets/pi5").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("name", ["dvc.lock", "targets/pi5/dvc.lock"])
@pytest.mark.parametrize("end", [0, 8, LOCK.index("deps") + 2, LOCK.index("hash") + 2])
def test_a_lockfile_that_was_cut_short_is_set_aside(workspace, caplog, name, end):
    (workspace / name).write_text(LOCK[:end])
    repair_dvc_files()
    assert not (workspace / name).exists()
    assert f"{name} was cut short" in caplog.text
    assert (workspace / ".dvc/tmp" / f"{name.replace('/', '_')}.damaged").read_text() == LOCK[:end]


def test_whole_files_are_left_alone(workspace, caplog):
    (workspace / "dvc.lock").write_text(LOCK)
    repair_dvc_files()
    assert (workspace / "dvc.lock").read_text() == LOCK
    assert not caplog.text


def test_a_list_of_users_that_was_cut_short_is_removed(workspace, caplog):
    (workspace / ".dvc/tmp/rwlock").write_text('{"write": ')
    repair_dvc_files()
    assert not (workspace / ".dvc/tmp/rwlock").exists()
    assert "rwlock was cut short" in caplog.text


@pytest.mark.parametrize("program", ["sleep", "dvc"])
def test_a_user_whose_number_another_program_has_by_now_is_forgotten_and_a_living_dvc_is_not(workspace, program):
    users = workspace / ".dvc/tmp/rwlock"
    waiting = [sys.executable, "-c", "print(flush=True); input()", program]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # while a program is being loaded, the system shows no words of its command
        users.write_text(
            json.dumps({"write": {"artifacts/data": {"pid": process.pid, "cmd": "dvc repro"}}, "read": {}})
        )
        repair_dvc_files()
        process.kill()
    assert users.exists() == (program == "dvc")


@pytest.mark.parametrize("text", ["[]", '{"read": 1}', '{"write": {"a": {}}}', '{"read": {"a": [{"pid": "x"}]}}'])
def test_a_list_of_users_of_another_form_is_removed(workspace, text):
    (workspace / ".dvc/tmp/rwlock").write_text(text)
    repair_dvc_files()
    assert not (workspace / ".dvc/tmp/rwlock").exists()


def test_what_a_running_dvc_may_be_writing_is_left_alone(workspace):
    (workspace / "dvc.lock").write_text("schema:")
    (workspace / ".dvc/tmp/rwlock").write_text("")
    with (workspace / ".dvc/tmp/lock").open() as repository, (workspace / ".dvc/tmp/rwlock.lock").open() as users:
        for file in (repository, users):
            fcntl.flock(file, fcntl.LOCK_EX)
        repair_dvc_files()
    assert (workspace / "dvc.lock").exists()
    assert (workspace / ".dvc/tmp/rwlock").exists()
    repair_dvc_files()
    assert not (workspace / "dvc.lock").exists()
