"""A stage that runs short of something or is stopped: one sentence, an exit code, and nothing half-written."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.pixels import StreamedPixels
from pipeline.errors import SpaceError
from pipeline.lineage import Places
from pipeline.store.paths import LOGS
from pipeline.store.space import SMALL, require_space
from stages.common import run_program
from tests.conftest import ROOT, STUDENT, squashed
from tests.e2e.repository import run_here, set_params, snapshot
from tests.e2e.test_repro import INFRASTRUCTURE, add_comment, copy_code

EXPORT, LOCK = Places().network(STUDENT).export, ".checkpoints/export-student.lock"
STOPPED = "stopped by SIGTERM; run the same command again to go on\n"
PROGRAM = """
import os, sys, time
from pathlib import Path
from pipeline.portable.files import atomic_folder
from stages.common import run_program
def program():
    with atomic_folder(Path(sys.argv[1])) as temporary:
        (temporary / "half").write_text("1")
        child = os.fork()
        os.write(1, f"{child}\\n".encode())
        for _ in range(600):  # Python answers a signal that comes just before a sleep only after it
            time.sleep(0.1)
run_program(program)
"""
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
# run in a namespace of its own, with a disk of its own: what is there already fits, and so many bytes more
SMALL_DISK = """
import os, shutil, subprocess, sys
source, disk, room, flags, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
shutil.copytree(source, disk, dirs_exist_ok=True)
usage = os.statvfs(disk)
used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
subprocess.run(["mount", "-o", f"remount,{flags},size={used + int(room)}", disk], check=True)
code = subprocess.run(command, cwd=disk).returncode
subprocess.run(["mount", "-o", "remount,rw,size=100%", disk], check=True)
shutil.copytree(disk, source + "-after")
sys.exit(code)
"""
UNCHECKED = """
import runpy, sys
import pipeline.store.space
pipeline.store.space.require_space = lambda *arguments, **others: None  # the disk fills up later, by another program
runpy.run_module(f"stages.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
"""


def can_mount() -> bool:
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, check=False, capture_output=True).returncode


needs_mount = pytest.mark.skipif(not can_mount(), reason="this user may not mount a small disk")


def started(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        **options,
    )


def forked(process: subprocess.Popen[str]) -> int:
    """The child's number, once both are there."""
    return max(int(process.stdout.readline()) for _ in range(2))


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_stopped_program_leaves_nothing_half_written_and_says_so_once(tmp_path, whole_group):
    process = started(PROGRAM, tmp_path / "out", start_new_session=True)
    child = forked(process)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGTERM)  # as timeout(1) does
    else:
        os.kill(child, signal.SIGTERM)  # a forked process dies of it without a word
        os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error == STOPPED
    assert not list(tmp_path.iterdir())


def test_a_second_signal_on_the_way_out_does_not_change_the_exit_code(tmp_path):
    process = started("import atexit, time\natexit.register(time.sleep, 2)\n" + PROGRAM, tmp_path / "out")
    child = forked(process)
    os.kill(child, signal.SIGKILL)
    os.kill(process.pid, signal.SIGTERM)
    assert process.stderr.readline() == STOPPED
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.communicate()


