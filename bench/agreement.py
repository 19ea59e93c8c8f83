"""Whether our latency is what others measure: OpenVINO's benchmark_app and a bare ONNX Runtime loop on the same files.

python -m bench.agreement --model x.xml --onnx x.onnx [--rounds 7] [--out docs/results/agreement]

All are measured in one run, in interleaved rounds, each in a fresh process, one image at a time, with the same threads,
precision and, in OpenVINO, hint. What our loop costs beside the inference is timed with an inference that does nothing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from bench import benchmark_app, machine
from bench.measure import interleaved, table
from pipeline.device.benchmark.collected import samples_ns
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.process import run_worker
from pipeline.device.benchmark.statistics import compare
from pipeline.device.benchmark.steps import Step, job_of, limit_seconds
from pipeline.device.benchmark.timing import measure
from pipeline.device.errors import DeviceError, PlanError
from pipeline.runtimes import PRECISIONS, RuntimesError
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json
from stages.common import progress, run_program

AT_MOST_APART = 0.05
AT_MOST_MICROSECONDS = 20.0
_EMPTY_RUNS = 100_000
OURS_OPENVINO, APP = "ours, OpenVINO", "benchmark_app"
OURS_ONNXRUNTIME, BARE = "ours, ONNX Runtime", "bare ONNX Runtime loop"
PAIRS = ((OURS_OPENVINO, APP), (OURS_ONNXRUNTIME, BARE))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help=".xml file for OpenVINO, its .bin beside it")
    parser.add_argument("--onnx", type=Path, required=True, help=".onnx file for ONNX Runtime")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of both files")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="0: the runtimes' own choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of an arm in a round; whole ones for benchmark_app")
    parser.add_argument("--out", type=Path, help="write the result here too, with .md and .json appended")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "bench.agreement", *arguments])
    run_program(lambda: _run(options, command), RuntimesError, DeviceError)


def _run(options: argparse.Namespace, command: str) -> None:
    before = machine.load()
    shape = _shape(options.model)
    with tempfile.TemporaryDirectory(prefix="agreement-") as folder:
        inputs = Path(folder) / "inputs.npy"
        # one image, as benchmark_app has; its content does not matter
        np.save(inputs, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        plan = Plan(
            (
                Variant("openvino", "openvino", str(options.model), options.precision),
                Variant("onnxruntime", "onnxruntime", str(options.onnx), options.precision),
            ),
            str(inputs),
            threads=options.threads,
            min_seconds=options.seconds,
            min_count=1,
            max_seconds=max(60.0, 2 * options.seconds),
        )
        arms = _Arms(plan, shape, Path(folder) / "result.json")
        # interleaved() takes functions without arguments that return one figure
        functions = {
            OURS_OPENVINO: arms.ours(plan.variants[0]),
            APP: arms.benchmark_app,
            OURS_ONNXRUNTIME: arms.ours(plan.variants[1]),
            BARE: arms.bare,
        }
        with progress("agreement", options.rounds * len(functions), "arm") as advance:
            samples = interleaved(functions, options.rounds, advance)
    result = {
        "schema": 1,
        "command": command,
        "precision": options.precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "shape": list(shape),
        "milliseconds": samples,
        "ratios": [_ratio(ours, other, samples) for ours, other in PAIRS],
        "overhead": _overhead(samples, options.rounds),
        "executed": arms.executed,
        "benchmark_app_settings": arms.settings,
        "machine": machine.facts(torch.device("cpu")) | {"load_before": before, "load_after": machine.load()},
    }
    report = _report(result)
    print(report)
    if options.out is not None:
        write_json(options.out.with_name(options.out.name + ".json"), result)
        with atomic_file(options.out.with_name(options.out.name + ".md")) as temporary:
            temporary.write_text(report, encoding="utf-8")


class _Arms:
    """The four measurements, each milliseconds of one round; what was executed is kept from the last round."""

    def __init__(self, plan: Plan, shape: tuple[int, ...], output: Path) -> None:
        self.plan, self.shape, self.output = plan, shape, output
        self.executed: dict[str, Any] = {}
        self.settings: dict[str, str] = {}

    def ours(self, variant: Variant) -> Callable[[], float]:
        step = Step("round", variant, variant.name, f"the benchmark worker of {variant.name}")

        def arm() -> float:
            job = job_of(self.plan, step, self.output)
            result = run_worker(job, limit_seconds=limit_seconds(self.plan, step), name=step.worker)
            self.executed[variant.name] = result["executed"]
            return float(np.median(samples_ns(result))) / 1e6

        return arm

    def benchmark_app(self) -> float:
        """Runs after the first arm of ours, whose precision hint it is told."""
        hint = self.executed["openvino"]["detail"]["precision_hint_requested"]
        path = Path(self.plan.variants[0].path)
        found = benchmark_app.run(path, self.shape, hint, self.plan.threads, self.plan.min_seconds)
        self.settings = found["settings"]
        return float(found["median_ms"])

    def bare(self) -> float:
        variant = self.plan.variants[1]
        command = [sys.executable, "-m", "bench.bare_onnxruntime", variant.path, self.plan.inputs, variant.precision]
        command += [str(self.plan.threads), str(self.plan.min_seconds)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _shape(model: Path) -> tuple[int, ...]:
    """[1, 3, H, W] of the file.

    Raises:
        PlanError: the file cannot be read, or leaves the image size open.
    """
    try:
        sizes = openvino.Core().read_model(model).inputs[0].partial_shape
    except RuntimeError as error:
        raise PlanError(f"{model} cannot be read by openvino; give the .xml file of an export.") from error
    if any(size.is_dynamic for size in list(sizes)[1:]):
        raise PlanError(f"{model} leaves the image size open; export it with a fixed one.")
    return (1, *(size.get_length() for size in list(sizes)[1:]))


def _ratio(ours: str, other: str, samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Our median over the other's, with its bootstrap interval over rounds."""
    ratio = compare(samples[ours], samples[other]).ratio
    return {
        "name": f"{ours} / {other}",
        "numerator_ms": statistics.median(samples[ours]),
        "denominator_ms": statistics.median(samples[other]),
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "at_most_apart": AT_MOST_APART,
        "met": abs(ratio.value - 1) <= AT_MOST_APART,
    }


