from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import (
    atomic_file,
    atomic_folder,
    check_lineage,
    exclusive,
    read_json,
    read_table,
    write_json,
    write_table,
)
from pipeline.errors import BusyError, DataError, LineageError
from tests.conftest import ROOT

WRITER = """
import sys
from pathlib import Path
from pipeline.artifacts import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_folder(folder / "out") as temporary, atomic_file(folder / "out.json") as other:
    (temporary / "half").write_text("1")
    print("writing", flush=True)
    sys.stdin.read()
"""
HOLDER = """
import os, sys
from pathlib import Path
from pipeline.artifacts import exclusive
with exclusive(Path(sys.argv[1]), "holding this"):
    if sys.argv[2] == "forks" and os.fork() == 0:
        import time
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path):
    with python(WRITER, tmp_path) as writer:
        assert writer.stdout.readline() == "writing\n"
        temporary = set(tmp_path.iterdir())
        assert len(temporary) == 2
        for write in (atomic_file(tmp_path / "out.json"), atomic_folder(tmp_path / "out")):
            with write:
                pass
        assert temporary < set(tmp_path.iterdir()), "its writer lives"
        writer.kill()
    (tmp_path / ".out.json.editor-backup").touch()
    for write in (atomic_file(tmp_path / "out.json"), atomic_folder(tmp_path / "out")):
        with write:
            pass
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out", "out.json", ".out.json.editor-backup"}, "only what is ours"


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    path, flushed = tmp_path / "out", []

    def fsync(handle: int) -> None:
        flushed.append((str(Path(f"/proc/self/fd/{handle}").readlink()), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with write(path) as temporary:
        parts = [temporary]
        if write is atomic_folder:
            (temporary / "a").mkdir()
            (temporary / "a/b").write_text("1")
            parts += [temporary / "a", temporary / "a/b"]
    assert {Path(name) for name, there in flushed if not there} == set(parts)
    assert flushed[-1] == (str(tmp_path), True), "then the name itself"


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


def test_a_file_is_replaced_only_when_it_was_written_whole(tmp_path):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_only_when_it_was_written_whole(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:
        (temporary / "b").write_text("2")
        raise RuntimeError
    assert [child.name for child in path.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_is_named_by_what_was_being_written(tmp_path):
    for write in (atomic_file, atomic_folder):
        with pytest.raises(OSError, match="No space left on device") as caught, write(tmp_path / "out"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "\x80"])
def test_damaged_json_ends_in_one_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"x\.json is not readable as JSON"):
        read_json(path)


def test_a_table_keeps_types_order_and_lineage(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "index": np.arange(3),
        "energy": np.array([-1, 2, 0.5], np.float32),
        "group": np.array([0, 2, 1], np.int8),
    }
    write_table(path, columns, {"data": "abc"})
    read, lineage = read_table(path)
    assert lineage == {"data": "abc"}
    for name, values in columns.items():
        np.testing.assert_array_equal(read[name], values)
        assert read[name].dtype == values.dtype


def test_a_damaged_or_missing_table_ends_in_one_sentence(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="does not exist"):
        read_table(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_table(path)


def test_mixed_runs_are_refused_with_both_hashes(tmp_path):
    with pytest.raises(LineageError, match=r"teacher aaaa.*teacher in use is bbbb"):
        check_lineage(tmp_path / "energy.parquet", {"teacher": "aaaa"}, {"teacher": "bbbb"})
