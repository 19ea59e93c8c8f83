"""Layers, precisions and latency of one model file in one runtime, on this machine.

python -m pipeline.device.profile FILE --runtime NAME

Any ONNX file of an image classifier will do. It needs numpy and the runtime only, so it also runs on a device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline import runtimes
from pipeline.device.benchmark.plan import Plan
from pipeline.device.benchmark.statistics import judge, percentile
from pipeline.device.benchmark.timing import measure
from pipeline.portable.text import first_line
from pipeline.runtimes import Executed, ModelFileError, Runtime, RuntimesError
from pipeline.runtimes.tensorrt_rtx_runtime import TensorRtRtxRuntime

BAD_INPUT = 2


def main(words: Sequence[str] | None = None) -> int:
    """Print the profile; returns 0, or 2 after one sentence on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.device.profile",
        description="Tell the layers, precisions and latency of one model file in one runtime, on this machine.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the model file")
    parser.add_argument("--runtime", required=True, metavar="NAME", help=f"one of {', '.join(runtimes.NAMES)}")
    parser.add_argument(
        "--precision", default="fp32", metavar="NAME", help="that the file is made for, default fp32; fp16, bf16, int8"
    )
    parser.add_argument("--batch", type=_count, default=1, metavar="N", help="images in a call, default 1")
    parser.add_argument("--threads", type=_count, default=0, metavar="N", help="default: as many as the runtime takes")
    options = parser.parse_args(words)
    try:
        for line in profile(options.file, options.runtime, options.precision, options.batch, options.threads):
            sys.stdout.write(f"{line}\n")
    except RuntimesError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    return 0


def profile(path: Path, name: str, precision: str, batch: int, threads: int) -> Iterator[str]:
    """Yield the lines of the profile. Raises RuntimesError as :func:`pipeline.runtimes.load` does."""
    reason = runtimes.runtime_class(name).unavailable()
    if reason is not None and name == TensorRtRtxRuntime.name:
        yield from _structure(precision, TensorRtRtxRuntime.plan(path, precision=precision, batch=batch))
        yield f"latency not measured: {reason}"
        return
    runtime = runtimes.load(name, path, precision=precision, threads=threads, batch=batch)
    latency = list(_latency(runtime, path))
    yield from _structure(precision, runtime.executed())
    yield from latency


def _structure(precision: str, executed: Executed) -> Iterator[str]:
    yield f"{executed.provider}, version {executed.version}, executes {executed.precision}"
    if mismatch := runtimes.check_executed(precision, executed):
        yield mismatch
    for key, value in executed.detail.items():
        if isinstance(value, dict):
            yield f"{key}:"
            yield from (f"  {name}: {part}" for name, part in value.items())
        else:
            yield f"{key}: {value}"


def _latency(runtime: Runtime, path: Path) -> Iterator[str]:
    """Time calls with random images for as long as a round of a benchmark."""
    try:
        images = np.random.default_rng(0).standard_normal(runtime.input_shape()).astype(np.float32)
        runtime.run(images)
    except Exception as error:  # the runtimes' own errors share no base class
        raise ModelFileError(
            f"{path} runs on no float32 images in {runtime.name} ({first_line(error)}); choose another file."
        ) from error
    for seconds, count in ((Plan.warmup_seconds, Plan.warmup_count), (Plan.min_seconds, Plan.min_count)):
        samples, cut_short = measure(
            runtime.run, [images], min_seconds=seconds, min_count=count, max_seconds=Plan.max_seconds
        )
    found = {p: percentile(np.asarray(samples) / 1e6, p) for p in (0.5, 0.9)}
    numbers = (f"p{p * 100:g} {each.value:.3f} ms" if each.value else str(each.reason) for p, each in found.items())
    yield f"latency: {', '.join(numbers)}, {len(samples)} calls with {len(images)} random images, in one process"
    verdict = judge([samples], cut_short=cut_short)
    yield f"{verdict.name}: {' '.join(verdict.reasons)} The stage benchmark has rounds and sensors."


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
