"""Crash safety: kills at random moments of every stage, and what the next `dvc repro` makes of it.

python -m bench.torture [--moments 25] [--seed 0] [--out docs/results/torture]

A small run is let alone; then copies of it are killed: the stage, dvc, or the whole process group with SIGKILL, at
moments drawn over the duration of each stage. `dvc repro` is repeated until it ends well, and what it has written is
compared with the undisturbed run, byte for byte. Exit code 1 if anything was not recovered, not identical or left
behind.
"""

from __future__ import annotations

# the stages' OpenMP setting, which is read when torch is imported
import stages  # noqa: F401

# isort: split
import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from bench import machine
from bench.torture import checkpoint_cost
from bench.torture.clone import MEASURED, ROOT
from bench.torture.kill import STAGES, Kill, Moment, Pass, Undisturbed, moments, undisturbed
from bench.torture.others import CHECKS, Outcome
from pipeline.config import load_params
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json
from stages.common import progress, run_program

_NETWORKS = ("resnet8", "resnet20")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=25, help="kills; default 25")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    parser.add_argument("--jobs", type=int, default=1, help="passes through the pipeline at the same time; default 1")
    parser.add_argument("--out", type=Path, help="write the result here too, with .md and .json appended")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "bench.torture", *arguments])
    run_program(lambda: _run(options, command))


def _run(options: argparse.Namespace, command: str) -> None:
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = Path(temporary)
        before = machine.load()
        with progress("torture", options.moments, "kill") as advance:
            expected = undisturbed(work / "undisturbed")
            kills, problems = torture(
                work, moments(options.moments, options.seed), expected, lambda kill: advance(1), options.jobs
            )
        others = [check(work / f"other{number}", expected) for number, check in enumerate(CHECKS)]
        training = load_params(ROOT / "params.yaml").teacher.training
        costs = checkpoint_cost.measure(
            expected.folder / "artifacts/data", _NETWORKS, training, expected.folder / "artifacts"
        )
        result = {
            "schema": 1,
            "command": command,
            "seed": options.seed,
            "stage_seconds": dict(expected.seconds),
            "kills": [asdict(kill) for kill in kills],
            "others": [asdict(other) for other in others],
            "problems": problems,
            "checkpoints": [asdict(cost) | {"share": cost.share} for cost in costs],
            "machine": machine.facts(torch.device("cpu")) | {"load_before": before, "load_after": machine.load()},
        }
    text = report(command, expected, kills, others, costs, problems)
    print(text)
    if options.out is not None:
        write_json(options.out.with_name(options.out.name + ".json"), result)
        with atomic_file(options.out.with_name(options.out.name + ".md")) as file:
            file.write_text(text, encoding="utf-8")
    if problems or not all(other.passed for other in others):
        sys.exit(1)


def torture(
    work: Path, planned: Sequence[Moment], expected: Undisturbed, on_kill: Callable[[Kill], None], jobs: int = 1
) -> tuple[list[Kill], list[str]]:
    """Kill at each moment, once a stage in each pass through the pipeline; the order is that of the moments."""
    parts = [planned[start : start + len(STAGES)] for start in range(0, len(planned), len(STAGES))]
    passes = [Pass(work / f"pass{number}", part, expected, on_kill) for number, part in enumerate(parts)]
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(each.run) for each in passes]:
            done.result()
    return [kill for each in passes for kill in each.kills], [text for each in passes for text in each.problems]


def report(
    command: str,
    expected: Undisturbed,
    kills: Sequence[Kill],
    others: Sequence[Outcome],
    costs: Sequence[checkpoint_cost.Cost],
    problems: Sequence[str],
) -> str:
    compared = [kill.identical for kill in kills if kill.identical is not None]
    lines = [
        "# Killed at random moments",
        "",
        f"`{command}`: the stage, dvc, or the whole process group is killed with SIGKILL; `dvc repro` is repeated "
        "until it ends well, and every file of the stage is compared with an undisturbed run in another folder, byte "
        f"for byte. The stages {' and '.join(MEASURED)} hold times and are not compared.",
        "",
        f"**{len(kills)} kills, {sum(kill.recovered for kill in kills)} recovered, {sum(compared)} of {len(compared)} "
        f"identical, {sum('named' in kill.orphan for kill in kills)} stages left behind were named, "
        f"{sum(kill.mended for kill in kills)} kills cut a file of dvc short, which `make repro` mended.**",
        "",
        "| stage | killed | after, s | of, s | left behind | recovered | identical |",
        "|---|---|---|---|---|---|---|",
    ]
    for kill in kills:
        same = "times" if kill.identical is None and kill.stage in MEASURED else _word(bool(kill.identical))
        lines.append(
            f"| {kill.stage} | {kill.victim} | {kill.after_seconds:.2f} | {expected.seconds[kill.stage]:.2f} "
            f"| {kill.orphan or '-'} | {_word(kill.recovered)}{' (`make repro`)' if kill.mended else ''} | {same} |"
        )
    lines += ["", "| beside kills | passed | what was seen |", "|---|---|---|"]
    lines += [f"| {other.name} | {_word(other.passed)} | {other.seen} |" for other in others]
    lines += [
        "",
        "Writing checkpoints, each of which is on the disk before training goes on; wanted is a share of the training "
        f"time of at most {checkpoint_cost.TARGET:.0%}:",
        "",
        "| network | images | epochs | checkpoint, kB | training, s | writing, ms | share |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.network} | {cost.images:,} | {cost.epochs} | {cost.size_bytes / 1e3:.0f} | {cost.seconds:.1f} "
        f"| {1e3 * cost.saving_seconds:.0f} | {cost.share:.2%} |"
        for cost in costs
    ]
    if problems:
        lines += ["", "## Not as it should be", "", *(f"- {problem}" for problem in problems)]
    return "\n".join([*lines, ""])


def _word(value: bool) -> str:
    return "yes" if value else "**no**"


if __name__ == "__main__":
    main(sys.argv[1:])
