from __future__ import annotations

import os
import signal
import time

import pytest

from pipeline.errors import BusyError
from pipeline.store.lock import exclusive
from tests.processes import python

HOLDER = """
import os, sys
from pathlib import Path
from pipeline.store.lock import exclusive
with exclusive(Path(sys.argv[1]), "holding this"):
    if sys.argv[2] == "forks" and os.fork() == 0:
        import time
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_a_held_lock_names_its_process(tmp_path):
    lock = tmp_path / "x.lock"
    with python(HOLDER, lock, "alone") as holder:
        pid = int(holder.stdout.readline())
        for _ in range(2):  # the one that is refused leaves the name of the holder in the file
            with (
                pytest.raises(BusyError, match=f"^process {pid} is already holding this .* stop it with `kill {pid}`$"),
                exclusive(lock, "holding this"),
            ):
                pass
        holder.kill()
    with exclusive(lock, "holding this"):
        pass


def test_a_process_that_was_left_behind_is_told_apart(tmp_path):
    lock = tmp_path / "x.lock"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDER!r}, *sys.argv[1:]])"
    with python(starter, lock, "alone") as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            expected = f"process {pid} is already holding this, left behind by a dvc"
            with pytest.raises(BusyError, match=expected), exclusive(lock, "holding this"):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_process_whose_dvc_was_killed_before_it_took_the_lock_is_told_apart(tmp_path, monkeypatch):
    lock = tmp_path / "x.lock"
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    late = f"import time; time.sleep(1); {HOLDER.strip()}".replace("; import os, sys", "\nimport os, sys")
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}, *sys.argv[1:]])"
    with python(starter, lock, "alone") as parent:
        parent.wait()
        pid = int(parent.stdout.readline())
        try:
            expected = f"process {pid} is already holding this, left behind by a dvc"
            with pytest.raises(BusyError, match=expected), exclusive(lock, "holding this"):
                pass
        finally:
            os.kill(pid, signal.SIGKILL)


def test_the_workers_of_a_killed_holder_are_waited_for(tmp_path):
    lock = tmp_path / "x.lock"
    with python(HOLDER, lock, "forks", 2) as holder:
        holder.stdout.readline()
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with exclusive(lock, "holding this"):
            assert time.monotonic() - started > 0.1, "they held it"
