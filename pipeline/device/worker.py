"""One round of one variant in a process of its own: ``python -m pipeline.device.worker``.

Reads a job as JSON on standard input and writes the measurement as JSON to the job's ``output``, in one piece, or to
standard output where ``output`` is null. What goes wrong is one sentence on standard error and an exit code.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.device.sensors import sensors
from pipeline.runtimes import Runtime, runtime_class
from pipeline.runtimes.errors import ModelFileError, PrecisionError, RuntimesError, RuntimeUnavailableError

EXIT_FAILED = 2
EXIT_UNAVAILABLE = 3
EXIT_MODEL_FILE = 4

Run = Callable[[NDArray[np.float32]], Any]


def measure(
    run: Run, batches: Sequence[NDArray[np.float32]], *, min_seconds: float, min_count: int, max_seconds: float
) -> tuple[list[int], bool]:
    """Time inferences one by one, cycling through the batches.

    Ends when both the seconds and the count are reached, or at ``max_seconds``. Python's garbage collector rests
    meanwhile, since its pauses belong to this program and not to the model.

    Returns:
        nanoseconds of each inference, and whether ``max_seconds`` cut the measurement short.
    """
    samples: list[int] = []
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begin = clock()
        while True:
            batch = batches[len(samples) % len(batches)]
            start = clock()
            run(batch)
            end = clock()
            samples.append(end - start)
            seconds = (end - begin) / 1e9
            if seconds >= min_seconds and len(samples) >= min_count:
                return samples, False
            if seconds >= max_seconds:
                return samples, True
    finally:
        if collecting:
            gc.enable()


def make_batches(images: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    """Contiguous batches [size, 3, H, W] that use all images [N, 3, H, W]; the last begins again from the first image.

    Raises:
        ValueError: no images, or not float32 with four dimensions.
    """
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise ValueError(f"inputs must be float32 [N, 3, H, W], but are {images.dtype} {list(images.shape)}")
    order = np.arange(math.ceil(len(images) / size) * size) % len(images)
    return [np.ascontiguousarray(images[rows]) for rows in order.reshape(-1, size)]


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up and measure; times in the units that the keys name.

    Sensors are read after the warm-up and after the measurement, never within it.
    """
    batches = make_batches(np.load(job["inputs"], allow_pickle=False), job["batch"])
    started = time.time()
    begin = time.perf_counter()
    kind = runtime_class(job["runtime"])
    if reason := kind.unavailable():
        raise RuntimeUnavailableError(reason)
    imported = time.perf_counter()
    runtime: Runtime = kind(
        Path(job["path"]),
        precision=job["precision"],
        threads=job["threads"],
        batch=job["batch"],
        device=job["device"],
    )
    loaded = time.perf_counter()
    runtime.run(batches[0])
    first = time.perf_counter()
    warmup, _ = measure(
        runtime.run,
        batches,
        min_seconds=job["warmup_seconds"],
        min_count=job["warmup_count"],
        max_seconds=job["max_seconds"],
    )
    on_gpu = job["device"] != "cpu" or job["runtime"] == "tensorrt"
    before = sensors(gpu=on_gpu)
    samples, cut_short = measure(
        runtime.run,
        batches,
        min_seconds=job["min_seconds"],
        min_count=job["min_count"],
        max_seconds=job["max_seconds"],
    )
    after = sensors(gpu=on_gpu)
    peak = peak_memory_kb()
    return {
        "started_at": started,
        "samples_ns": samples,
        "cut_short": cut_short,
        "warmup_count": len(warmup),
        "import_ms": (imported - begin) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_inference_ms": (first - loaded) * 1e3,
        "peak_rss_kb": peak,
        "sensors_before": before,
        "sensors_after": after,
        # Last, because a runtime may load the model a second time to find out.
        "executed": asdict(runtime.executed()),
    }


def peak_memory_kb() -> int | None:
    """Largest resident size of this process so far; None where the system does not tell.

    From /proc and not getrusage: on Linux a child's ru_maxrss starts at what its parent had when it was forked.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def main() -> int:
    """Exit code: 0, or one of the EXIT_ codes after one sentence on standard error."""
    try:
        job = json.load(sys.stdin)
        result = json.dumps(work(job))
        if job["output"] is None:
            sys.stdout.write(result)
        else:
            output = Path(job["output"])
            partial = output.with_name(output.name + ".partial")
            partial.write_text(result, encoding="utf-8")
            partial.replace(output)
    except RuntimeUnavailableError as error:
        return _fail(error, EXIT_UNAVAILABLE)
    except (ModelFileError, PrecisionError) as error:
        return _fail(error, EXIT_MODEL_FILE)
    except (RuntimesError, OSError, ValueError) as error:
        return _fail(error, EXIT_FAILED)
    return 0


def _fail(error: Exception, code: int) -> int:
    text = str(error) if isinstance(error, RuntimesError) else f"{type(error).__name__}: {error}"
    sys.stderr.write(" ".join(text.split()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
