"""A running `dvc repro`: which stage it is at, since when, and which processes belong to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from tests.torture.clone import environment

_RUNNING = re.compile(r"Running stage '(\S+)'")


class Repro:
    """Starts `dvc repro` in a process group of its own.

    Attributes:
        begun: stages in the order in which they began, each with the moment (time.monotonic).
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.begun: list[tuple[str, float]] = []
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            ["dvc", "repro", *arguments],  # noqa: S607  this environment's, which is first in the path
            cwd=folder,
            env=environment(folder),
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # for the type
        for line in self.process.stdout:
            if found := _RUNNING.search(line):
                self.begun.append((found[1], time.monotonic()))
            self._lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float = 900) -> int:
        """Its exit code; the output is complete then, unless what it started lives on."""
        code = self.process.wait(seconds)
        self._reader.join(1)
        return code

    def kill(self, victim: str) -> tuple[str, psutil.Process | None]:
        """SIGKILL the stage, dvc or the whole group.

        Returns:
            what was killed, which is dvc where no stage process was, as between two stages and while dvc caches
            outputs; and what of dvc's lives on: the stage or, where that had not begun, the shell that dvc starts
            stages in, which some shells do not leave.
        """
        family = self._family()
        stage = next(filter(_is_stage, family), None)
        if victim == "stage" and stage is not None:
            stage.kill()
        elif victim == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
            self.wait()
            return "dvc", next(filter(alive, family[:1] if stage is None else [stage]), None)
        self.wait()
        return victim, None

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return []


def _is_stage(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("stages.") for word in process.cmdline())
    except psutil.Error:
        return False


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """The command that `make repro` runs before `dvc repro`."""
    command = [sys.executable, "-m", "stages.check"]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def belongs(pid: int, process: psutil.Process) -> bool:
    """Whether ``pid`` is that process or descends from it."""
    try:
        return pid == process.pid or process.pid in [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return False


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
