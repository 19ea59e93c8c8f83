"""Shared by the programs: start and end, interleaved rounds, the machine, and tables."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tabulate import tabulate

from pipeline.compute.device import choose_device, has_bf16
from pipeline.device.machine.probe import describe_machine
from pipeline.store.json_files import write_json
from stages.common import run_program
from stages.progress import progress

Result = dict[str, Any]
K = TypeVar("K")

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
# flags of CPUs with fast bf16 or int8
_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "avx512_vnni", "avx_vnni", "amx_int8", "i8mm")


def run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    measure: Callable[[argparse.Namespace], Result],
    report: Callable[[Mapping[str, Any]], str],
    *bad_input: type[Exception],
) -> Result:
    """Measure, print the report and, with --out, write both; bad input ends in one sentence and exit code 2.

    Args:
        report: Markdown of a result with ``command`` and ``machine``, also of one that was read back from JSON.
        bad_input: as in :func:`stages.common.run_program`.
    """
    parser.add_argument("--out", type=Path, help="also write the result to this path with .md and .json appended")
    options = parser.parse_args(arguments)
    results: list[Result] = []

    def program() -> None:
        before, command = load(), shlex.join([*parser.prog.split(), *arguments])
        result = {"schema": 1, "command": command, **measure(options)}
        facts = machine_facts(choose_device(getattr(options, "device", "cpu")))
        results.append(result | {"machine": facts | {"load_before": before, "load_after": load()}})
        text = report(results[0])
        print(text)
        if options.out is not None:
            write_json(options.out.with_name(f"{options.out.name}.json"), results[0], one_line_each=True)
            options.out.with_name(f"{options.out.name}.md").write_text(text, encoding="utf-8")

    run_program(program, *bad_input)
    return results[0]


def interleaved(arms: Mapping[K, Callable[[], float]], rounds: int, label: str = "") -> dict[K, list[float]]:
    """One figure per arm and round, measured A B C A B C ..., so that a slow minute of the machine hits all arms.

    Args:
        label: label of the progress bar; there is no bar without one.
    """
    samples: dict[K, list[float]] = {name: [] for name in arms}
    with progress(label, rounds * len(arms), "arm", shown=bool(label)) as advance:
        for _ in range(rounds):
            for name, arm in arms.items():
                samples[name].append(arm())
                advance(1)
    return samples


@dataclass(frozen=True)
class Comparison:
    """Two arms, by name, whose speeds are divided, and the target of the ratio, if there is one."""

    name: str
    numerator: str
    denominator: str
    at_least: float | None = None
    at_most: float | None = None

    def of(self, samples: Mapping[str, Sequence[float]]) -> Result:
        """The ratio of the medians, with the lowest and highest ratio of a round."""
        above, below = samples[self.numerator], samples[self.denominator]
        in_rounds = [a / b for a, b in zip(above, below, strict=True)]
        ratio = statistics.median(above) / statistics.median(below)
        met = None if self.at_least is None else ratio >= self.at_least
        return asdict(self) | {
            "numerator_median": statistics.median(above),
            "denominator_median": statistics.median(below),
            "ratio": ratio,
            "lowest": min(in_rounds),
            "highest": max(in_rounds),
            "met": met if self.at_most is None else ratio <= self.at_most,
        }


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table whose columns also line up on a terminal; all columns but the first are right-aligned."""
    align = ["left", *["right"] * (len(head) - 1)]
    return tabulate(list(rows), head, tablefmt="pipe", disable_numparse=True, colalign=align)


def yes_no(value: bool | None) -> str:
    return {None: "", True: "yes", False: "no"}[value]


def span(values: Iterable[float], form: str) -> str:
    """The lowest and the highest value."""
    found = list(values)
    return f"{min(found):{form}} to {max(found):{form}}"


def machine_facts(device: torch.device) -> Result:
    """The facts that speed depends on: CPU, its bf16 and VNNI flags, cores, versions, threads and GPU."""
    found = describe_machine()
    return {
        "cpu": found["cpu"],
        "flags": [flag for flag in _FLAGS if flag in (found["cpu_flags"] or ())],
        "cores": len(os.sched_getaffinity(0)),
        "kernel": found["kernel"],
        "python": found["python"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "matrix_gflops": {
            name: round(_matrix_gflops(dtype, device))
            for name, dtype in _PRECISIONS.items()
            if dtype != torch.bfloat16 or has_bf16(device)  # emulated, the product takes minutes
        },
    }


def _matrix_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the product of two large matrices, median of five: an upper limit for every network."""
    size = _MATRIX_SIDE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e9


def load() -> float:
    """Load average of the last minute; if it is above the number of cores, the figures are disturbed."""
    return round(os.getloadavg()[0], 2)


def machine_sentence(found: Mapping[str, Any]) -> str:
    """The facts in one line, with the load before and after."""
    products = ", ".join(f"{gflops:,} in {name}" for name, gflops in found.get("matrix_gflops", {}).items())
    return (
        f"Machine: {found['cpu']}, bf16 and VNNI flags {', '.join(found['flags']) or 'none'}, {found['cores']} cores, "
        f"GPU {found['gpu'] or 'none'}; torch {found['torch']} with {found['threads']} threads, Python "
        f"{found['python']}, kernel {found['kernel']}; load average {found['load_before']} before and "
        f"{found['load_after']} after."
        + (f" A large matrix product reaches, in GFLOP/s: {products}." if products else "")
    )
