"""Stage build_subset: the share of the training split with the highest energy, for HE-DA."""

from __future__ import annotations

import logging

import numpy as np
import torch

from pipeline.config import Params
from pipeline.data.store import read_card
from pipeline.energy.subset import PAPER_RANGE, select_subset
from pipeline.errors import DataError
from pipeline.store.documents import read_network_card
from pipeline.store.paths import DATA, ENERGY, SUBSET, SUBSET_METRICS, TEACHER
from pipeline.store.space import require_space
from pipeline.store.tables import (
    ROW_BYTES,
    check_lineage,
    check_scored,
    read_energy,
    sha256_file,
    write_json,
    write_table,
)
from stages.common import run


def build_subset(params: Params) -> None:
    fraction = params.heda.fraction
    if not PAPER_RANGE[0] <= fraction <= PAPER_RANGE[1]:
        logging.warning("heda.fraction %g is outside the paper's range %g..%g", fraction, *PAPER_RANGE)
    data = read_card(DATA)
    table, lineage = read_energy(ENERGY)
    teacher = read_network_card(TEACHER)["weights_sha256"]
    check_lineage(ENERGY, lineage, {"split": "train", "data": data["fingerprint"], "teacher": teacher})
    check_scored(ENERGY, table, data["counts"]["train"])
    size = len(table["label"]) * ROW_BYTES
    require_space(SUBSET, size, "the tables of chosen images", output=size)
    require_space(SUBSET_METRICS, 0, "the metrics")
    try:
        energy = torch.from_numpy(table["energy"].copy())
        chosen = select_subset(energy, fraction, params.heda.subset, params.seed).numpy()
    except ValueError as error:
        raise DataError(f"params.yaml: heda.fraction: {error}; raise the fraction or add images") from None
    write_table(
        SUBSET,
        {"index": chosen, "label": table["label"][chosen], "energy": table["energy"][chosen]},
        {
            "fraction": fraction,
            "subset": params.heda.subset,
            "data": data["fingerprint"],
            "energy": sha256_file(ENERGY),
        },
    )
    sizes = np.bincount(table["label"][chosen], minlength=len(data["class_names"]))
    shares = sizes / np.bincount(table["label"], minlength=len(data["class_names"]))
    write_json(
        SUBSET_METRICS,
        {
            "images": len(chosen),
            "fraction": len(chosen) / len(table["label"]),
            "smallest_class_share": float(shares.min()),
            "largest_class_share": float(shares.max()),
            "teacher_top1": float(table["correct"][chosen].mean()),
        },
    )
    print(f"subset: {len(chosen):,} images; {shares.min():.0%} to {shares.max():.0%} of a class")


if __name__ == "__main__":
    run(build_subset)
