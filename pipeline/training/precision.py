"""The precision that trains faster on this machine: hardware for bf16 does not make every network faster."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

import torch
from torch import nn

from pipeline.compute.device import TrainingPrecision, autocast, full_fp32, has_bf16
from pipeline.training.session import Session
from pipeline.training.stages import train_mode
from pipeline.training.task import S, Task

_ROUNDS = 15  # timed steps of each precision, at most
_SECONDS = 5.0  # after which no further round begins
_GAIN = 0.9  # bf16 is chosen at this share of the time of fp32, which is exact, or less


def faster_precision(forward: nn.Module, network: nn.Module, task: Task[S], session: Session) -> TrainingPrecision:
    """Time forward and backward pass of the first step in fp32 and bf16 in turn, and choose; the session is told.

    All processes choose alike. Weights, buffers and random numbers are left as they were.

    Args:
        forward: the network as it is trained, compiled or not.
        network: the same, for its weights and buffers.
    """
    device, world = session.device, session.world
    if not has_bf16(device):
        session.tell("precision: fp32, because this processor does not compute in bf16")
        return "fp32"
    precisions: tuple[TrainingPrecision, TrainingPrecision] = ("fp32", "bf16")
    times: dict[TrainingPrecision, list[float]] = {precision: [] for precision in precisions}
    with _left_unchanged(network, device):
        train_mode(network)
        step = next(iter(task.epoch_steps(0)))

        def seconds(precision: TrainingPrecision) -> float:
            started = _now(device)
            with full_fp32() if precision == "fp32" else nullcontext():
                with autocast(precision, device):
                    loss = task.objective(forward, step, 0)
                loss.backward()  # type: ignore[no-untyped-call]
            passed = _now(device) - started
            network.zero_grad(set_to_none=True)
            return passed

        for precision in precisions:  # untimed: choice of kernels, compilation
            seconds(precision)
        spent = 0.0
        while not times["bf16"] or (spent < _SECONDS and len(times["bf16"]) < _ROUNDS):
            for precision in precisions:
                # summed, so that all processes do equally many rounds
                found = float(world.total(torch.tensor(seconds(precision), device=device))) / world.size
                times[precision].append(found)
                spent += found
    fp32, bf16 = median(times["fp32"]), median(times["bf16"])
    chosen: TrainingPrecision = "bf16" if bf16 <= _GAIN * fp32 else "fp32"
    session.tell(f"precision: {chosen}; a step takes {1e3 * fp32:.3g} ms in fp32 and {1e3 * bf16:.3g} ms in bf16 here")
    return chosen


@contextmanager
def _left_unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers and the random numbers of torch at the end of the block."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    for buffer, before in buffers:
        buffer.copy_(before)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
