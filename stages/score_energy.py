"""Stage score_energy: energy of every training image, its group, and the same for the test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.artifacts import check_lineage, write_json, write_table
from pipeline.compute import choose_device
from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.data.store import read_card
from pipeline.energy import EnergyGroups
from pipeline.evaluation import group_accuracy
from pipeline.layout import DATA, ENERGY, ENERGY_HISTOGRAM, ENERGY_METRICS, ENERGY_TEST, TEACHER
from pipeline.scoring import Scores, score_images
from pipeline.weights import read_network
from stages.common import progress, run, write_csv


def score_energy(params: Params) -> None:
    device = choose_device(params.device)
    teacher, card = read_network(TEACHER)
    data = read_card(DATA)["fingerprint"]
    check_lineage(TEACHER, card["lineage"], {"data": data})
    teacher.to(device)
    splits = {name: open_images(DATA, name, device) for name in ("train", "test")}
    with progress("score_energy", sum(len(images) for images in splits.values()), "image") as advance:
        train, test = (score_images(teacher, images, params.energy.temperature, advance) for images in splits.values())

    energy = torch.from_numpy(train.energy)
    groups = EnergyGroups.fit(energy, params.energy.low_fraction, params.energy.high_fraction)
    lineage = {
        "temperature": params.energy.temperature,
        "low_threshold": groups.low_threshold,
        "high_threshold": groups.high_threshold,
        "data": data,
        "teacher": card["weights_sha256"],
    }
    test_codes = groups.assign(torch.from_numpy(test.energy)).numpy()
    write_table(ENERGY, _columns(train, groups.codes.numpy()), lineage | {"split": "train"})
    write_table(ENERGY_TEST, _columns(test, test_codes), lineage | {"split": "test"})
    write_csv(ENERGY_HISTOGRAM, _histogram(train.energy))
    by_group = group_accuracy(train.correct, groups.codes.numpy())
    write_json(
        ENERGY_METRICS,
        {
            "low_threshold": groups.low_threshold,
            "high_threshold": groups.high_threshold,
            "teacher_train_top1": float(train.correct.mean()),
            "teacher_test_top1": float(test.correct.mean()),
            **{f"teacher_train_top1_{name}_energy": value for name, value in by_group.items()},
        },
    )
    print(f"energy of {len(energy):,} training images: {energy.min():.2f} (most confident) to {energy.max():.2f}")


def _columns(scores: Scores, groups: np.ndarray) -> dict[str, Any]:
    return {
        "index": np.arange(len(groups), dtype=np.int64),
        "label": scores.label,
        "energy": scores.energy,
        "confidence": scores.confidence,
        "correct": scores.correct,
        "group": groups,
    }


def _histogram(energy: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(energy, bins=40)
    return {"energy": ((edges[:-1] + edges[1:]) / 2).round(4).tolist(), "images": counts.tolist()}


if __name__ == "__main__":
    run(score_energy)
