"""Crash safety: kills at random moments of every stage, and what the next `dvc repro` makes of it.

python -m tests.torture [--moments 25] [--seed 0] [--out docs/results/torture]

A small run is let alone; then copies of it are killed: the stage, dvc, or the whole process group with SIGKILL, at
moments drawn over the duration of each stage. `dvc repro` is repeated until it ends well, and what it has written is
compared with the undisturbed run, byte for byte. Exit code 1 if anything was not recovered, not identical or left
behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.common import Result, run, table
from stages.progress import progress
from tests.torture.checks import CHECKS, checkpoint_costs
from tests.torture.clone import MEASURED, STAGES
from tests.torture.kill import Pass, moments, undisturbed

_MOST_SAVING = 0.02  # of the training time


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=25, help="kills; default 25")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--jobs", type=int, default=1, help="passes through the pipeline at the same time; default 1")
    result = run(parser, arguments, measure, report)
    sys.exit(1 if result["problems"] or not all(check["passed"] for check in result["others"]) else 0)


def measure(options: argparse.Namespace) -> Result:
    planned = moments(options.moments, options.seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = Path(temporary)
        with progress("torture", len(planned), "kill") as advance:
            expected = undisturbed(work / "undisturbed")
            # each stage is killed once in a pass
            parts = [planned[start : start + len(STAGES)] for start in range(0, len(planned), len(STAGES))]
            passes = [
                Pass(work / f"pass{number}", part, expected, lambda kill: advance(1))
                for number, part in enumerate(parts)
            ]
            with ThreadPoolExecutor(options.jobs) as pool:
                list(pool.map(Pass.run, passes))
        others = [check(work / f"other{number}", expected) for number, check in enumerate(CHECKS)]
        costs = checkpoint_costs(expected)
    return {
        "seed": options.seed,
        "stage_seconds": dict(expected.seconds),
        "kills": [asdict(kill) for each in passes for kill in each.kills],
        "others": others,
        "problems": [problem for each in passes for problem in each.problems],
        "checkpoints": costs,
    }


def report(result: Mapping[str, Any]) -> str:
    kills, seconds = result["kills"], result["stage_seconds"]
    compared = [kill["identical"] for kill in kills if kill["identical"] is not None]
    killed = table(
        ("stage", "killed", "after, s", "of, s", "left behind", "recovered", "identical"),
        (
            (
                kill["stage"],
                kill["victim"],
                f"{kill['after_seconds']:.2f}",
                f"{seconds[kill['stage']]:.2f}",
                kill["orphan"] or "-",
                _word(kill["recovered"]) + (" (`make repro`)" if kill["repaired"] else ""),
                "times" if kill["identical"] is None and kill["stage"] in MEASURED else _word(bool(kill["identical"])),
            )
            for kill in kills
        ),
    )
    others = ((other["name"], _word(other["passed"]), other["seen"]) for other in result["others"])
    costs = (
        (
            cost["network"],
            f"{cost['images']:,}",
            cost["epochs"],
            f"{cost['size_bytes'] / 1e3:.0f}",
            f"{cost['seconds']:.1f}",
            f"{1e3 * cost['saving_seconds']:.0f}",
            f"{cost['share']:.2%}",
        )
        for cost in result["checkpoints"]
    )
    problems = "".join(f"- {problem}\n" for problem in result["problems"])
    return f"""# Killed at random moments

`{result["command"]}`: the stage, dvc, or the whole process group is killed with SIGKILL; `dvc repro` is repeated \
until it ends well, and every file of the stage is compared with an undisturbed run in another folder, byte for byte. \
The stages {" and ".join(MEASURED)} hold times and are not compared.

**{len(kills)} kills, {sum(kill["recovered"] for kill in kills)} recovered, {sum(compared)} of {len(compared)} \
identical, {sum("named" in kill["orphan"] for kill in kills)} stages left behind were named, \
{sum(kill["repaired"] for kill in kills)} kills cut a file of dvc short, which `make repro` repaired.**

{killed}

{table(("beside kills", "passed", "what was seen"), others)}

Writing checkpoints, each of which is on the disk before training goes on; wanted is a share of the training time of \
at most {_MOST_SAVING:.0%}:

{table(("network", "images", "epochs", "checkpoint, kB", "training, s", "writing, ms", "share"), costs)}
{f"{chr(10)}## Not as it should be{chr(10)}{chr(10)}{problems}" if problems else ""}"""


def _word(value: bool) -> str:
    return "yes" if value else "**no**"


if __name__ == "__main__":
    main(sys.argv[1:])
