"""What a program says: no stream makes it fail, and a log file keeps it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stages import output
from tests.conftest import ROOT

PROGRAM = """
import logging, sys
from pipeline.errors import DataError
from stages.common import run_program
from stages.progress import progress
def program():
    with progress("score_energy", 2, "image") as advance:
        advance(1)
        logging.warning("class %s is rare", "caf\\xe9 \\U0001f600")
        advance(1)
    print("energy of", end=" ")
    print("2 images of \\U0001f600")
    if sys.argv[1] == "error":
        raise DataError("data is gone; restore it")
    if sys.argv[1] == "defect":
        raise KeyError("nothing")
run_program(program, log="score_energy")
open("artifact", "w").write("whole")
"""
SAID = ["WARNING: class café 😀 is rare", r"score_energy 100% in 00:00, [\d,]+ images/s", "energy of 2 images of 😀"]


def run(
    folder: Path, how: str = "", shell: str = "exec", code: int = 0, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        ["bash", "-c", f'{shell} "$0" -c "$1" "$2"', sys.executable, PROGRAM, how],  # noqa: S607
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def logged(folder: Path) -> list[str]:
    """Lines of the log, without their times."""
    lines = (folder / ".checkpoints/logs/score_energy.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


def assert_logged(folder: Path, *further: str) -> None:
    begin, *said = logged(folder)
    assert re.fullmatch(r"---- score_energy begins, process \d+", begin)
    assert len(said) == len(SAID) + len(further)
    for line, pattern in zip(said, (*SAID, *further), strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "utf-8"])
def test_any_text_can_be_written_in_any_encoding_and_is_logged_as_it_is(tmp_path, encoding):
    done = run(tmp_path, PYTHONIOENCODING=encoding)
    shown = "😀" if encoding == "utf-8" else r"\U0001f600"
    assert f"energy of 2 images of {shown}\n" == done.stdout.decode(encoding.partition(":")[0])
    assert_logged(tmp_path)


@pytest.mark.parametrize(
    "shell",
    [
        "exec 1>&- 2>&-;",
        "exec 0<&- 1>&-;",
        "exec 1>/dev/full 2>&1;",
        "exec > >(true) 2>&1; sleep 0.1;",  # a reader that has gone, as head has
    ],
)
def test_streams_that_take_nothing_stop_nothing(tmp_path, shell):
    run(tmp_path, shell=shell)
    assert_logged(tmp_path)
    assert (tmp_path / "artifact").read_text() == "whole"


def test_the_error_is_logged(tmp_path):
    run(tmp_path, "error", code=2)
    assert_logged(tmp_path, "error: data is gone; restore it")


def test_the_traceback_of_a_defect_is_logged_and_a_new_run_is_appended(tmp_path):
    run(tmp_path, "defect", code=1)
    assert logged(tmp_path)[-1] == "KeyError: 'nothing'"
    assert "Traceback (most recent call last):" in logged(tmp_path)
    run(tmp_path)
    assert [line[:24] for line in logged(tmp_path)].count("---- score_energy begins") == 2


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / ".checkpoints").write_text("a file")
    said = run(tmp_path).stderr.decode()
    assert said.count("score_energy.log cannot be written (") == 1
    assert "; the stage goes on without it\n" in said
    assert [line.partition(": ")[0] for line in said.splitlines() if "WARN" in line] == ["WARNING"] * 2
    assert (tmp_path / "artifact").exists()


def test_a_full_pipe_that_lets_no_writer_wait_gets_all_lines_in_the_end():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    said = b"x" * 2 * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    found = bytearray()

    def read() -> None:
        while len(found) < len(said) and (part := os.read(reading, 65536)):
            found.extend(part)

    reader = threading.Timer(0.1, read)
    reader.start()
    with os.fdopen(writing, "wb", 0), output._Stream(writing, "utf-8") as stream:
        stream.write(said.decode())
        stream.flush()
    reader.join()
    os.close(reading)
    assert found == said


def test_of_several_processes_the_first_alone_is_logged_and_begins_no_further_run(tmp_path):
    run(tmp_path, RANK="1")
    assert not (tmp_path / ".checkpoints").exists()
    run(tmp_path, RANK="0")
    assert len(logged(tmp_path)) == len(SAID)


def test_a_long_log_begins_anew_and_the_last_one_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_LARGEST", 100)
    log = output._Log()
    log.path = tmp_path / "stage.log"
    for number in range(30):
        log.add(f"line {number:3}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.log", "stage.log.1"]
    assert all(path.stat().st_size < 130 for path in tmp_path.iterdir())
    assert "line  29" in (tmp_path / "stage.log").read_text()


def test_a_log_that_another_process_has_just_moved_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(output, "_LARGEST", 10)
    log = output._Log()
    log.path = tmp_path / "stage.log"
    log.add("first")
    move = Path.replace

    def moved_before(path: Path, target: str) -> Path:
        move(path, target)
        return move(path, target)

    monkeypatch.setattr(Path, "replace", moved_before)
    log.add("second")
    assert "second" in (tmp_path / "stage.log").read_text()
    assert "first" in (tmp_path / "stage.log.1").read_text()
    assert caplog.text == ""
