"""All runs of a study over one or several processes; what was done before is not done again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from pipeline.ablation.run import execute, finished
from pipeline.ablation.study import Run, Study
from pipeline.ablation.upstream import locate, pack, teach
from pipeline.config import Params
from pipeline.errors import EnergyKDError, TrainingError
from pipeline.training import EpochRecord

_POLL_SECONDS = 0.5


def run_study(
    study: Study,
    root: Path,
    jobs: int,
    on_start: Callable[[str], None] = lambda what: None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> list[tuple[Run, dict[str, Any]]]:
    """The result of every run of the study, in its order.

    Several jobs share one GPU, or the cores of the CPU: small networks do not fill a GPU alone.

    Args:
        root: keeps data, teachers, energies, crash checkpoints and results; a second call goes on where the first was.
        jobs: runs at the same time; from 2 on, each in a process of its own.
        on_start: told what is being made.
        on_epochs: told how many epochs of students were finished since it was last called.

    Raises:
        TrainingError: a run failed; the others were finished first and their results kept.
        EnergyKDError: data or a teacher could not be made.
    """
    for params in distinct_upstreams(study, root):
        on_start("data")
        pack(params, root)
        on_start("teacher")
        teach(params, root, partial(_tell_epoch, on_start, params.teacher.training.epochs))
    on_start("students")
    runs = study.runs()
    results = {index: result for index, run in enumerate(runs) if (result := finished(run, root)) is not None}
    on_epochs(sum(runs[index].params.distill.training.epochs for index in results))
    waiting = {index: run for index, run in enumerate(runs) if index not in results}
    results |= _one_by_one(waiting, root, on_epochs) if jobs == 1 else _in_processes(waiting, root, jobs, on_epochs)
    return [(run, results[index]) for index, run in enumerate(runs)]


def _tell_epoch(on_start: Callable[[str], None], epochs: int, record: EpochRecord) -> None:
    on_start(f"teacher {record.epoch + 1}/{epochs}")


def distinct_upstreams(study: Study, root: Path) -> list[Params]:
    """One arm's parameters for each different teacher and energy temperature in the study."""
    return list({locate(params, root).energy: params for params in study.arms.values()}.values())


class _Outcomes:
    """Results by index, and what went wrong; a failed run does not stop the others."""

    def __init__(self, runs: Mapping[int, Run]) -> None:
        self._runs = runs
        self._failures: list[str] = []
        self.results: dict[int, dict[str, Any]] = {}

    def take(self, index: int, result: Callable[[], dict[str, Any]]) -> None:
        try:
            self.results[index] = result()
        except EnergyKDError as error:
            run = self._runs[index]
            self._failures.append(f"arm {run.arm!r} seed {run.seed}: {error}")

    def check(self) -> None:
        if self._failures:
            raise TrainingError(
                f"{len(self._failures)} of {len(self._runs)} runs failed, the others are kept; {self._failures[0]}"
            )


def _one_by_one(runs: Mapping[int, Run], root: Path, on_epochs: Callable[[int], None]) -> dict[int, dict[str, Any]]:
    outcomes = _Outcomes(runs)
    for index, run in runs.items():
        outcomes.take(index, partial(execute, run, root, lambda record: on_epochs(1)))
    outcomes.check()
    return outcomes.results


def _in_processes(
    runs: Mapping[int, Run], root: Path, jobs: int, on_epochs: Callable[[int], None]
) -> dict[int, dict[str, Any]]:
    # a forked child would share the parent's CUDA context and OpenMP threads
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    outcomes = _Outcomes(runs)
    epochs = context.Queue()
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(threads, os.getpid(), epochs)) as pool:
        pending: dict[Future[dict[str, Any]], int] = {
            pool.submit(_work, run, root): index for index, run in runs.items()
        }
        while pending:
            done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            on_epochs(_drained(epochs))
            for future in done:
                try:
                    outcomes.take(pending.pop(future), future.result)
                except BrokenProcessPool:
                    raise TrainingError(
                        "a process of the study was killed, perhaps for lack of memory; run the same command again to "
                        "go on, with fewer jobs if it happens again"
                    ) from None
    outcomes.check()
    return outcomes.results


def _work(run: Run, root: Path) -> dict[str, Any]:
    return execute(run, root, on_epoch=lambda record: _Worker.epochs.put(1))


def _drained(queue: Any) -> int:
    count = 0
    while True:
        try:
            count += queue.get_nowait()
        except Empty:
            return count


class _Worker:
    """What a worker process was given when it started; a queue cannot be sent with each run."""

    epochs: Any


def _start_worker(threads: int, parent: int, epochs: Any) -> None:
    _Worker.epochs = epochs
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed study must not leave trainers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
