"""All runs of a study over one or several processes; what was done before is not done again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from pipeline.ablation.run import execute, finished
from pipeline.ablation.study import Run, Study
from pipeline.ablation.upstream import locate, pack, teach
from pipeline.errors import EnergyKDError, TrainingError

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
        jobs: runs at the same time, each in a process of its own.
        on_start: told what is being made.
        on_epochs: told how many epochs of students were finished since it was last called.

    Raises:
        TrainingError: a run failed; the others were finished first and their results kept.
        EnergyKDError: data or a teacher could not be made.
    """
    by_data = {locate(params, root).data: params for params in study.arms.values()}
    by_energy = {locate(params, root).energy: params for params in study.arms.values()}
    for params in by_data.values():
        on_start("data")
        pack(params, root)
    for params in by_energy.values():
        on_start("teacher")
        teach(params, root)
    on_start("students")
    runs = study.runs()
    results = {index: result for index, run in enumerate(runs) if (result := finished(run, root)) is not None}
    on_epochs(sum(runs[index].params.distill.training.epochs for index in results))
    waiting = {index: run for index, run in enumerate(runs) if index not in results}
    results |= _in_processes(waiting, root, jobs, on_epochs)
    return [(run, results[index]) for index, run in enumerate(runs)]


def _in_processes(
    runs: dict[int, Run], root: Path, jobs: int, on_epochs: Callable[[int], None]
) -> dict[int, dict[str, Any]]:
    # a forked child would share the parent's CUDA context and OpenMP threads
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    results: dict[int, dict[str, Any]] = {}
    failures: list[str] = []
    with context.Manager() as manager:
        epochs = manager.Queue()
        with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(threads, os.getpid())) as pool:
            pending: dict[Future[dict[str, Any]], int] = {
                pool.submit(_work, run, root, epochs): index for index, run in runs.items()
            }
            while pending:
                done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                on_epochs(_drained(epochs))
                for future in done:
                    run = runs[pending[future]]
                    try:
                        results[pending.pop(future)] = future.result()
                    except EnergyKDError as error:
                        failures.append(f"arm {run.arm!r} seed {run.seed}: {error}")
                    except BrokenProcessPool:
                        raise TrainingError(
                            "a process of the study was killed, perhaps for lack of memory; run the same command again "
                            "to go on, with fewer jobs if it happens again"
                        ) from None
    if failures:
        raise TrainingError(f"{len(failures)} of {len(runs)} runs failed, the others are kept; {failures[0]}")
    return results


def _work(run: Run, root: Path, epochs: Any) -> dict[str, Any]:
    return execute(run, root, on_epoch=lambda record: epochs.put(1))


def _drained(queue: Any) -> int:
    count = 0
    while True:
        try:
            count += queue.get_nowait()
        except Empty:
            return count


def _start_worker(threads: int, parent: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed study must not leave trainers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
