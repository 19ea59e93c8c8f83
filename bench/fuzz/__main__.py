"""Feeds every reader of other people's files with damaged and hostile ones: `make fuzz`.

python -m bench.fuzz [--cases 10000] [--only params,image] [--first SEED] [--out docs/results/fuzz]

A case is right if it is read, or refused with one of our own errors of one sentence that leaves nothing behind. Cases
run in processes of their own, so that a crash of a native library, or a hang of 10 s, is found and named. Ends with
exit code 1 if a case failed; `python -m bench.fuzz --only TARGET --first SEED --cases 1` runs one again and shows why.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.fuzz.judge import ACCEPTED, FAILED, HANG_SECONDS, REFUSED
from bench.fuzz.readers import TARGETS
from pipeline.errors import ParamsError
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json
from stages.common import run_program

CASES = 10_000
_BATCH = 2_000  # cases in one process: a leak does not add up, and a crash costs one start
_START_SECONDS = 120.0  # for the imports and the valid files
_LOOK_SECONDS = 0.2
_PATIENCE = 6
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

    def add(self, told: dict[str, Any]) -> None:
        self.cases += 1
        self.counts[told["kind"]] += 1
        if told["seconds"] > self.slowest_seconds:
            self.slowest_seconds, self.slowest_seed = told["seconds"], told["seed"]
        if told["kind"] == FAILED:
            found = self.failures.setdefault(told["detail"], {"count": 0, "seeds": [], "trace": told["trace"]})
            found["count"] += 1
            if len(found["seeds"]) < _SHOWN:
                found["seeds"].append(told["seed"])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES, help="for each target (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first case (%(default)s)")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(TARGETS)}; all unless given")
    parser.add_argument("--out", type=Path, metavar="PATH", help="writes PATH.md and PATH.json")
    options = parser.parse_args(arguments)
    failed: list[bool] = []
    run_program(lambda: failed.append(_run(options, shlex.join(["python", "-m", "bench.fuzz", *arguments]))))
    sys.exit(1 if failed[0] else 0)


def _run(options: argparse.Namespace, command: str) -> bool:
    names = options.only.split(",") if options.only else list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        raise ParamsError(f"{unknown[0]!r} is not a target; choose of {', '.join(TARGETS)}")
    if options.cases < 1 or options.first < 0:
        raise ParamsError("--cases must be 1 or more and --first 0 or more; correct them")
    tallies = [fuzz(name, options.first, options.cases) for name in names]
    report = table(tallies)
    print(report)
    if options.out is not None:
        result = {
            "schema": 1,
            "command": command,
            "cases": options.cases,
            "first_seed": options.first,
            "targets": [vars(tally) for tally in tallies],
        }
        write_json(options.out.with_suffix(".json"), result)
        with atomic_file(options.out.with_suffix(".md")) as temporary:
            temporary.write_text(f"# Damaged and hostile files\n\n    {command}\n\n{report}\n", encoding="utf-8")
    return any(tally.failures for tally in tallies)


def fuzz(name: str, first: int, cases: int) -> Tally:
    """Judge ``cases`` cases of a target, in child processes."""
    tally = Tally(name, TARGETS[name].what)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fuzz."))
    try:
        seed = first
        while seed < first + cases:
            count = min(_BATCH, first + cases - seed)
            for told in _batch(name, seed, count, folder):
                tally.add(told)
                seed = told["seed"] + 1
            print(f"{name}: {seed - first} of {cases} cases, {len(tally.failures)} kinds of failure", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tally.seconds = time.monotonic() - begun
    return tally


def _batch(name: str, first: int, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What a child tells of its cases, and for it the one in which it hung or crashed, which is the last.

    Raises:
        RuntimeError: it ended before any case.
    """
    command = [sys.executable, "-m", "bench.fuzz.child", name, str(first), str(count), str(folder)]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, env={**os.environ, **_ENVIRONMENT}
        )
        current: int | None = None
        last = first - 1
        hung = False
        try:
            lines = _lines(child, _START_SECONDS)
            for line in lines:
                if line.startswith("begin "):
                    current = int(line.removeprefix("begin "))
                elif line.startswith("{"):
                    told = json.loads(line)
                    current, last = None, told["seed"]
                    yield told
        except TimeoutError:
            hung = True
        finally:
            child.kill()
            code = child.wait()
            if child.stdout is not None:
                child.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-4000:]
    if current is not None:
        what = f"no answer within {HANG_SECONDS:g} s" if hung else f"the process ended with {_ending(code)}"
        seconds = HANG_SECONDS if hung else 0.0
        yield {"seed": current, "kind": FAILED, "detail": what, "seconds": seconds, "trace": said}
    elif last != first + count - 1:
        raise RuntimeError(f"the process of {name} ended with {_ending(code)} outside of a case, after {last}: {said}")


def _lines(child: subprocess.Popen[bytes], start_seconds: float) -> Iterator[str]:
    """Lines of its output.

    Raises:
        TimeoutError: it is silent for too long: in its own processor time, so that a busy machine makes no hang, or in
            several times that by the clock, for one that waits.
    """
    assert child.stdout is not None
    rest, limit = b"", start_seconds
    heard, spent = time.monotonic(), 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(_LOOK_SECONDS):
                silent, worked = time.monotonic() - heard, _cpu_seconds(child.pid) - spent
                if silent > limit and (worked > limit or silent > _PATIENCE * limit):
                    raise TimeoutError
                continue
            heard, spent = time.monotonic(), _cpu_seconds(child.pid)
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                limit = HANG_SECONDS
                yield line.decode(errors="replace")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def table(tallies: Sequence[Tally]) -> str:
    """A row for each target and, below, what failed with the seeds that repeat it."""
    lines = [
        "| target | reads | cases | accepted | refused | failures | slowest case | its seed | all, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for tally in tallies:
        counts = " | ".join(f"{tally.counts[kind]:,}" for kind in (ACCEPTED, REFUSED, FAILED))
        lines.append(
            f"| {tally.name} | {tally.what} | {tally.cases:,} | {counts} | {1000 * tally.slowest_seconds:,.0f} ms | "
            f"{tally.slowest_seed} | {tally.seconds:.0f} |"
        )
    for tally in tallies:
        for detail, found in sorted(tally.failures.items(), key=lambda pair: -pair[1]["count"]):
            seeds = ", ".join(map(str, found["seeds"]))
            lines += ["", f"{tally.name}: {found['count']} times {detail} (seeds {seeds})", "", "```"]
            lines += [*found["trace"].rstrip().splitlines()[-12:], "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