def test_a_program_under_nohup_outlives_its_terminal(tmp_path):
    process = started(PROGRAM, tmp_path / "out", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    child = forked(process)
    os.kill(process.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    for pid in (child, process.pid):
        os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.mark.e2e
@pytest.mark.usefixtures("one_thread")
def test_a_stopped_training_goes_on_to_the_same_bytes_after_comments_in_code_that_decides_no_number(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    copy_code(stopped)
    shutil.copy(ROOT / "params.yaml", stopped)
    set_params(stopped, {"device": "cpu", "data.image_size": 8, "data.augmentation.crop.padding": 1})
    set_params(stopped, {"teacher.training.precision": "fp32"})  # one that is chosen may differ from run to run
    set_params(stopped, {"teacher.network": "resnet8", "teacher.minimum_top1": 0.0, "teacher.training.epochs": 5})
    run_here(stopped, "prepare")
    shutil.copytree(stopped, whole)
    process = stage(stopped, "train_teacher")
    deadline = time.monotonic() + 300
    while not list(stopped.glob(".checkpoints/teacher-*/epoch.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert error.endswith(STOPPED)
    assert "Traceback" not in error
    assert not (stopped / "artifacts/teacher").exists()
    assert not list(stopped.rglob(".epoch.pt.*"))
    for name in INFRASTRUCTURE:
        add_comment(stopped / name)
    process = stage(stopped, "train_teacher")
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    run_here(whole, "train_teacher")
    assert len(list(stopped.glob(".checkpoints/teacher-*.lock"))) == 1, "it began anew under another key"
    assert snapshot(stopped) == snapshot(whole)


def stage(folder: Path, name: str) -> subprocess.Popen[str]:
    """Begin a stage, with the code in ``folder`` where it holds any."""
    return started(f"import runpy; runpy.run_module('stages.{name}', run_name='__main__')", cwd=folder)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "the main memory does not suffice (MemoryError); lower batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the main memory does not suffice ([Errno 12]"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0"),
            "the memory of the GPU does not",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"),
            "a process that decodes images was ended",
        ),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that"),
            "enlarge /dev/shm (docker run --shm-size), or set data.storage to packed",
        ),
    ],
)
def test_memory_that_does_not_suffice_is_one_sentence(error, words, capsys):
    assert words in ended(error, capsys)


def test_an_array_and_a_tensor_larger_than_memory_are_one_sentence(capsys):
    for make in (lambda: np.zeros(2**57), lambda: torch.zeros(2**57)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            make()
        assert "the main memory does not suffice (" in ended(caught.value, capsys)


def ended(error: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_program(fail)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_an_error_of_torch_that_is_a_defect_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="mat1"):
        run_program(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))


@pytest.fixture
def files(tmp_path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    return [str(path) for path in paths]


def test_a_killed_worker_of_the_loader_is_one_sentence(files, capsys):
    def killed() -> None:
        batches = StreamedPixels(files, squashed(64), torch.device("cpu"), 0).fetch([torch.arange(8)] * 500)
        next(batches)
        multiprocessing.active_children()[0].kill()
        for _ in batches:
            time.sleep(0.01)

    with pytest.raises(RuntimeError) as caught:
        killed()
    assert "a process that decodes images was ended from outside" in ended(caught.value, capsys)


FETCH = """
import sys, torch
import pipeline.data.pixels as pixels
from stages.common import run_program
from tests.conftest import squashed
if sys.argv[1] == "late":
    pixels._check_shared_memory = lambda needed: None
def program():
    for _ in pixels.StreamedPixels(sys.argv[2:], squashed(64), torch.device("cpu"), 0).fetch([torch.arange(8)] * 40):
        pass
run_program(program)
"""


@needs_mount
@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("early", "the images that are decoded ahead need "),
        ("late", "the shared memory in which decoded images are handed over is full (RuntimeError: unable to allocate"),
    ],
)
def test_too_little_shared_memory_is_one_sentence(files, moment, words):
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    command = [*NAMESPACE, *mounted, sys.executable, "-c", FETCH, moment, *files]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"error: {words}")
    assert "/dev/shm" in result.stderr  # noqa: S108
    assert "(docker run --shm-size)" in result.stderr
    assert result.stderr.count("\n") == 1


def on_small_disk(folder: Path, room: int, flags: str, tmp_path: Path, *stage: str) -> tuple[str, dict[str, bytes]]:
    """Output of a stage on a disk with little room, and all files after it."""
    (tmp_path / "disk").mkdir()
    command = [*NAMESPACE, sys.executable, "-c", SMALL_DISK, str(folder), str(tmp_path / "disk"), str(room), flags]
    result = subprocess.run(
        [*command, sys.executable, "-c", UNCHECKED, *stage],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    after = folder.with_name(f"{folder.name}-after")
    return result.stderr.splitlines()[-1], {
        path.relative_to(after).as_posix(): path.read_bytes()
        for path in after.rglob("*")
        if path.is_file() and path.parent.name != LOGS.name
    }


@needs_mount
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("room", "flags", "words"),
    [
        (200_000, "rw", f"error: {EXPORT}: No space left on device; free space there"),  # torch's own writer
        (900_000, "rw", f"error: {EXPORT}: No space left on device; free space there"),  # OpenVINO's
        (2**24, "ro", f"error: {LOCK}: Read-only file system; run on a disk that can be written"),
    ],
)
def test_a_disk_that_fills_up_or_is_read_only_leaves_the_earlier_export(exported, tmp_path, room, flags, words):
    set_params(exported, {"export.openvino": True, "export.precisions": ["fp32"]})
    (exported / ".checkpoints").mkdir(exist_ok=True)
    (exported / LOCK).touch()
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file() and path.suffix != ".lock"}
    said, after = on_small_disk(exported, room, flags, tmp_path, "export", STUDENT)
    assert said.startswith(words)
    after.pop(LOCK)
    assert after == {path.relative_to(exported).as_posix(): content for path, content in before.items()}


def test_outputs_that_the_disk_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(
        "pipeline.store.space.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10 + SMALL})()
    )
    path = tmp_path / "not/there"
    require_space(path, 10, "the weights", output=10)
    with pytest.raises(SpaceError, match=rf"^the weights need 1\.0 MB, but {tmp_path} has 1\.0 MB free; free space"):
        require_space(path, 11, "the weights")
    monkeypatch.setenv("DVC_STAGE", "train_teacher")
    require_space(path, 10, "the weights", output=10)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(SpaceError):
        require_space(path, 10, "the weights", output=10)
    (tmp_path / ".dvc/config.local").write_text("[cache]\n    dir = /elsewhere\n")
    require_space(path, 10, "the weights", output=10)
