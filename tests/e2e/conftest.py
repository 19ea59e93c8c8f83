"""A finished run of two students, made once for all tests that need one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest

from tests.conftest import STUDENT, made_once
from tests.e2e.repository import git, stages_run
from tests.torture.clone import QUICK
from tests.torture.clone import clone as clone_repository

LARGE = "large"  # the second student
STUDENTS = {STUDENT: {}, LARGE: {"network": "resnet14"}}
SMALL = {
    **QUICK,
    "data.image_size": 8,
    "data.augmentation.crop.padding": 1,
    "data.imbalance_factor": 4.0,
    "evaluate.few_shot_below": 40,
    "export.precisions": ["fp32", "int8"],
    "students": STUDENTS,
    "teacher.network": "resnet8",
    "teacher.minimum_top1": 0.0,  # of one epoch
    "teacher.training.epochs": 1,
    "teacher.training.precision": "fp32",  # one that is chosen by timing may differ from run to run
    "distill.training.epochs": 1,
    "distill.training.precision": "fp32",
}


def of(name: str) -> list[str]:
    """The stages of a student."""
    return [f"{stage}@{name}" for stage in ("distill", "export", "evaluate")]


STAGES = [
    *("prepare", "train_teacher", "score_energy", "build_subset", "store_soft_labels"),
    *(stage for stages in zip(*map(of, STUDENTS), strict=True) for stage in stages),
    *("export_teacher", "evaluate_teacher", "benchmark", "report"),
]


@contextlib.contextmanager
def another_home(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
        patch.setenv("HOME", str(folder))
        yield


@pytest.fixture(scope="module")
def own_home(tmp_path_factory) -> Iterator[None]:
    """Where the lock of this machine lies: another measurement on it must not fail these tests."""
    with another_home(tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory) -> Path:
    """The files that git would clone, in a repository of their own, after a first `dvc repro`, which is committed."""

    def make(folder: Path) -> None:
        clone_repository(folder, SMALL)
        with another_home(tmp_path_factory.mktemp("home")):
            assert sorted(stages_run(folder)) == sorted(STAGES)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "two students")
        for key in ("name", "email"):
            git(folder, "config", f"user.{key}", "t")  # dvc commits experiments

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="module")
def finished(finished_once, own_home, tmp_path_factory) -> Path:
    """A copy for the tests of one file to work in."""
    return shutil.copytree(finished_once, tmp_path_factory.mktemp("finished") / "repository", symlinks=True)
