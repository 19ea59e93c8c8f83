"""Stage distill: train the student with energy temperatures and HE-DA companion batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import World, join
from pipeline.config import Params
from pipeline.data.loader import open_images, steps_per_epoch, training_views
from pipeline.data.store import read_card
from pipeline.distillation import student as distillation
from pipeline.distillation.student import ScoredImages
from pipeline.energy.groups import EnergyGroups
from pipeline.store.paths import CHECKPOINTS, DATA, ENERGY, STUDENT, STUDENT_CURVES, SUBSET, TEACHER
from pipeline.store.space import require_space
from pipeline.store.tables import (
    THRESHOLDS,
    check_lineage,
    check_members,
    check_scored,
    read_energy,
    read_subset,
    sha256_file,
)
from pipeline.training.card import network_card, training_card
from pipeline.training.checkpoint import open_checkpoint
from pipeline.training.weights import build_student, check_runs, read_network, state_bytes, write_network
from stages.curves import learning_curves, write_lineage
from stages.launcher import run_together


def distill(params: Params) -> None:
    torch.manual_seed(params.seed)
    device = choose_device(params.device)
    with join(device) as world:
        card = _distill(params, device, world)
        if world.first:
            print(f"student {card['network']}: validation top-1 {card['val_top1']:.2%}")


def _distill(params: Params, device: torch.device, world: World) -> dict[str, Any]:
    training = params.distill.training
    data = read_card(DATA)
    teacher, teacher_card = read_network(TEACHER)
    scores, energy_lineage = read_energy(ENERGY, *THRESHOLDS)
    subset, subset_lineage = read_subset(SUBSET)
    lineage = {
        "teacher": teacher_card["weights_sha256"],
        "energy": sha256_file(ENERGY),
        "subset": sha256_file(SUBSET),
    }
    if params.distill.initial_weights is not None:
        lineage["initial_weights"] = sha256_file(Path(params.distill.initial_weights))
    check_lineage(TEACHER, teacher_card["lineage"], {"data": data["fingerprint"]})
    check_lineage(
        ENERGY, energy_lineage, {"split": "train", "data": data["fingerprint"], "teacher": lineage["teacher"]}
    )
    check_lineage(SUBSET, subset_lineage, {"data": data["fingerprint"], "energy": lineage["energy"]})
    check_scored(ENERGY, scores, data["counts"]["train"])
    check_members(SUBSET, subset, data["counts"]["train"])

    student = build_student(params.distill, len(data["class_names"]))
    check_runs(student, "distill.network", len(data["class_names"]), data["image_size"])
    with world.together():
        if world.first:
            size = state_bytes(student)
            require_space(STUDENT, size, "the weights of the student", output=size)
            require_space(STUDENT_CURVES, 0, "the learning curves")
    groups = EnergyGroups(
        torch.from_numpy(scores["group"].copy()).to(device),
        energy_lineage["low_threshold"],
        energy_lineage["high_threshold"],
    )
    views = training_views(params.data)
    images = open_images(DATA, "train", device, **views)
    validation = open_images(DATA, "val", device)
    members = torch.from_numpy(subset["index"].copy()).to(device)
    scored = ScoredImages(images, groups, energy_lineage["temperature"], members)
    steps = steps_per_epoch(len(images), training.batch_size)

    choices = {"distill": params.distill.model_dump(mode="json"), "heda": params.heda.model_dump(mode="json")}
    decides = {**choices, **lineage, "views": views, "seed": params.seed, "data": data["fingerprint"]}
    with (
        open_checkpoint(CHECKPOINTS, "student", decides, world, keep=True) as checkpoint,
        learning_curves(STUDENT_CURVES, "distill", training.epochs, steps, world) as curves,
    ):
        with world.together():
            if world.first:
                checkpoint.require_space(student)
        records = distillation.distill(
            student,
            teacher,
            scored,
            validation,
            params,
            world=world,
            checkpoint=checkpoint,
            on_step=curves.step,
            on_epoch=curves.epoch,
        )
        card = network_card("student", params.distill.network, data, lineage)
        card |= training_card(records, params.seed) | choices
        if world.first:
            card = write_network(STUDENT, student, card)
    if world.first:
        write_lineage(STUDENT_CURVES, card)
    return card


if __name__ == "__main__":
    run_together(distill, "stages.distill")
