"""Training speed with GNU OpenMP's default against the spin limit of the stages, alone and beside a busy process.

python -m bench.openmp_spin [rounds]

Prints images/s of resnet20 training steps (batch 32, 32x32, all cores), the median of interleaved rounds, each in a
fresh process, and the ratio of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 20
SETTINGS: dict[str, dict[str, str]] = {"default": {}, "spin 1000": {"GOMP_SPINCOUNT": "1000"}}


def train() -> float:
    """Images/s of training in this process."""
    import torch  # noqa: PLC0415  the setting is read when torch is imported
    import torch.nn.functional as F  # noqa: PLC0415

    import models  # noqa: PLC0415

    network = models.build("resnet20", 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (32,))
    for step in range(STEPS + 3):
        if step == 3:
            start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return STEPS * len(images) / (time.perf_counter() - start)


def measure(setting: dict[str, str]) -> float:
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | setting
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    # run as a file and not as a module, because importing the package bench sets the limit
    command = [sys.executable, __file__, "--once"]
    return float(subprocess.check_output(command, env=environment))


def main(rounds: int) -> None:
    from bench.common import interleaved  # noqa: PLC0415  it imports torch

    for load in ("alone", "beside a busy process"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load != "alone" else None
        try:
            samples = interleaved({name: lambda s=setting: measure(s) for name, setting in SETTINGS.items()}, rounds)
        finally:
            if busy is not None:
                busy.kill()
        medians = {name: statistics.median(values) for name, values in samples.items()}
        shown = ", ".join(f"{name} {value:.0f} images/s" for name, value in medians.items())
        print(f"{load}: {shown}; ratio {medians['spin 1000'] / medians['default']:.2f} (median of {rounds})")


if __name__ == "__main__":
    if sys.argv[1:] == ["--once"]:
        print(train())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
