"""Our latency against that of OpenVINO's benchmark_app and of a bare ONNX Runtime loop on the same files.

python -m bench.agreement --model x.xml --onnx x.onnx [--rounds 7] [--out docs/results/agreement]

All are measured in one run, in interleaved rounds, each in a fresh process, one image at a time, with the same threads,
precision and, in OpenVINO, hint. The overhead of our loop is timed with an inference that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import Result, interleaved, machine_sentence, run, span, table, yes_no
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.statistics import compare
from pipeline.device.benchmark.steps import Step, run_step
from pipeline.device.benchmark.timing import measure as time_inferences
from pipeline.device.benchmark.worker import Timed
from pipeline.device.errors import DeviceError, PlanError
from pipeline.runtimes import PRECISIONS, RuntimesError
from pipeline.runtimes.openvino_runtime import openvino_core

AT_MOST_APART = 0.05
AT_MOST_MICROSECONDS = 20.0
_EMPTY_RUNS = 100_000
OURS_OPENVINO, APP = "ours, OpenVINO", "benchmark_app"
OURS_ONNXRUNTIME, BARE = "ours, ONNX Runtime", "bare ONNX Runtime loop"
PAIRS = ((OURS_OPENVINO, APP), (OURS_ONNXRUNTIME, BARE))
# settings of benchmark_app that our runtime resolves and reports too
_SETTINGS = (
    *("PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT"),
    *("NUM_STREAMS", "ENABLE_CPU_PINNING"),
)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help=".xml file for OpenVINO, its .bin beside it")
    parser.add_argument("--onnx", type=Path, required=True, help=".onnx file for ONNX Runtime")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of both files")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="0: the runtimes' own choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of an arm in a round; whole ones for benchmark_app")
    run(parser, arguments, measure, report, RuntimesError, DeviceError)


def measure(options: argparse.Namespace) -> Result:
    shape = _shape(options.model)
    with tempfile.TemporaryDirectory(prefix="agreement-") as folder:
        inputs = Path(folder) / "inputs.npy"
        # one image, as benchmark_app has; its content does not matter
        np.save(inputs, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        variants = (
            Variant("openvino", "openvino", str(options.model), options.precision, str(inputs)),
            Variant("onnxruntime", "onnxruntime", str(options.onnx), options.precision, str(inputs)),
        )
        limits = {"min_seconds": options.seconds, "min_count": 1, "max_seconds": max(60.0, 2 * options.seconds)}
        limits["warmup_seconds"] = min(1.0, options.seconds)
        arms = _Arms(Plan(variants, threads=options.threads, **limits), shape, Path(folder))
        functions = {
            OURS_OPENVINO: arms.ours(variants[0]),
            APP: arms.benchmark_app,
            OURS_ONNXRUNTIME: arms.ours(variants[1]),
            BARE: arms.bare,
        }
        samples = interleaved(functions, options.rounds, "agreement")
    return {
        **{name: getattr(options, name) for name in ("precision", "threads", "rounds", "seconds")},
        "shape": list(shape),
        "milliseconds": samples,
        "ratios": [_ratio(ours, other, samples) for ours, other in PAIRS],
        "overhead": _overhead(samples, options.rounds),
        "executed": arms.executed,
        "benchmark_app_settings": arms.settings,
    }


class _Arms:
    """The four arms; each returns milliseconds of one round. ``executed`` and ``settings`` are of the last round."""

    def __init__(self, plan: Plan, shape: tuple[int, ...], folder: Path) -> None:
        self.plan, self.shape, self.folder = plan, shape, folder
        self.executed: dict[str, Any] = {}
        self.settings: dict[str, str] = {}

    def ours(self, variant: Variant) -> Callable[[], float]:
        step = Step("round", variant, self.plan.threads, variant.name, f"the benchmark worker of {variant.name}")

        def arm() -> float:
            timed = Timed.read(run_step(self.plan, step, self.folder / "result.json"))
            self.executed[variant.name] = asdict(timed.executed)
            return timed.round.median_ms

        return arm

    def benchmark_app(self) -> float:
        """OpenVINO's own program, with the precision hint of our runtime, which has run before.

        The number of threads is in a configuration file, because the argument is refused beside a performance hint.

        Raises:
            PlanError: benchmark_app is not installed, or failed.
        """
        program, config = Path(sys.executable).with_name("benchmark_app"), self.folder / "config.json"
        threads = self.plan.threads
        config.write_text(json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}}))
        hint = self.executed["openvino"]["detail"]["precision_hint_requested"]
        model, seconds = self.plan.variants[0].path, max(1, round(self.plan.min_seconds))
        command = [str(program), "-m", model, "-d", "CPU", "-api", "sync", "-hint", "latency"]
        command += ["-infer_precision", hint, "-ip", "f32", "-op", "f32", "-shape", str(list(self.shape))]
        command += ["-t", str(seconds), "-load_config", str(config)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise PlanError(f"{program} does not exist; install openvino into this environment") from None
        found = re.search(r"Median:\s+([\d.]+) (us|ms)", ended.stdout)
        if ended.returncode or found is None:
            lines = [line for line in ended.stdout.splitlines() if "ERROR" in line] or ["it gave no reason"]
            raise PlanError(f"benchmark_app failed on {model} ({lines[0].strip()}); correct the arguments")
        told = {name: re.search(rf"^\[ INFO \]\s+{name}: (.+)$", ended.stdout, re.MULTILINE) for name in _SETTINGS}
        self.settings = {name: match[1].strip() for name, match in told.items() if match}
        return float(found[1]) / (1e3 if found[2] == "us" else 1)

    def bare(self) -> float:
        variant = self.plan.variants[1]
        command = [sys.executable, "-m", "bench.bare_onnxruntime", variant.path, variant.inputs, variant.precision]
        command += [str(self.plan.threads), str(self.plan.warmup_seconds), str(self.plan.min_seconds)]
        return float(subprocess.check_output(command))


def _shape(model: Path) -> tuple[int, ...]:
    """[1, 3, H, W] of the file.

    Raises:
        PlanError: the file cannot be read, or leaves the image size open.
    """
    try:
        _, *sizes = openvino_core().read_model(model).inputs[0].partial_shape
    except RuntimeError:
        raise PlanError(f"{model} cannot be read by openvino; give the .xml file of an export.") from None
    if any(size.is_dynamic for size in sizes):
        raise PlanError(f"{model} leaves the image size open; export it with a fixed one.")
    return (1, *(size.get_length() for size in sizes))


def _ratio(ours: str, other: str, samples: Mapping[str, Sequence[float]]) -> Result:
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


def _overhead(samples: Mapping[str, Sequence[float]], rounds: int) -> list[Result]:
    """Microseconds of an inference that the harness takes and not the runtime, one figure per round."""
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
    """Microseconds of the median sample and of one turn of the loop, for an inference that does nothing."""
    batch = [np.zeros((1, 3, 1, 1), dtype=np.float32)]
    begin = time.perf_counter()
    found, _ = time_inferences(lambda batch: None, batch, min_seconds=0.0, min_count=_EMPTY_RUNS, max_seconds=60.0)
    return statistics.median(found) / 1e3, 1e6 * (time.perf_counter() - begin) / len(found)


def report(result: Mapping[str, Any]) -> str:
    ratios = table(
        ("p50 of one image", "ms", "ratio", "95 % interval", "target", "met"),
        (
            (
                row["name"],
                f"{row['numerator_ms']:.4f} / {row['denominator_ms']:.4f}",
                f"{row['ratio']:.3f}",
                span((row["low"], row["high"]), ".3f"),
                f"1 ± {row['at_most_apart']:g}",
                yes_no(row["met"]),
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
                span(row["microseconds"], ".2f"),
                f"≤ {row['at_most']:g}",
                yes_no(row["met"]),
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

{machine_sentence(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
