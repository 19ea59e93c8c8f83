"""Data-parallel processes: rank, share of the work, and collective operations.

A single process, the default, needs no process group and no communication. Several are started by torchrun
(:mod:`stages.launcher`), which sets the environment variables that :func:`join` reads.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import EnergyKDError, StoppedError, TrainingError


@dataclass(frozen=True)
class World:
    """The data-parallel processes of one computation.

    Attributes:
        rank: number of this process, 0 <= rank < size.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` items; the parts differ by one item at most and do not overlap."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def weight(self, part: int, whole: int) -> float:
        """Weight of this process's mean, with which the mean over all processes is the mean over the whole batch."""
        return self.size * part / whole

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that each backward pass averages its gradients over all processes."""
        # Buffers need no exchange: batch statistics are synchronised where they are taken. Torch 2.14 has another name
        # for this argument, but 2.11 knows this one only.
        return network if self.size == 1 else DistributedDataParallel(network, broadcast_buffers=False)

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """Wait at the end of the block for all processes; an input error in one of them ends all of them.

        Without it the others would wait for the failed process for ever.

        Raises:
            EnergyKDError: in the first process, the error of the lowest rank, so that it is shown once.
            StoppedError: in the other processes.
        """
        if self.size == 1:
            yield
            return
        error: EnergyKDError | None = None
        try:
            yield
        except EnergyKDError as caught:
            error = caught
        errors: list[EnergyKDError | None] = [None] * self.size
        dist.all_gather_object(errors, error)
        for rank, found in enumerate(errors):
            if found is not None:
                raise found if self.is_main else StoppedError(f"process {rank} stopped: {found}")

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor that has the same shape in each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes one after the other; they may differ in their first dimension."""
        if self.size == 1:
            return part
        parts = [part] * self.size
        dist.all_gather_object(parts, part.cpu())
        return torch.cat(parts).to(part.device)


ALONE = World()


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """This process's rank among the processes that torchrun started; :data:`ALONE` without torchrun.

    Args:
        device: device of the exchanged tensors; for a GPU, the one with this process's local rank becomes current.

    Raises:
        TrainingError: the machine has fewer GPUs than processes.
    """
    if not started_by_torchrun():
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"launcher.processes asks for more processes than this machine's {torch.cuda.device_count()} GPU(s); "
                "lower it"
            )
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        gc.collect()  # DDP objects in reference cycles hold the group, whose threads must end before the process does
        dist.destroy_process_group()
