"""Seeds of independent streams of random numbers, all made of the one seed in params.yaml."""

from __future__ import annotations

# torch's global generator and the clean views; the streams of the other processes begin at multiples of PER_PROCESS
CLEAN, COMPANIONS, MIXING, STRONG, GROUPS, SUBSET = range(6)
PER_PROCESS = 8


def stream_seed(seed: int, stream: int, epoch: int = 0) -> int:
    """A seed for a stream in an epoch; runs with neighbouring seeds share none of them."""
    return ((stream << 53) + seed * 1_000_003 + epoch) % 2**63
