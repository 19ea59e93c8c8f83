"""Not a stage: runs an ablation study and writes its table, figure and figures to docs/results/."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipeline.ablation.results import document, energy_picture, write_results
from pipeline.ablation.schedule import distinct_upstreams, run_study
from pipeline.ablation.study import load_study
from pipeline.ablation.upstream import teacher_report
from pipeline.store.paths import ABLATIONS, PARAMS, RESULTS
from stages.common import run_program


def ablation(study_file: Path, jobs: int, out: Path) -> None:
    study = load_study(study_file, PARAMS)
    epochs = sum(run.params.distill.training.epochs for run in study.runs())
    with tqdm(total=epochs, unit="epoch", mininterval=0.5, dynamic_ncols=True) as bar:
        results = run_study(study, ABLATIONS, jobs, on_start=bar.set_description, on_epochs=bar.update)
    upstreams = distinct_upstreams(study, ABLATIONS)
    content = document(study, [teacher_report(params, ABLATIONS) for params in upstreams], results)
    for path in write_results(out, study.name, content, energy_picture(upstreams[0], ABLATIONS)):
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file of arms and seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time on the device; default 1")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results; default {RESULTS}")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("argument --jobs: must be at least 1")
    run_program(partial(ablation, arguments.study, arguments.jobs, arguments.out))
