"""The timed loop. Everything but the inference itself is kept out of it."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], Any]


def measure(
    run: Run, batches: Sequence[NDArray[np.float32]], *, min_seconds: float, min_count: int, max_seconds: float
) -> tuple[list[int], bool]:
    """Time inferences one by one, cycling through the batches.

    Ends when both the seconds and the count are reached, or at ``max_seconds``. The clock is monotonic, so that a
    change of the wall clock is in no duration. Python's garbage collector rests meanwhile, since its pauses belong to
    this program and not to the model.

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


class WallClock:
    """Notices when the wall clock is set while something runs."""

    # A clock that a time server corrects may run 0.05 % fast or slow; a suspended device shows as a jump forward.
    TOLERANCE_SECONDS = 1.0
    TOLERANCE_SHARE = 1e-3

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), time.monotonic()

    def seconds(self) -> float:
        """Since this object was made or last asked for a jump, by a clock that cannot be set."""
        return time.monotonic() - self._steady

    def jump(self) -> float | None:
        """Seconds by which the wall clock was set since the last call, negative if back; None if it was not."""
        steady = self.seconds()
        found = time.time() - self._wall - steady
        self._wall, self._steady = time.time(), time.monotonic()
        return found if abs(found) > self.TOLERANCE_SECONDS + self.TOLERANCE_SHARE * steady else None
