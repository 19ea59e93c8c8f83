"""All runs of a study over one or several processes; what was done before is not done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from pipeline.ablation.run import check_arm, execute, finished, read_result, result_path
from pipeline.ablation.study import Run, Study
from pipeline.ablation.upstream import locate, pack, teach
from pipeline.config import Params
from pipeline.errors import EnergyKDError, TrainingError
from pipeline.training.loop import EpochRecord

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
    for name, params in study.arms.items():
        check_arm(name, params, root)
    for params in distinct_upstreams(study, root):
        on_start("teacher")
        teach(params, root, partial(_tell_epoch, on_start, params.teacher.training.epochs))
    on_start("students")
    runs = study.runs()
    # arms may ask for the same run under two names
    missing = list({result_path(run, root): run for run in runs if not finished(run, root)}.values())
    on_epochs(_epochs(runs) - _epochs(missing))
    failures = _one_by_one(missing, root, on_epochs) if jobs == 1 else _in_processes(missing, root, jobs, on_epochs)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(missing)} runs failed, the others are kept; {failures[0]}")
    return [(run, read_result(run, root)) for run in runs]


def distinct_upstreams(study: Study, root: Path) -> list[Params]:
    """One arm's parameters for each different teacher and energy temperature in the study."""
    return list({locate(params, root).energy: params for params in study.arms.values()}.values())


def _epochs(runs: Sequence[Run]) -> int:
    return sum(run.params.distill.training.epochs for run in runs)


def _tell_epoch(on_start: Callable[[str], None], epochs: int, record: EpochRecord) -> None:
    on_start(f"teacher {record.epoch + 1}/{epochs}")


def _one_by_one(runs: Sequence[Run], root: Path, on_epochs: Callable[[int], None]) -> list[str]:
    """Do the runs; returns one sentence for each that failed."""
    outcomes = [_outcome(run, root, lambda record: on_epochs(1)) for run in runs]
    return [failure for failure in outcomes if failure is not None]


def _in_processes(runs: Sequence[Run], root: Path, jobs: int, on_epochs: Callable[[int], None]) -> list[str]:
    """The same in ``jobs`` processes, which end with this one."""
    # a forked child would share the parent's CUDA context and OpenMP threads
    context = multiprocessing.get_context("spawn")
    tasks, reports = context.Queue(), context.Queue()
    for run in runs:
        tasks.put(run)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    # not daemonic: a run whose images stay files has processes of its own
    workers = [
        context.Process(target=_serve, args=(tasks, reports, root, threads, os.getpid()))
        for _ in range(min(jobs, len(runs)))
    ]
    for worker in workers:
        worker.start()
    outcomes: list[str | None] = []
    try:
        while len(outcomes) < len(runs):
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
        tasks.cancel_join_thread()  # runs that nobody takes any more must not keep this process
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()  # until then it holds the locks of its checkpoints
    return [failure for failure in outcomes if failure is not None]


def _check_alive(exit_codes: Sequence[int | None]) -> None:
    dead = [code for code in exit_codes if code is not None]
    if dead:
        raise TrainingError(
            f"a process of the study ended with code {dead[0]}, if that is -9 perhaps for lack of memory; run the same "
            "command again to go on, with fewer jobs if it happens again"
        )


def _serve(tasks: Any, reports: Any, root: Path, threads: int, parent: int) -> None:
    """A worker: runs from ``tasks``, one after the other; reports each finished epoch as 1, each run as [outcome]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    # otherwise each job has as many compiling processes as there are cores
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    while True:
        run = tasks.get()
        reports.put([_outcome(run, root, lambda record: reports.put(1))])


def _outcome(run: Run, root: Path, on_epoch: Callable[[EpochRecord], None]) -> str | None:
    """Do one run; None if it went well, else one sentence: a failed run does not stop the others."""
    try:
        execute(run, root, on_epoch)
    except EnergyKDError as error:
        return f"arm {run.arm!r} seed {run.seed}: {error}"
    except torch.OutOfMemoryError:
        return f"arm {run.arm!r} seed {run.seed}: the device has not enough memory; use fewer jobs"
    return None


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed study must not leave trainers behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
