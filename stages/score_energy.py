"""Stage score_energy: energy of every training image, its group, and the same for the test images."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import World, join
from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.data.store import read_card
from pipeline.energy.groups import GROUP_NAMES, telling_groups
from pipeline.energy.scoring import ScoreParts, score_images, scored_top1, write_scores
from pipeline.store.paths import CHECKPOINTS, DATA, ENERGY, ENERGY_HISTOGRAM, ENERGY_METRICS, ENERGY_TEST, TEACHER
from pipeline.store.space import require_space
from pipeline.store.tables import ROW_BYTES, check_lineage, sha256_file, write_json
from pipeline.training.checkpoint import crash_folder
from pipeline.training.weights import read_network
from stages.common import progress, write_csv
from stages.launcher import run_together


def score_energy(params: Params) -> None:
    device = choose_device(params.device)
    with join(device) as world:
        _score_energy(params, device, world)


def _score_energy(params: Params, device: torch.device, world: World) -> None:
    with world.together():
        teacher, card = read_network(TEACHER)
        data = read_card(DATA)["fingerprint"]
        check_lineage(TEACHER, card["lineage"], {"data": data})
        splits = {name: open_images(DATA, name, device) for name in ("train", "test")}
        if world.first:
            images = sum(map(len, splits.values()))
            require_space(CHECKPOINTS / "energy", images * ROW_BYTES, "the scores that are stored in parts")
            require_space(ENERGY, images * ROW_BYTES, "the energy tables", output=images * ROW_BYTES)
            require_space(ENERGY_METRICS, 0, "the metrics")
    teacher.to(device).to(memory_format=torch.channels_last)
    lineage = {"temperature": params.energy.temperature, "data": data, "teacher": card["weights_sha256"]}
    # a CPU and a GPU do not round alike, so one does not go on with the energies of the other
    with crash_folder(
        CHECKPOINTS, "energy", lineage | {"device": device.type}, "scoring these images", world, keep=True
    ) as folder:
        total = sum(len(images) for images in splits.values())
        with progress("score_energy", total, "image", shown=world.first) as advance:
            train, test = (
                score_images(teacher, images, params.energy.temperature, folder / name, world=world, on_images=advance)
                for name, images in splits.items()
            )
        if world.first:
            _write(train, test, params, lineage)


def _write(train: ScoreParts, test: ScoreParts, params: Params, lineage: dict[str, Any]) -> None:
    energy = train.energy()
    groups = telling_groups(energy, params.energy.low_fraction, params.energy.high_fraction)
    thresholds = {"low_threshold": groups.low_threshold, "high_threshold": groups.high_threshold}
    test_codes = groups.assign(test.energy())
    if len(found := test_codes.unique().tolist()) == 1 and len(groups.codes.unique()) > 1:
        logging.warning(
            "all %d test images fall into the %s energy group of the training images: accuracy by group says nothing",
            len(test_codes),
            GROUP_NAMES[found[0]],
        )
    write_scores(ENERGY, train, groups.codes, lineage | thresholds | {"split": "train"})
    # the groups of the test images are those of this table's thresholds
    made_from = lineage | thresholds | {"energy": sha256_file(ENERGY)}
    write_scores(ENERGY_TEST, test, test_codes, made_from | {"split": "test"})
    write_csv(ENERGY_HISTOGRAM, _histogram(energy))
    train_top1, by_group = scored_top1(train, groups.codes)
    test_top1, _ = scored_top1(test, test_codes)
    write_json(
        ENERGY_METRICS,
        {
            **thresholds,
            "teacher_train_top1": train_top1,
            "teacher_test_top1": test_top1,
            **{f"teacher_train_top1_{name}_energy": value for name, value in by_group.items()},
        },
    )
    print(f"energy of {len(energy):,} training images: {energy.min():.2f} (most confident) to {energy.max():.2f}")


def _histogram(energy: Tensor) -> dict[str, list[float]]:
    counts, edges = np.histogram(energy.numpy(), bins=40)
    return {"energy": ((edges[:-1] + edges[1:]) / 2).round(4).tolist(), "images": counts.tolist()}


if __name__ == "__main__":
    run_together(score_energy, "stages.score_energy")
