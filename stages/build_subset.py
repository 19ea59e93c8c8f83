"""Stage build_subset: the share of the training split with the highest energy, for HE-DA."""

import logging

import numpy as np

from pipeline.config import Params
from pipeline.energy.subset import PAPER_RANGE, make_subset
from pipeline.lineage import Run
from pipeline.store.json_files import write_json
from pipeline.store.paths import SUBSET_METRICS
from pipeline.store.space import require_space
from stages.common import run_stage


def build_subset(params: Params) -> None:
    fraction, run = params.heda.fraction, Run()
    if not PAPER_RANGE[0] <= fraction <= PAPER_RANGE[1]:
        logging.warning("heda.fraction %g is outside the paper's range %g..%g", fraction, *PAPER_RANGE)
    require_space(SUBSET_METRICS, 0, "the metrics")
    chosen = make_subset(run, params.heda, params.seed)
    labels, classes = run.energy.columns["label"], len(run.data.class_names)
    shares = np.bincount(labels[chosen], minlength=classes) / np.bincount(labels, minlength=classes)
    metrics = {
        "subset_images": len(chosen),
        "subset_fraction": len(chosen) / len(labels),
        "subset_smallest_class_share": float(shares.min()),
        "subset_largest_class_share": float(shares.max()),
        "subset_teacher_top1": float(run.energy.columns["correct"][chosen].mean()),
    }
    write_json(SUBSET_METRICS, metrics)
    print(f"subset: {len(chosen):,} images; {shares.min():.0%} to {shares.max():.0%} of a class")


if __name__ == "__main__":
    run_stage(build_subset)
