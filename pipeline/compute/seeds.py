"""Seeds of independent streams of random numbers, all made of the one seed in params.yaml."""

from __future__ import annotations

import numpy as np

# torch's global generator and the clean views; the streams of the other processes begin at multiples of PER_PROCESS
CLEAN, COMPANIONS, MIXING, STRONG, GROUPS, SUBSET = range(6)
PER_PROCESS = 8


def stream_seed(seed: int, stream: int, epoch: int = 0) -> int:
    """A seed for a stream in an epoch: 63 bits that depend on all three in every part.

    In every part, because torch's generator on a CPU looks at the lower 32 bits only.
    """
    return int(np.random.SeedSequence((seed, stream, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
