"""Not a stage: runs an ablation study and writes its table, plots and raw numbers to docs/results/."""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from pipeline.ablation.equal_time import in_equal_time
from pipeline.ablation.jobs import Slurm
from pipeline.ablation.results import StudyResult, energy_picture, write_results
from pipeline.ablation.schedule import distinct_inputs, run_study
from pipeline.ablation.spread import spread_of
from pipeline.ablation.study import Study, load_study
from pipeline.ablation.trial import take_inputs
from pipeline.lineage import Run
from pipeline.store.paths import ABLATIONS, PARAMS, RESULTS, SPREAD
from stages import limit_spinning
from stages.common import run_program
from stages.progress import Bar


def ablation(study_file: Path, jobs: int, slurm: Slurm | None, out: Path) -> None:
    limit_spinning()  # in the processes of the trials
    study = load_study(study_file, PARAMS)
    if study.of_students:
        _take_teacher(study)
    with Bar("ablation", "epoch") as bar:
        study = in_equal_time(study, ABLATIONS, slurm, on_start=bar.tell)
        bar.total = sum(trial.params.distill.training.epochs for trial in study.trials())
        results = run_study(study, ABLATIONS, jobs, slurm, on_start=bar.tell, on_epochs=bar.update)
    inputs = list(distinct_inputs(study, ABLATIONS).values())
    result = StudyResult.of(study, ABLATIONS, inputs, results)
    for path in write_results(out, study.name, result, energy_picture(inputs[0], ABLATIONS)):
        print(path)
    if study.of_students:
        spread_of(result).write(SPREAD)
        print("run `dvc repro -fs report` to see the spread of the students in the report")


def _take_teacher(study: Study) -> None:
    """Use the pipeline's own teacher if dvc finds it up to date: trained again, it may differ in the last bits."""
    status = [sys.executable, "-m", "dvc", "status", "--quiet", "prepare", "train_teacher", "score_energy"]
    if not study.file.params and subprocess.run(status, check=False, capture_output=True).returncode == 0:
        take_inputs(next(iter(study.arms.values())), ABLATIONS, Run())
    else:
        print("the teacher of params.yaml is not made yet (`dvc repro score_energy` makes it): the study makes its own")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of arms and seeds")
    parser.add_argument("--jobs", type=_count, default=1, help="number of trials that run at the same time; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results; default {RESULTS}")
    parser.add_argument("--executor", choices=["local", "slurm"], default="local", help="default local: this machine")
    cluster = parser.add_argument_group("slurm", "of each job; Slurm takes all else from its SBATCH_... variables")
    cluster.add_argument("--partition", help="default: that of the cluster")
    cluster.add_argument("--minutes", type=_count, default=60, help="then the job is queued again; default 60")
    cluster.add_argument("--gpus-per-run", type=int, choices=[0, 1], default=1, help="default 1")
    cluster.add_argument("--cpus-per-run", type=_count, default=4, help="default 4")
    given = parser.parse_args()
    asked = Slurm(given.partition, given.minutes, given.gpus_per_run, given.cpus_per_run)
    slurm = asked if given.executor == "slurm" else None
    run_program(partial(ablation, given.study, given.jobs, slurm, given.out), log="ablation")
