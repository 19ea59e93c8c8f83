"""Run all trials of a study in one or several processes; finished trials are not repeated."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from pipeline.ablation.study import Study, Trial
from pipeline.ablation.trial import (
    TrialResult,
    check_arm,
    execute,
    make_data,
    make_inputs,
    places_of,
    read_result,
    result_path,
)
from pipeline.config import Params
from pipeline.errors import EnergyKDError, TrainingError
from pipeline.training.card import EpochRecord

_POLL_SECONDS = 0.5


def run_study(
    study: Study,
    root: Path,
    jobs: int,
    on_start: Callable[[str], None] = lambda what: None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> list[tuple[Trial, TrialResult]]:
    """Run the trials of a study, and return the result of each in the order of :meth:`Study.trials`.

    Several jobs share one GPU, or the cores of the CPU: small networks do not fill a GPU alone.

    Args:
        root: keeps data, teachers, energies, crash checkpoints and results; a second call continues the first.
        jobs: trials at the same time; from 2 on, each in a process of its own.
        on_start: called with what is being made.
        on_epochs: called with the number of student epochs finished since the last call.

    Raises:
        TrainingError: a trial failed; the others were finished first and their results kept.
        EnergyKDError: data or a teacher could not be made.
    """
    shared = distinct_inputs(study, root)
    for params in shared:
        on_start("data")
        make_data(params, root)
    for name, params in study.arms.items():
        check_arm(name, params, root)
    for params in shared:
        on_start("teacher")
        make_inputs(params, root, lambda record: on_start(f"teacher, epoch {record.epoch + 1}"))
    on_start("students")
    trials = study.trials()
    # arms may ask for the same trial under two names
    missing = [
        trial for path, trial in {result_path(trial, root): trial for trial in trials}.items() if not path.exists()
    ]
    on_epochs(_epochs(trials) - _epochs(missing))
    if jobs == 1:
        outcomes = [_outcome(trial, root, lambda record: on_epochs(1)) for trial in missing]
    else:
        outcomes = _in_processes(missing, root, jobs, on_epochs)
    if failures := [failure for failure in outcomes if failure is not None]:
        raise TrainingError(f"{len(failures)} of {len(missing)} runs failed, the others are kept; {failures[0]}")
    return [(trial, read_result(trial, root)) for trial in trials]


def distinct_inputs(study: Study, root: Path) -> list[Params]:
    """One arm's parameters for each different set of energies in the study."""
    return list({places_of(params, root).energy: params for params in study.arms.values()}.values())


def _epochs(trials: Sequence[Trial]) -> int:
    return sum(trial.params.distill.training.epochs for trial in trials)


def _in_processes(trials: Sequence[Trial], root: Path, jobs: int, on_epochs: Callable[[int], None]) -> list[str | None]:
    """The outcomes of trials in ``jobs`` processes, which end with this one."""
    # a forked child would share the parent's CUDA context and OpenMP threads
    context = multiprocessing.get_context("spawn")
    tasks, reports = context.Queue(), context.Queue()
    for trial in trials:
        tasks.put(trial)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    # not daemonic: a trial whose images stay files has processes of its own
    workers = [
        context.Process(target=_serve, args=(tasks, reports, root, threads, os.getpid()))
        for _ in range(min(jobs, len(trials)))
    ]
    for worker in workers:
        worker.start()
    outcomes: list[str | None] = []
    try:
        while len(outcomes) < len(trials):
            try:
                report = reports.get(timeout=_POLL_SECONDS)
            except Empty:
                _check_alive([worker.exitcode for worker in workers])
                continue
            if isinstance(report, int):
                on_epochs(report)
            else:
                outcomes += report
    finally:
        tasks.cancel_join_thread()  # otherwise trials left in the queue would keep this process alive
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()  # until then it holds the locks of its checkpoints
    return outcomes


def _check_alive(exit_codes: Sequence[int | None]) -> None:
    dead = [code for code in exit_codes if code is not None]
    if dead:
        raise TrainingError(
            f"a process of the study ended with code {dead[0]} (-9 may mean too little memory); run the same command "
            "again to go on, with fewer jobs if it happens again"
        )


def _serve(tasks: Any, reports: Any, root: Path, threads: int, parent: int) -> None:
    """A worker: runs trials from ``tasks``; reports each finished epoch as 1 and each trial as [outcome]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    # otherwise each job has as many compiling processes as there are cores
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    while True:
        trial = tasks.get()
        reports.put([_outcome(trial, root, lambda record: reports.put(1))])


def _outcome(trial: Trial, root: Path, on_epoch: Callable[[EpochRecord], None]) -> str | None:
    """Run one trial; return None, or one sentence if it failed, because a failure must not stop the others."""
    try:
        execute(trial, root, on_epoch)
    except EnergyKDError as error:
        return f"arm {trial.arm!r} seed {trial.seed}: {error}"
    except torch.OutOfMemoryError:
        return f"arm {trial.arm!r} seed {trial.seed}: the device has not enough memory; use fewer jobs"
    return None


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed study must not leave training processes behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
