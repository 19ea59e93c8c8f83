"""Seeds of independent streams of random numbers, all derived from ``seed`` in params.yaml."""

import numpy as np

# torch's global generator in process r has stream r * PER_PROCESS; that of process 0 is the stream CLEAN
CLEAN, COMPANIONS, MIXING, STRONG, RANDOM_GROUPS, SUBSET, NUMBERED = range(7)
PER_PROCESS = 8


def stream_seed(seed: int, stream: int, epoch: int = 0) -> int:
    """A seed of 63 bits, of which each depends on all three arguments; torch's CPU generator uses the lower 32 only."""
    return int(np.random.SeedSequence((seed, stream, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
