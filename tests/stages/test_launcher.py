"""Stages in several processes, as `launcher` in params.yaml asks for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from pipeline.config import TEACHER
from pipeline.lineage import Places
from pipeline.store.json_files import read_json
from pipeline.store.paths import CARD
from tests.conftest import ROOT, STUDENT
from tests.e2e.repository import run_here, set_params

pytestmark = pytest.mark.e2e
# one epoch at a low rate: rounding errors, which differ with the number of processes, must not grow within the test
TRAINING = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "precision": "fp32"}
EPOCHS = 25  # of a run that is killed after its first, and again
SMALL = {
    "device": "cpu",
    "data.image_size": 8,
    "data.augmentation.crop.padding": 1,
    "data.max_images_per_class": 60,
    "teacher.network": "resnet8",
    "teacher.minimum_top1": 0.0,
    **{f"teacher.training.{key}": value for key, value in TRAINING.items()},
    **{f"distill.training.{key}": value for key, value in TRAINING.items()},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The digits, packed, with parameters small enough for a test."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, SMALL)
    run_here(folder, "prepare")
    return folder


@pytest.fixture
def workspace(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "workspace")


def start(folder: Path, stage: str, *network: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *network],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(folder: Path, stage: str, *network: str, expected: int = 0) -> str:
    """Standard error of the stage."""
    process = start(folder, stage, *network)
    out, error = process.communicate(timeout=300)
    assert process.returncode == expected, out + error
    return error


def losses(folder: Path, network: str) -> list[float]:
    curves = folder / Places().network(network).curves
    lines = (curves / "plots/metrics/train_loss.tsv").read_text().splitlines()
    return [float(line.split("\t")[1]) for line in lines[1:]]


def test_two_processes_distill_as_one(workspace, tmp_path):
    for stage in ("train_teacher", "score_energy", "build_subset"):
        run_here(workspace, stage)
    other = shutil.copytree(workspace, tmp_path / "other")
    set_params(other, {"launcher.processes": 2})
    run_here(workspace, "distill", STUDENT)
    run(other, "distill", STUDENT)
    assert losses(other, STUDENT) == pytest.approx(losses(workspace, STUDENT), abs=1e-3)
    cards = [read_json(folder / Places().network(STUDENT).weights / CARD) for folder in (workspace, other)]
    assert cards[0].keys() == cards[1].keys()
    one, two = (
        {path.relative_to(folder) for path in folder.rglob("*") if ".checkpoints" not in path.parts}
        for folder in (workspace, other)
    )
    assert one == two, "the same files, no logs of single processes"


def test_what_is_wrong_in_all_processes_is_said_once_with_exit_code_2(workspace):
    set_params(workspace, {"launcher.processes": 2, "teacher.training.batch_size": 1})
    error = run(workspace, "train_teacher", expected=2)
    assert error.count("error: ") == 1
    assert error.splitlines()[-1].startswith("error: a batch size of 1 cannot be divided among 2 processes")
    assert "Traceback" not in error
    assert not (workspace / "artifacts/teacher").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_process_of_a_stage_is_refused_and_told_of_the_first(workspace, processes):
    set_params(workspace, {"launcher.processes": processes, "teacher.training.epochs": 60})
    before = start(workspace, "train_teacher")
    lock = workspace / ".checkpoints/train_teacher.lock"
    deadline = time.monotonic() + 120
    try:
        while not (lock.exists() and lock.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        set_params(workspace, {"seed": 1})  # another run, which would write the same files
        error = run_here(workspace, "train_teacher", expected=2)
    finally:
        first = psutil.Process(before.pid)
        for process in [first, *first.children(recursive=True)]:  # torchrun's are in groups of their own
            process.kill()
    before.communicate()
    assert error == (
        f"error: process {before.pid} is already running stage train_teacher here (it holds "
        f".checkpoints/train_teacher.lock); wait for it or stop it with `kill {before.pid}`\n"
    )


def test_a_killed_run_ends_leaves_no_process_and_goes_on(workspace):
    set_params(workspace, {"launcher.processes": 2, "teacher.training.epochs": EPOCHS})
    kept = 0.0
    for victim, code in (("worker", 128 + signal.SIGKILL), ("launcher", 128 + signal.SIGTERM)):
        process = start(workspace, "train_teacher")
        deadline = time.monotonic() + 120
        while (now := newest(workspace.glob(".checkpoints/teacher-*/epoch.pt"))) <= kept:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        kept = now
        workers = psutil.Process(process.pid).children(recursive=True)
        training = [worker for worker in workers if "stages.train_teacher" in worker.cmdline()]
        assert len(training) == 2
        os.kill(process.pid if victim == "launcher" else training[1].pid, code - 128)
        _, error = process.communicate(timeout=120)
        assert process.returncode == code, error
        assert "Traceback" not in error
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
    set_params(workspace, {"launcher.processes": 1})
    run_here(workspace, "train_teacher")
    assert len(losses(workspace, TEACHER)) == EPOCHS


def newest(paths: Iterable[Path]) -> float:
    """When the last of them was written; 0 without any. A checkpoint may be replaced meanwhile."""
    times = [0.0]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)
