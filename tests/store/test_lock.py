from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import BusyError
from pipeline.store import lock
from tests.processes import python

HOLDER = """
import os, sys
from pathlib import Path
from pipeline.store.lock import exclusive
with exclusive(Path(sys.argv[1]), "holding this"):
    if "forks" in sys.argv:
        os.fork()
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
# its starter, which ends at once, gives its own number
LATE = f"""
import os, sys, time
while os.getppid() == int(sys.argv[2]):
    time.sleep(0.01)
{HOLDER}
"""


def test_a_held_lock_names_its_process(tmp_path):
    path = tmp_path / "x.lock"
    with python(HOLDER, path) as holder:
        pid = int(holder.stdout.readline())
        for _ in range(2):  # the one that is refused leaves the name of the holder in the file
            with (
                pytest.raises(BusyError, match=f"^process {pid} is already holding this .* stop it with `kill {pid}`$"),
                lock.exclusive(path, "holding this"),
            ):
                pass
        holder.kill()
    with lock.exclusive(path, "holding this"):
        pass


def test_a_process_that_was_left_behind_is_told_apart(tmp_path):
    path = tmp_path / "x.lock"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDER!r}, *sys.argv[1:]])"
    with python(starter, path) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            expected = f"process {pid} is already holding this, left behind by a dvc"
            with pytest.raises(BusyError, match=expected), lock.exclusive(path, "holding this"):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_process_whose_dvc_was_killed_before_it_took_the_lock_is_told_apart(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    program = f"[sys.executable, '-c', {LATE!r}, sys.argv[1], str(os.getpid())]"
    starter = f"import os, subprocess, sys; subprocess.Popen({program})"
    with python(starter, path) as parent:
        parent.wait()
        pid = int(parent.stdout.readline())
        try:
            expected = f"process {pid} is already holding this, left behind by a dvc"
            with pytest.raises(BusyError, match=expected), lock.exclusive(path, "holding this"):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_the_workers_of_a_killed_holder_are_waited_for(tmp_path, monkeypatch):
    path, waited = tmp_path / "x.lock", []
    with python(HOLDER, path, "forks") as holder:
        for _ in range(2):
            holder.stdout.readline()
        holder.kill()
        holder.wait()

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            holder.stdin.close()  # which ends the worker

        monkeypatch.setattr(lock.time, "sleep", sleep)
        with lock.exclusive(path, "holding this"):
            assert waited, "it held the lock"
