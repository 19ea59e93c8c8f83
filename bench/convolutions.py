"""Training steps of depthwise networks on small images, with and without our gradients of depthwise weights.

python -m bench.convolutions [rounds] [threads]

Prints the median ratio of images/s over interleaved rounds of one step each (batch 32, AdamW, labels alone), with the
lowest and highest ratio of a round. It runs on the CPU, where torch's own gradients are slow.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

import models
from bench.common import interleaved, span, table
from pipeline.compute.convolutions import mended_convolutions

CPU = torch.device("cpu")
SETTINGS = [
    *(("timm:efficientnet_lite0", size) for size in (64, 96, 128)),
    *(("timm:mobilenetv3_small_100", size) for size in (64, 96, 128)),
    *(("timm:mobilenetv2_100", 32), ("timm:convnext_zepto_rms", 64)),
]
BATCH = 32


def step_of(network: nn.Module, size: int, within: Callable[[], AbstractContextManager[None]]) -> Callable[[], float]:
    """A training step that returns its images/s."""
    images = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    labels, optimizer = torch.randint(10, (BATCH,)), torch.optim.AdamW(network.parameters(), 1e-3)

    def step() -> float:
        start = time.perf_counter()
        with within():
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        return BATCH / (time.perf_counter() - start)

    return step


def main(rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = []
    for name, size in SETTINGS:
        network = models.build(name, 10).to(memory_format=torch.channels_last)
        arms = {
            "torch": step_of(network, size, nullcontext),
            "ours": step_of(network, size, lambda network=network: mended_convolutions(network, CPU)),
        }
        interleaved(arms, 2)  # choice of kernels
        samples = interleaved(arms, rounds)
        ratios = [ours / torchs for ours, torchs in zip(samples["ours"], samples["torch"], strict=True)]
        medians = [f"{statistics.median(samples[arm]):.1f}" for arm in arms]
        rows.append([name, size, *medians, f"{statistics.median(ratios):.2f}", span(ratios, ".2f")])
        print(*rows[-1], flush=True)
    print(table(["network", "pixels", "images/s, torch", "ours", "ours / torch", "min to max"], rows))


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*(*words, *(9, torch.get_num_threads())[len(words) :]))