def _overhead(samples: Mapping[str, Sequence[float]], rounds: int) -> list[dict[str, Any]]:
    """Microseconds of an inference that are the harness and not the runtime, one figure a round."""
    empty = [_empty_run() for _ in range(rounds)]
    beyond = [1e3 * (ours - bare) for ours, bare in zip(samples[OURS_ONNXRUNTIME], samples[BARE], strict=True)]
    figures = {
        "in a sample: what is measured of an inference that does nothing": [sample for sample, _ in empty],
        "in a turn of the loop: all that it takes beside the inference": [turn for _, turn in empty],
        "our loop beyond the bare loop, ONNX Runtime": beyond,
    }
    return [
        {
            "name": name,
            "microseconds": values,
            "median": statistics.median(values),
            "at_most": AT_MOST_MICROSECONDS,
            "met": statistics.median(values) <= AT_MOST_MICROSECONDS,
        }
        for name, values in figures.items()
    ]


def _empty_run() -> tuple[float, float]:
    """Microseconds of the median sample and of a turn."""
    batch = [np.zeros((1, 3, 1, 1), dtype=np.float32)]
    begin = time.perf_counter()
    found, _ = measure(lambda batch: None, batch, min_seconds=0.0, min_count=_EMPTY_RUNS, max_seconds=60.0)
    return statistics.median(found) / 1e3, 1e6 * (time.perf_counter() - begin) / len(found)


def _report(result: Mapping[str, Any]) -> str:
    yes = {True: "yes", False: "no"}
    ratios = table(
        ("p50 of one image", "ms", "ratio", "95 % interval", "target", "met"),
        (
            (
                row["name"],
                f"{row['numerator_ms']:.4f} / {row['denominator_ms']:.4f}",
                f"{row['ratio']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"1 ± {row['at_most_apart']:g}",
                yes[row["met"]],
            )
            for row in result["ratios"]
        ),
    )
    overhead = table(
        ("overhead of an inference", "µs, median", "min to max", "target", "met"),
        (
            (
                row["name"],
                f"{row['median']:.2f}",
                f"{min(row['microseconds']):.2f} to {max(row['microseconds']):.2f}",
                f"≤ {row['at_most']:g}",
                yes[row["met"]],
            )
            for row in result["overhead"]
        ),
    )
    settings = ", ".join(f"{name} {value}" for name, value in result["benchmark_app_settings"].items())
    ours = result["executed"]["openvino"]
    return f"""# Our latency beside that of others

{result["precision"]}, {" x ".join(map(str, result["shape"]))}, {result["threads"]} threads. Medians of \
{result["rounds"]} interleaved rounds of {result["seconds"]:g} s, each in a fresh process; the interval is over rounds.

{ratios}

{overhead}

benchmark_app was compiled with {settings}; ours with {ours["detail"]["performance_hint"]}, {ours["threads"]} threads, \
{ours["detail"]["precision_hint_requested"]}, {ours["detail"]["streams"]} streams, and executed {ours["precision"]}; \
ONNX Runtime executed {result["executed"]["onnxruntime"]["precision"]}. benchmark_app leaves Python's share of an \
inference out and prints two decimals; ours is the time that a Python program waits, with the outputs copied.

{machine.described(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
