"""The plainest loop that times ONNX Runtime; run as a program, it prints milliseconds, the median of an inference.

It shares nothing with the benchmark but the session options, without which it would not run the same kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime

from pipeline.runtimes.onnxruntime_runtime import SESSION_ENTRIES

WARMUP_SECONDS = 1.0


def median_ms(path: str, inputs: str, precision: str, threads: int, seconds: float) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in SESSION_ENTRIES.get(precision, {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(inputs)[:1]}
    for limit in (WARMUP_SECONDS, seconds):
        samples = []
        end = time.perf_counter() + limit
        while time.perf_counter() < end or not samples:
            begin = time.perf_counter()
            session.run(None, feed)
            samples.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(samples)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("inputs")
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    parser.add_argument("seconds", type=float)
    print(median_ms(**vars(parser.parse_args())))
