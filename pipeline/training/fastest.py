"""How the passes of a training are computed fastest on this machine: in which precision, and compiled or not.

Both are timed: hardware for bf16 does not make every network faster, and neither does a compiler.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Generic

import torch
from torch import nn

from pipeline.compute.device import TrainingPrecision, autocast, can_compile, compiled, full_fp32, has_bf16
from pipeline.config import TrainingParams
from pipeline.errors import ParamsError
from pipeline.portable.text import first_line
from pipeline.training.card import EpochRecord
from pipeline.training.session import Session
from pipeline.training.stages import train_mode
from pipeline.training.task import S, Task

_ROUNDS = 15  # timed steps of each candidate, at most
_SECONDS = 5.0  # after which no further round begins
_GAIN = 0.9  # bf16 is chosen at this share of the time of fp32, which is exact, or less; compiled passes likewise
# Seconds that all steps must take before compiling is tried: it takes one to two minutes on two cores, and many
# networks gain less than a tenth by it, so a try in vain must cost little.
_LONG = 1200.0
_NO_COMPILER = "there is no C++ compiler (g++) or no Python.h (python3-dev) here"


@dataclass(frozen=True)
class Passes:
    """How the passes of a training step are computed.

    Attributes:
        precision: of the forward passes.
        compiled: whether torch.compile has made them.
    """

    precision: TrainingPrecision
    compiled: bool

    @contextmanager
    def of(self, *networks: nn.Module) -> Iterator[None]:
        """Within the block, the passes of these networks are computed so, but for autocast in the forward passes."""
        with ExitStack() as settings:
            if self.precision == "fp32":
                settings.enter_context(full_fp32())
            if self.compiled:
                settings.enter_context(compiled(*networks))
            yield


def fastest_passes(network: nn.Module, task: Task[S], params: TrainingParams, session: Session) -> Passes:
    """Choose what ``params`` leave to auto by timing forward and backward pass of the first step; the session is told.

    All processes choose alike. Weights, buffers and random numbers are left as they were. Two steps show that a
    training is too short for compiling.

    Raises:
        ParamsError: compiling is on, but there is no compiler.
    """
    able = params.compile != "off" and _all_can_compile(session)
    if params.compile == "on" and not able:
        key = f"{task.block}.training.compile"
        raise ParamsError(f"params.yaml: {key} is on, but {_NO_COMPILER}; install both or set it to auto")
    if params.compile == "auto" and not able:
        session.tell(f"compile: off, because {_NO_COMPILER}")
    undecided = params.compile == "auto" and able
    candidates = [Passes(precision, params.compile == "on") for precision in _precisions(params, session)]
    chosen = candidates[0]
    if len(candidates) == 1 and not undecided:
        return chosen
    with _left_unchanged(network, session.device):
        train_mode(network)
        step = _FirstStep(network, task, session)
        for candidate in candidates:
            step.seconds(candidate)  # choice of kernels, compilation
        if len(candidates) > 1:
            fp32, bf16 = step.medians(candidates)
            chosen = candidates[bf16 <= _GAIN * fp32]
            times = f"{_ms(fp32)} in fp32 and {_ms(bf16)} in bf16"
            session.tell(f"precision: {chosen.precision}; a step takes {times} here")
        if undecided and _compiling_pays(step, chosen, params.epochs * task.steps, session):
            chosen = replace(chosen, compiled=True)
    return chosen


def resumed_passes(record: EpochRecord, session: Session) -> Passes:
    """The passes of a run that goes on after this epoch: the same, as they decide the last bits of its weights."""
    if record.compiled and not _all_can_compile(session):
        session.tell(f"compile: off from here on, because {_NO_COMPILER}")
        return Passes(record.precision, compiled=False)
    return Passes(record.precision, record.compiled)


def _precisions(params: TrainingParams, session: Session) -> list[TrainingPrecision]:
    if params.precision != "auto":
        return [params.precision]
    if has_bf16(session.device):
        return ["fp32", "bf16"]
    session.tell("precision: fp32, because this processor does not compute in bf16")
    return ["fp32"]


def _all_can_compile(session: Session) -> bool:
    """Whether all processes can; they may be on several machines."""
    able = int(session.world.total(torch.tensor(int(can_compile(session.device)), device=session.device)))
    return able == session.world.size


def _compiling_pays(step: "_FirstStep[S]", eager: Passes, steps: int, session: Session) -> bool:
    """Whether a training of so many steps is long enough to try it, and its steps are then faster."""
    expected = steps * step.seconds(eager)
    if expected < _LONG:
        session.tell(f"compile: off; all steps take about {expected:.2g} s, and compiling is tried from {_LONG:g} s on")
        return False
    other = replace(eager, compiled=True)
    try:
        compilation = step.seconds(other)
        plain, fast = step.medians([eager, other])
    except Exception as error:  # torch's compiler raises errors of many types
        session.tell(f"compile: off, because torch.compile fails with this network ({first_line(error)})")
        return False
    pays = fast <= _GAIN * plain
    times = f"{_ms(plain)} as it is and {_ms(fast)} compiled, for which {compilation:.0f} s were spent"
    session.tell(f"compile: {'on' if pays else 'off'}; a step takes {times}")
    return pays


class _FirstStep(Generic[S]):
    """Forward and backward pass of the first step of a training, to be timed."""

    def __init__(self, network: nn.Module, task: Task[S], session: Session) -> None:
        self._network, self._task, self._session = network, task, session
        self._step = next(iter(task.epoch_steps(0)))

    def seconds(self, passes: Passes) -> float:
        """Of one step; the mean over all processes."""
        network, task, device, world = self._network, self._task, self._session.device, self._session.world
        try:
            with passes.of(network, *task.frozen):
                started = _now(device)
                with autocast(passes.precision, device):
                    loss = task.objective(network, self._step, 0)
                loss.backward()  # type: ignore[no-untyped-call]
                passed = _now(device) - started
        finally:
            network.zero_grad(set_to_none=True)
        return float(world.total(torch.tensor(passed, device=device))) / world.size

    def medians(self, candidates: list[Passes]) -> list[float]:
        """Seconds of a step, of candidates that take turns."""
        times: list[list[float]] = [[] for _ in candidates]
        # the times are those of all processes, so all of them do equally many rounds
        while not times[0] or (sum(map(sum, times)) < _SECONDS and len(times[0]) < _ROUNDS):
            for candidate, found in zip(candidates, times, strict=True):
                found.append(self.seconds(candidate))
        return [median(found) for found in times]


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


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
