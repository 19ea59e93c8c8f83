"""Run all trials of a study; finished trials are not repeated."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.ablation.jobs import Slurm, open_pool
from pipeline.ablation.study import Study, Trial
from pipeline.ablation.trial import (
    TrialResult,
    check_arm,
    execute,
    has_inputs,
    make_data,
    make_inputs,
    places_of,
    read_result,
    result_path,
    soft_labels_of,
    store_soft_labels,
)
from pipeline.config import Params
from pipeline.errors import TrainingError


def run_study(
    study: Study,
    root: Path,
    jobs: int,
    slurm: Slurm | None = None,
    on_start: Callable[[str], None] = lambda what: None,
    on_epochs: Callable[[int], None] = lambda count: None,
) -> list[tuple[Trial, TrialResult]]:
    """Run the trials of a study, and return the result of each in the order of :meth:`Study.trials`.

    Several jobs share one GPU, or the cores of the CPU: small networks do not fill a GPU alone.

    Args:
        root: keeps data, teachers, energies, crash checkpoints and results; a second call continues the first.
        jobs: trials at the same time.
        slurm: where teachers and trials run; None: on this machine.
        on_start: called with what is being made.
        on_epochs: called with the number of student epochs finished since the last call.

    Raises:
        TrainingError: a teacher or a trial failed; the others were finished first and their results kept. Or there is
            no Slurm here.
        BusyError: another process runs the study.
        EnergyKDError: the data could not be made, or an arm cannot run.
    """
    with open_pool(root / "jobs", study.name, jobs, slurm) as pool:
        shared = distinct_inputs(study, root)
        for params in shared.values():
            on_start("data")
            make_data(params, root)
        for name, params in study.arms.items():
            check_arm(name, params, root)
        on_start("teacher")
        teachers = {
            f"the teacher of arm {name!r}": partial(make_inputs, params, root)
            for name, params in shared.items()
            if not has_inputs(params, root)
        }
        taught = 0

        def on_teacher(count: int) -> None:
            nonlocal taught
            taught += count
            on_start(f"teacher, epoch {taught}")

        if failures := pool.run(teachers, on_teacher, one_by_one=True):
            raise TrainingError(failures[0])
        trials = study.trials()
        unlabelled = {path: trial for trial in trials if (path := soft_labels_of(trial, root)) is not None}
        if unlabelled:
            on_start("soft labels")
        tasks = {
            f"the soft labels of arm {trial.arm!r} seed {trial.seed}": partial(store_soft_labels, trial, root)
            for trial in unlabelled.values()
        }
        if failures := pool.run(tasks, lambda count: None, one_by_one=True):
            raise TrainingError(failures[0])
        on_start("students")
        # arms may ask for the same trial under two names
        missing = {
            f"arm {trial.arm!r} seed {trial.seed}": trial
            for path, trial in {result_path(trial, root): trial for trial in trials}.items()
            if not path.exists()
        }
        on_epochs(_epochs(trials) - _epochs(list(missing.values())))
        failures = pool.run({name: partial(execute, trial, root) for name, trial in missing.items()}, on_epochs)
        if failures:
            raise TrainingError(f"{len(failures)} of {len(missing)} runs failed, the others are kept; {failures[0]}")
    return [(trial, read_result(trial, root)) for trial in trials]


def distinct_inputs(study: Study, root: Path) -> dict[str, Params]:
    """Of each different set of energies in the study, one arm and its parameters."""
    arms: dict[Path, str] = {}
    for name, params in study.arms.items():
        arms.setdefault(places_of(params, root).energy, name)
    return {name: study.arms[name] for name in arms.values()}


def _epochs(trials: Sequence[Trial]) -> int:
    return sum(trial.params.distill.training.epochs for trial in trials)
