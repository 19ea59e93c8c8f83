"""Runs a minute of a short study by the number of its runs that share the device, compiled and not."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

from bench.gpu.call import Call
from bench.gpu.studies import load, with_changes
from bench.measure import table
from pipeline.ablation.schedule import run_study
from pipeline.ablation.study import Study
from pipeline.ablation.upstream import locate, pack, teach
from pipeline.data.store import read_card

STUDY, ARM = "tiny100_direction", "Energy KD, paper's direction"
JOBS = (1, 2, 4, 8)
RUNS, EPOCHS = 8, 3


def run(call: Call) -> str:
    """The table; each number of jobs, compiled or not, is a part."""
    study = load(STUDY, call)
    study = replace(study, arms={ARM: study.arms[ARM]}, reference=ARM, comparisons=(), seeds=tuple(range(RUNS)))
    chosen, choices = JOBS, ("off", "auto")
    if call.quick:
        study, chosen, choices = replace(study, seeds=(0, 1)), (1, 2), ("off",)
    epochs = 1 if call.quick else EPOCHS
    rows = []
    for choice in choices:
        short = with_changes(
            study,
            {
                # a bad teacher is as fast as a good one
                "teacher": {"minimum_top1": 0.0, "training": _short(1)},
                "distill": {"training": _short(epochs) | {"compile": choice}},
            },
        )
        rows += [call.part(f"{jobs} job(s), compile {choice}", partial(_timed, short, jobs, call)) for jobs in chosen]
    lines = (
        (
            f"{row['jobs']} job(s), compile {row['compile']}",
            f"{row['seconds']:.1f}",
            f"{60 * row['runs'] / row['seconds']:.2f}",
            f"{row['seconds_per_epoch']:.2f}",
            f"{row['images'] * row['jobs'] / row['seconds_per_epoch']:,.0f}",
        )
        for row in rows
    )
    head = ("at the same time", "seconds in all", "runs a minute", "s an epoch of one", "images/s of all")
    body = f"""{len(study.seeds)} runs of {epochs} epoch(s) of {ARM!r} in ablations/{STUDY}.yaml. Seconds in all hold \
what starts up and compiles; seconds an epoch are the median of the runs, and images/s what all jobs together do by it.

{table(head, lines)}"""
    return call.report("Runs that share one device", body, rows)


def _short(epochs: int) -> dict[str, Any]:
    return {"epochs": epochs, "schedule": "cosine", "milestones": [], "warmup_epochs": 0}


def _timed(study: Study, jobs: int, call: Call) -> dict[str, Any]:
    folder = call.state / "packing"
    params = study.arms[ARM]
    pack(params, folder)
    teach(params, folder)
    for left in ("runs", "checkpoints"):  # of a call that was stopped: all runs of a part are timed together
        shutil.rmtree(folder / left, ignore_errors=True)
    started = time.perf_counter()
    results = [result for _, result in run_study(study, folder, jobs)]
    seconds = time.perf_counter() - started
    return {
        "jobs": jobs,
        "compile": params.distill.training.compile,
        "runs": len(results),
        "seconds": seconds,
        "seconds_per_epoch": statistics.median(result["seconds_per_epoch"] for result in results),
        "images": read_card(locate(params, folder).data)["counts"]["train"],
    }
