from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.portable.files import atomic_file, atomic_folder, read_object, remove_all_leftovers, write_object
from tests.processes import python

WRITER = """
import sys
from pathlib import Path
from pipeline.portable.files import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_folder(folder / "out") as temporary, atomic_file(folder / "out.json") as other:
    (temporary / "half").write_text("1")
    print("writing", flush=True)
    sys.stdin.read()
"""


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
        writer.wait()
    (tmp_path / ".out.json.editor-backup").touch()
    for write in (atomic_file(tmp_path / "out.json"), atomic_folder(tmp_path / "out")):
        with write:
            pass
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out", "out.json", ".out.json.editor-backup"}, "only what is ours"


def test_what_killed_writers_left_in_a_folder_is_removed_though_nobody_writes_it_again(tmp_path):
    inner = tmp_path / "artifacts/deep"
    inner.mkdir(parents=True)
    with python(WRITER, inner) as writer:
        assert writer.stdout.readline() == "writing\n"
        (inner / ".gitignore").touch()
        remove_all_leftovers(tmp_path)
        assert len(list(inner.iterdir())) == 3, "its writer lives"
        writer.kill()
        writer.wait()
    remove_all_leftovers(tmp_path)
    assert [path.name for path in inner.iterdir()] == [".gitignore"]


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


def test_a_file_is_replaced_only_when_it_was_written_whole(tmp_path):
    path = tmp_path / "out.json"
    write_object(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_object(path) == {"a": 1}
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


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"a": ', b"\xff", b"[" * 100_000])
def test_what_holds_no_object_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_object(tmp_path / "a.json") is None
