"""Pieces of work in processes of their own, by submitit: on this machine, or as jobs of Slurm.

submitit pickles each piece and its answer into a folder, where its log lies too.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from submitit import Job, LocalExecutor, SlurmExecutor, SlurmJob
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, UncompletedJobError

from pipeline.errors import EnergyKDError, TrainingError
from pipeline.portable.text import last_line
from pipeline.store.lock import exclusive
from pipeline.training.card import EpochRecord

Task: TypeAlias = Callable[[Callable[[EpochRecord], None]], None]

_POLL_SECONDS = 0.5
_YEAR = 365 * 24 * 60  # minutes: submitit would end a local process after two
_REQUEUES = 20  # of a job that needs more than its time; one that never finishes an epoch in it must end
_EPOCH = re.compile(r"^epoch (\d+):", re.MULTILINE)
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slurm:
    """What each job asks Slurm for; all else is said by Slurm's own variables, such as SBATCH_ACCOUNT.

    Attributes:
        partition: None for the cluster's default.
        minutes: after which Slurm ends a job, which then is queued again and goes on.
        gpus, cpus: of a job.
    """

    partition: str | None
    minutes: int
    gpus: int
    cpus: int


@dataclass(frozen=True)
class Work:
    """A task as submitit pickles it.

    Attributes:
        task: called with a function that takes the record of each epoch.
        threads: of its computations.
        owner: file that the pool keeps locked; the process ends with the lock. None for a job of Slurm.
    """

    task: Task
    threads: int
    owner: Path | None

    def __call__(self) -> str | None:
        """Do the task; return None, or one sentence if it cannot be done."""
        if self.owner is not None:
            threading.Thread(target=_end_with, args=(self.owner,), daemon=True).start()
        torch.set_num_threads(self.threads)
        # otherwise each process has as many compiling processes as there are cores
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(self.threads))
        try:
            self.task(_log_epoch)
        except EnergyKDError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return "the device has not enough memory; use fewer jobs or a smaller batch_size"
        return None

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again when Slurm ends the job: the same, which goes on from its last stored epoch."""
        return DelayedSubmission(self)


