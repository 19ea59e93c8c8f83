"""One measurement that needs a GPU, in parts that are kept: call it again to go on.

python -m bench.gpu ITEM [--minutes M] [--jobs N] [--state FOLDER] [--data FOLDER] [--out docs/results/NAME]

The exit code is 75 where the time was up before the end; docs/gpu.md says what each item measures. Without a GPU it
runs on the CPU.
"""

from __future__ import annotations

# the stages' OpenMP setting, which is read when torch is imported
import stages  # noqa: F401

# isort: split
import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.gpu import latency, packing, runs, speed, studies
from bench.gpu.call import Call, TimeUp
from pipeline.compute import choose_device
from pipeline.lock import exclusive
from stages.common import run_program

STOPPED = os.EX_TEMPFAIL
ITEMS: dict[str, Callable[[Call], str]] = {
    "runs": runs.run,
    "speed": speed.steps,
    "scoring": speed.forwards,
    "direction": partial(studies.run, "tiny100_direction"),
    "heda": partial(studies.run, "tiny100_heda"),
    "longtail": partial(studies.run, "tiny100_lt100"),
    "published": studies.published,
    "latency": latency.run,
    "packing": packing.run,
}


def main(arguments: Sequence[str]) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("item", choices=ITEMS)
    parser.add_argument("--minutes", type=_minutes, default=math.inf, help="stop after so many; default: at the end")
    parser.add_argument("--state", type=Path, default=Path(".gpu/state"), help="folder of what is finished")
    parser.add_argument("--data", type=Path, help="folder of images, in place of the measurement's own; docs/gpu.md")
    parser.add_argument("--out", type=Path, help="write the result here too, with .md and .json appended")
    parser.add_argument("--jobs", type=_count, default=1, help="runs of a study at the same time; default 1")
    parser.add_argument("--seeds", type=_count, help="the first so many seeds of a study, for a table before its end")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny networks, few images, no meaning")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "bench.gpu", *arguments])
    run_program(partial(_run, options, begun + 60 * options.minutes, command))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes")
    return minutes


def _run(options: argparse.Namespace, ends: float, command: str) -> None:
    asked = {name: getattr(options, name) for name in ("item", "state", "data", "out", "jobs", "seeds", "quick")}
    call = Call(**asked, device=choose_device("auto"), ends=ends, command=command)
    with exclusive(call.state / f"{call.name}.lock", f"measuring {call.item} with this state"):
        try:
            print(ITEMS[call.item](call))
        except TimeUp as stopped:
            print(f"the time is up at: {stopped}; the same command goes on from {call.state}")
            sys.exit(STOPPED)


if __name__ == "__main__":
    main(sys.argv[1:])
