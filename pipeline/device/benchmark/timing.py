"""The timed loop, which measures the inference and nothing else."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A time server may make the clock 0.05 % fast or slow; after a suspension the clock jumps forward.
_JUMP_SECONDS, _JUMP_SHARE = 1.0, 1e-3


def measure(
    run: Callable[[NDArray[np.float32]], Any],
    batches: Sequence[NDArray[np.float32]],
    *,
    min_seconds: float,
    min_count: int,
    max_seconds: float,
) -> tuple[list[int], bool]:
    """Measure the latency of single inferences, cycling through the batches.

    The loop ends when both ``min_seconds`` and ``min_count`` are reached, or at ``max_seconds``. Changes of the wall
    clock have no effect. Python's garbage collector is off, because its pauses are not part of the inference.

    Returns:
        nanoseconds of each inference, and true if ``max_seconds`` ended the loop.
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
    """Split images [N, 3, H, W] into contiguous batches [size, 3, H, W]; first images fill up the last batch."""
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise ValueError(f"inputs must be float32 [N, 3, H, W], but are {images.dtype} {list(images.shape)}")
    order = np.arange(math.ceil(len(images) / size) * size) % len(images)
    return [np.ascontiguousarray(images[rows]) for rows in order.reshape(-1, size)]


class WallClock:
    """Detects changes of the wall clock."""

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), time.monotonic()

    def jump(self) -> float | None:
        """Seconds by which the wall clock was set since the last call, negative if set back; None if it was not set."""
        steady = time.monotonic() - self._steady
        seconds = time.time() - self._wall - steady
        self._wall, self._steady = time.time(), time.monotonic()
        return seconds if abs(seconds) > _JUMP_SECONDS + _JUMP_SHARE * steady else None
