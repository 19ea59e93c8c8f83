"""A worker process: how it is started, how long it may take, and what its end says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.device.benchmark.worker import EXIT_MODEL_FILE, EXIT_UNAVAILABLE
from pipeline.device.errors import DeviceError

_KIND_OF_EXIT = {EXIT_UNAVAILABLE: "unavailable", EXIT_MODEL_FILE: "model_file"}

UNTIMED = frozenset({"accuracy", "memory"})


class WorkerError(DeviceError):
    """One sentence, and its kind: "unavailable", "model_file", "timeout" or "failed"."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def run_worker(job: dict[str, Any], *, limit_seconds: float, name: str) -> dict[str, Any]:
    """The result of a job in a fresh process.

    Args:
        name: of the worker in messages.

    Raises:
        WorkerError: one sentence with the last line that the worker wrote to standard error.
    """
    # The folder, or the archive, that holds the package which this file is part of.
    root = Path(__file__).parents[3].resolve()
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = Path(job["output"])
    output.unlink(missing_ok=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.device.benchmark.worker"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit_seconds,
            check=False,
            cwd=root if root.is_dir() else None,
            env={**_patience(job["pass"]), **os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        message = (
            f"{name} did not end within {limit_seconds:g} s; give the measurement more time or use a smaller model."
        )
        raise WorkerError(message, "timeout") from None
    if ended.returncode:
        kind = _KIND_OF_EXIT.get(ended.returncode, "failed")
        raise WorkerError(f"{name} ended {_manner(ended.returncode)}: {_last_line(ended.stderr)}", kind)
    try:
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"{name} left no result ({error}).", "failed") from error
    return result


def _patience(kind: str) -> dict[str, str]:
    """Settings for a pass in which nothing is timed.

    Idle threads of GNU OpenMP spin for milliseconds; beside another program they hold the core that the thread with the
    work waits for, and a pass of a second takes minutes. What is timed is timed as the runtime is delivered.
    """
    return {"GOMP_SPINCOUNT": "1000"} if kind in UNTIMED else {}


def _manner(code: int) -> str:
    # A process that ran out of memory was ended by signal 9.
    return f"with exit code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing to standard error."
