"""Not a stage: runs an ablation study and writes its table, plots and raw numbers to docs/results/."""

import argparse
from functools import partial
from pathlib import Path

from pipeline.ablation.results import StudyResult, energy_picture, write_results
from pipeline.ablation.schedule import distinct_inputs, run_study
from pipeline.ablation.study import load_study
from pipeline.store.paths import ABLATIONS, PARAMS, RESULTS
from stages.common import run_program
from stages.progress import Bar


def ablation(study_file: Path, jobs: int, out: Path) -> None:
    study = load_study(study_file, PARAMS)
    epochs = sum(trial.params.distill.training.epochs for trial in study.trials())
    with Bar("ablation", "epoch", epochs) as bar:
        results = run_study(study, ABLATIONS, jobs, on_start=bar.tell, on_epochs=bar.update)
    inputs = distinct_inputs(study, ABLATIONS)
    result = StudyResult.of(study, ABLATIONS, inputs, results)
    for path in write_results(out, study.name, result, energy_picture(inputs[0], ABLATIONS)):
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of arms and seeds")
    parser.add_argument("--jobs", type=int, default=1, help="number of trials that run at the same time; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results; default {RESULTS}")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("argument --jobs: must be at least 1")
    run_program(partial(ablation, arguments.study, arguments.jobs, arguments.out), log="ablation")