class Pool:
    """Starts tasks in processes of their own; see :func:`open_pool`."""

    def __init__(self, folder: Path, lock: Path, jobs: int, slurm: Slurm | None) -> None:
        self._folder = folder
        self._lock = lock
        self._jobs = jobs
        self._slurm = slurm
        self._executor = _local_executor(folder) if slurm is None else _slurm_executor(folder, jobs, slurm)
        self._running: dict[str, Job[str | None]] = {}

    def run(
        self, tasks: Mapping[str, Task], on_epochs: Callable[[int], None], *, one_by_one: bool = False
    ) -> list[str]:
        """Do all tasks; one that fails does not stop the others.

        Args:
            tasks: by name.
            on_epochs: called with the number of epochs finished since the last call.
            one_by_one: do one at a time, on this machine with all its cores, whatever the number of jobs.

        Returns:
            One sentence about each task that failed, which begins with its name.

        Raises:
            TrainingError: Slurm does not take the jobs.
        """
        jobs = 1 if one_by_one else self._jobs
        if self._slurm is None:
            at_once, threads, owner = jobs, max(1, len(os.sched_getaffinity(0)) // jobs), self._lock
        else:  # which itself starts no more of an array at a time than it may
            at_once, threads, owner = 1 if one_by_one else len(tasks), self._slurm.cpus, None
        waiting = {name: Work(task, threads, owner) for name, task in tasks.items()}
        finished = dict.fromkeys(tasks, 0)
        failures = []
        while waiting or self._running:
            names = list(waiting)[: at_once - len(self._running)]
            if names:
                started = self._submit([waiting.pop(name) for name in names])
                self._running |= zip(names, started, strict=True)
            for name, job in list(self._running.items()):
                ended = job.done()  # asked first, so that the log of one that has ended is read to its end
                epochs = _epochs_in(job)
                if epochs > finished[name]:
                    on_epochs(epochs - finished[name])
                    finished[name] = epochs
                if ended:
                    del self._running[name]
                    if (failure := self._failure(job)) is not None:
                        failures.append(f"{name}: {failure}")
            time.sleep(_POLL_SECONDS)
        return failures

    def close(self) -> None:
        """Wait until the processes here have ended, as they do when the lock is free; cancel jobs of Slurm."""
        for job in self._running.values():
            if self._slurm is None:
                job.wait()
            else:
                job.cancel(check=False)

    def _submit(self, works: Sequence[Work]) -> list[Job[str | None]]:
        # Ctrl-C reaches all processes of the terminal: it is for this one, which then ends those that it started
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._executor.submit_array(works)
        except (UncompletedJobError, FailedSubmissionError) as error:
            raise TrainingError(
                f"Slurm does not take the jobs ({last_line(error)}); correct what is asked of it and run the same "
                "command again"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)

    def _failure(self, job: Job[str | None]) -> str | None:
        """None, or why the job failed; only the log of a failed job stays."""
        log = self._folder / job.paths.stdout.name
        try:
            reason = job.result()
        except FailedJobError:
            reason = "its program failed"
        except UncompletedJobError:
            reason = "its process was ended from outside, perhaps for lack of memory"
        for path in self._folder.glob(f"{job.job_id}_*"):
            if reason is None or path != log:
                path.unlink()
        return None if reason is None else f"{reason}; its log is {log}"


@contextmanager
def open_pool(root: Path, name: str, jobs: int, slurm: Slurm | None) -> Iterator[Pool]:
    """A pool of at most ``jobs`` processes at a time. However this process ends, those that it started here end too.

    Jobs of Slurm go on when this process is killed, and are cancelled when the same pool is opened again.

    Args:
        root: of the folders of all pools; for Slurm, all its machines must see it.
        name: of the pool, which only one process can hold.
        slurm: None for processes on this machine.

    Raises:
        TrainingError: there is no Slurm here.
        BusyError: another process holds the pool.
    """
    if slurm is not None and None in (shutil.which("srun"), shutil.which("sbatch")):
        raise TrainingError(
            "srun and sbatch, the commands of Slurm, are not on this machine; run this on one that submits jobs to the "
            "cluster, or choose the executor local"
        )
    folder, lock = root / ("local" if slurm is None else "slurm") / name, root / f"{name}.lock"
    with ExitStack() as unlocked, exclusive(lock, f"running the study {name}"):
        if slurm is not None:
            _cancel_jobs_in(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pool = Pool(folder, lock, jobs, slurm)
        unlocked.callback(pool.close)
        yield pool
        shutil.rmtree(folder)


def _local_executor(folder: Path) -> LocalExecutor:
    # submitit hides all GPUs that it is not told the numbers of; the processes shall see those of this one
    gpus = [f"{_GPUS}={os.environ[_GPUS]}"] if _GPUS in os.environ else [f"--unset={_GPUS}"]
    executor = LocalExecutor(folder, python=shlex.join(["env", *gpus, sys.executable]))
    executor.update_parameters(timeout_min=_YEAR, stderr_to_stdout=True)
    return executor


def _slurm_executor(folder: Path, jobs: int, slurm: Slurm) -> SlurmExecutor:
    executor = SlurmExecutor(folder, max_num_timeout=_REQUEUES)
    executor.update_parameters(
        job_name="energykd",
        partition=slurm.partition,
        time=slurm.minutes,
        cpus_per_task=slurm.cpus,
        gpus_per_node=slurm.gpus or None,
        array_parallelism=jobs,
        stderr_to_stdout=True,
    )
    return executor


def _cancel_jobs_in(folder: Path) -> None:
    """Cancel what a killed process left in Slurm's queue, because two jobs cannot do the same task."""
    suffix = "_submitted.pkl"
    left: list[Job[str | None]] = [
        SlurmJob(folder, path.name.removesuffix(suffix)) for path in folder.glob(f"*{suffix}")
    ]
    for job in left:
        job.cancel(check=False)
    for job in left:
        job.wait()


def _log_epoch(record: EpochRecord) -> None:
    """Write to the log, in which the pool counts the epochs."""
    numbers = f"train loss {record.train_loss:.4f}, validation top-1 {100 * record.val_top1:.2f} %"
    sys.stdout.write(f"epoch {record.epoch + 1}: {numbers}, {record.seconds:.1f} s\n")


def _epochs_in(job: Job[str | None]) -> int:
    # a task that was queued again tells of its first epochs again
    return len(set(_EPOCH.findall(job.stdout() or "")))


def _end_with(owner: Path) -> None:
    """End this process when the file is no longer locked: a killed study must not leave training processes behind."""
    with owner.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    os._exit(1)
