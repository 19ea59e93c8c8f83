"""Feeds every reader of other people's files with damaged and hostile ones: `make fuzz`.

python -m tests.fuzz [--cases 10000] [--only params,image] [--first SEED] [--out docs/results/fuzz]

A case is right if it is read, or refused with one of our own errors of one sentence that leaves nothing behind. Cases
run in processes of their own, so that a crash of a native library, or a hang of 10 s, is found and named. Ends with
exit code 1 if a case failed; `python -m tests.fuzz --only TARGET --first SEED --cases 1` runs one again and shows why.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.common import Result, run, table
from pipeline.errors import ParamsError
from tests.fuzz.cases import ACCEPTED, FAILED, HANG_SECONDS, REFUSED, Outcome
from tests.fuzz.targets import TARGETS

CHILD = [sys.executable, "-m", "tests.fuzz.targets"]
_BATCH = 2_000  # cases in one process: a leak does not add up
_SHOWN = 5  # seeds of one failure
# libraries start a thread a core each; what is small is read faster by one, and the machine stays usable
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@dataclass
class Tally:
    """Of one target. ``failures``: what failed -> seeds and the first trace."""

    name: str
    what: str
    cases: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((ACCEPTED, REFUSED, FAILED), 0))
    slowest_seconds: float = 0.0
    slowest_seed: int | None = None
    seconds: float = 0.0
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, seed: int, outcome: Outcome) -> None:
        self.cases += 1
        self.counts[outcome.kind] += 1
        if outcome.seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest_seed = outcome.seconds, seed
        if outcome.kind == FAILED:
            found = self.failures.setdefault(outcome.detail, {"count": 0, "seeds": [], "trace": outcome.trace})
            found["count"] += 1
            found["seeds"] = [*found["seeds"], seed][:_SHOWN]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="for each target (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first case (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(TARGETS)}; all unless given")
    result = run(parser, arguments, measure, report)
    sys.exit(1 if any(tally["failures"] for tally in result["targets"]) else 0)


def measure(options: argparse.Namespace) -> Result:
    names = options.only.split(",") if options.only else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        raise ParamsError(f"{unknown[0]!r} is not a target; choose from {', '.join(TARGETS)}")
    if options.cases < 1 or options.first < 0:
        raise ParamsError("--cases must be 1 or more and --first 0 or more; correct them")
    tallies = [asdict(fuzz(name, options.first, options.cases)) for name in names]
    return {"cases": options.cases, "first_seed": options.first, "targets": tallies}


def fuzz(name: str, first: int, cases: int) -> Tally:
    """Judge ``cases`` cases of a target, in child processes."""
    tally, begun, seed = Tally(name, TARGETS[name].what), time.monotonic(), first
    with tempfile.TemporaryDirectory(prefix="fuzz.", ignore_cleanup_errors=True) as folder:
        while seed < first + cases:
            for done, outcome in _batch(name, seed, min(_BATCH, first + cases - seed), folder):
                tally.add(done, outcome)
                seed = done + 1
            print(f"{name}: {seed - first} of {cases} cases, {len(tally.failures)} kinds of failure", file=sys.stderr)
    tally.seconds = time.monotonic() - begun
    return tally


def _batch(name: str, first: int, count: int, folder: str) -> Iterator[tuple[int, Outcome]]:
    """Results that a child process reports; the last one is the case in which it hung or crashed.

    Raises:
        RuntimeError: it ended before any case.
    """
    command = [*CHILD, name, str(first), str(count), folder]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, env={**os.environ, **_ENVIRONMENT}
        ) as child:
            current, last = None, first - 1
            for line in child.stdout or ():
                if line.startswith(b"begin "):
                    current = int(line.removeprefix(b"begin "))
                elif line.startswith(b"{") and current is not None:
                    last, current = current, None
                    yield last, Outcome(**json.loads(line))
        errors.seek(0)
        said, code = errors.read().decode(errors="replace")[-4000:], child.returncode
    hung = code == -signal.SIGPROF or said.startswith("Timeout")  # by the processor's time, or by the clock
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    if current is not None:
        what = f"no answer within {HANG_SECONDS:g} s" if hung else f"the process ended with {ending}"
        yield current, Outcome(FAILED, HANG_SECONDS if hung else 0.0, what, said)
    elif last != first + count - 1:
        raise RuntimeError(f"the process of {name} ended with {ending} outside of a case, after {last}: {said}")


def report(result: Mapping[str, Any]) -> str:
    return f"# Damaged and hostile files\n\n    {result['command']}\n\n{tally_table(result['targets'])}\n"


def tally_table(tallies: Sequence[Mapping[str, Any]]) -> str:
    """A row for each target and, below, what failed with the seeds that repeat it."""
    head = ("target", "reads", "cases", ACCEPTED, REFUSED, "failures", "slowest case", "its seed", "all, s")
    rows = (
        (
            *(tally["name"], tally["what"], f"{tally['cases']:,}"),
            *(f"{tally['counts'][kind]:,}" for kind in (ACCEPTED, REFUSED, FAILED)),
            *(f"{1000 * tally['slowest_seconds']:,.0f} ms", tally["slowest_seed"], f"{tally['seconds']:.0f}"),
        )
        for tally in tallies
    )
    lines = [table(head, rows)]
    for tally in tallies:
        for detail, found in sorted(tally["failures"].items(), key=lambda pair: -pair[1]["count"]):
            seeds = ", ".join(map(str, found["seeds"]))
            lines += ["", f"{tally['name']}: {found['count']} times {detail} (seeds {seeds})", "", "```"]
            lines += [*found["trace"].rstrip().splitlines()[-12:], "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
