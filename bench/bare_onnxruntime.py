"""A minimal loop that times ONNX Runtime and prints the median milliseconds of an inference.

python -m bench.bare_onnxruntime MODEL INPUTS PRECISION THREADS WARMUP_SECONDS SECONDS

It shares no code with the benchmark.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import onnxruntime


def median_ms(path: str, inputs: str, precision: str, threads: int, *limits: float) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(inputs)[:1]}
    for limit in limits:  # the first is the warm-up
        samples = []
        end = time.perf_counter() + limit
        while time.perf_counter() < end or not samples:
            begin = time.perf_counter()
            session.run(None, feed)
            samples.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(samples)


if __name__ == "__main__":
    print(median_ms(*sys.argv[1:4], int(sys.argv[4]), *map(float, sys.argv[5:])))
