"""OpenVINO's own benchmark_app with the settings that our runtime has, and what it says about the inference."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import EnergyKDError

_MEDIAN = re.compile(r"Median:\s+([\d.]+) (us|ms)")
# those that our runtime resolves and reports too
_SETTINGS = (
    "PERFORMANCE_HINT",
    "INFERENCE_NUM_THREADS",
    "INFERENCE_PRECISION_HINT",
    "NUM_STREAMS",
    "ENABLE_CPU_PINNING",
)


class BenchmarkAppError(EnergyKDError):
    """It ended without a latency."""


def run(model: Path, shape: tuple[int, ...], precision_hint: str, threads: int, seconds: float) -> dict[str, Any]:
    """``median_ms`` of an inference and the ``settings`` that it was compiled with.

    The threads are in a configuration file, as benchmark_app refuses them as an argument beside a performance hint.

    Raises:
        BenchmarkAppError: it is not installed, or failed.
    """
    program = Path(sys.executable).with_name("benchmark_app")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}}))
        command = [str(program), "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "latency"]
        command += ["-infer_precision", precision_hint, "-ip", "f32", "-op", "f32", "-shape", str(list(shape))]
        command += ["-t", f"{max(1, round(seconds))}", "-load_config", str(config)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BenchmarkAppError(f"{program} does not exist; install openvino into this environment") from error
    found = _MEDIAN.search(ended.stdout)
    if ended.returncode or found is None:
        lines = [line for line in ended.stdout.splitlines() if "ERROR" in line] or ["it gave no reason"]
        raise BenchmarkAppError(f"benchmark_app failed on {model} ({lines[0].strip()}); correct the arguments")
    value, unit = found.groups()
    return {"median_ms": float(value) / (1e3 if unit == "us" else 1), "settings": _settings(ended.stdout)}


def _settings(output: str) -> dict[str, str]:
    found = {name: re.search(rf"^\[ INFO \]\s+{name}: (.+)$", output, re.MULTILINE) for name in _SETTINGS}
    return {name: match.group(1).strip() for name, match in found.items() if match}
