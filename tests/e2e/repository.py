"""A clone of this repository, and the commands that a user types in it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from dvc.repo import Repo

from pipeline.store.paths import PARAMS
from tests.stages.conftest import run_program_here
from tests.torture.clone import set_params as set_values

UP_TO_DATE = "Data and pipelines are up to date."


def set_params(folder: Path, values: dict[str, object], name: str = PARAMS.name) -> None:
    set_values(folder / name, values)


def command(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    result = subprocess.run(arguments, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def run_here(folder: Path, stage: str, *arguments: str, expected: int = 0) -> str:
    """Standard error of a stage's program, run inside this process."""
    with contextlib.chdir(folder):
        return run_program_here(stage, *arguments, expected=expected)


def git(folder: Path, *arguments: str) -> str:
    return command(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments).stdout


def stages_in(output: str) -> list[str]:
    """The stages that DVC says it ran, in order."""
    return re.findall(r"Running stage '(\S+)'", output)


def stages_run(folder: Path, *targets: str) -> list[str]:
    """The stages that one `dvc repro` ran, in order."""
    return stages_in(command(folder, "dvc", "repro", *targets).stdout)


def changed_stages(folder: Path, *targets: str) -> set[str]:
    """The stages that `dvc status` names."""
    with contextlib.chdir(folder), Repo() as repository:
        return set(repository.status([*targets]))


def snapshot(folder: Path) -> dict[str, bytes]:
    """All output files and their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for top in ("artifacts", "reports")
        for path in sorted((folder / top).rglob("*"))
        if path.is_file()
    }
