"""Peak memory of one arm, in a process of its own.

python -m bench.memory ARM SETTING    (the setting as JSON)

prints JSON: resident memory of the process when all is imported, and at its highest, or the same of the GPU's memory
that torch has given out, in MiB. Worker processes of a loader are not in it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from bench.arms import ARMS
from bench.measure import table
from bench.setting import ROOT, Setting


def measure(arms: Sequence[str], setting: Setting) -> dict[str, dict[str, float]]:
    """Memory of each arm, MiB: ``imported`` and ``peak``, each in a fresh child process, all at once."""
    with ThreadPoolExecutor(len(arms)) as pool:
        return dict(zip(arms, pool.map(lambda arm: _in_child(arm, setting), arms), strict=True))


def memory_table(peaks: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of :func:`measure` by arm, in Markdown."""
    return table(
        ("peak memory, MiB", "imported", "peak", "added"),
        (
            (arm, f"{found['imported']:,.0f}", f"{found['peak']:,.0f}", f"{found['peak'] - found['imported']:,.0f}")
            for arm, found in peaks.items()
        ),
    )


def _in_child(arm: str, setting: Setting) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.memory", arm, json.dumps(asdict(setting))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _child(arm: str, setting: Setting) -> dict[str, float]:
    imported = _mebibytes("VmRSS") if setting.device == "cpu" else torch.cuda.memory_allocated() / 2**20
    ARMS[arm](setting)()
    peak = _mebibytes("VmHWM") if setting.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"imported": round(imported, 1), "peak": round(peak, 1)}


def _mebibytes(key: str) -> float:
    # getrusage would give the parent's peak where that is higher: Linux hands it on through exec
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, key  # noqa: S101  every Linux has both
    return int(found[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], Setting(**json.loads(sys.argv[2])))))
