"""Stage distill: train the student with energy temperatures and HE-DA companion batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.artifacts import check_lineage, read_table, sha256_file
from pipeline.card import network_card, training_card
from pipeline.checkpoint import open_checkpoint
from pipeline.compute import choose_device
from pipeline.config import Params
from pipeline.data.loader import DeviceImages, cycled_indices, open_images, shuffled_batches, steps_per_epoch
from pipeline.data.store import read_card
from pipeline.energy import EnergyGroups
from pipeline.heda import MIXES, companion_size
from pipeline.inference import top1
from pipeline.layout import CHECKPOINTS, DATA, ENERGY, STUDENT, STUDENT_CURVES, SUBSET, TEACHER
from pipeline.objective import Companion, Distillation, DistillationStep
from pipeline.training import epoch_seed, train
from pipeline.weights import build_network, check_runs, read_network, write_network
from stages.common import run
from stages.curves import learning_curves


def distill(params: Params) -> None:
    torch.manual_seed(params.seed)
    device = choose_device(params.device)
    training = params.distill.training
    data = read_card(DATA)
    teacher, teacher_card = read_network(TEACHER)
    scores, energy_lineage = read_table(ENERGY)
    subset, subset_lineage = read_table(SUBSET)
    lineage = {
        "teacher": teacher_card["weights_sha256"],
        "energy": sha256_file(ENERGY),
        "subset": sha256_file(SUBSET),
    }
    check_lineage(TEACHER, teacher_card["lineage"], {"data": data["fingerprint"]})
    check_lineage(ENERGY, energy_lineage, {"data": data["fingerprint"], "teacher": lineage["teacher"]})
    check_lineage(SUBSET, subset_lineage, {"data": data["fingerprint"], "energy": lineage["energy"]})

    student = build_network(params.distill.network, len(data["class_names"]), "distill.network")
    check_runs(student, "distill.network", len(data["class_names"]), data["image_size"])
    groups = EnergyGroups(
        torch.from_numpy(scores["group"].copy()).to(device),
        energy_lineage["low_threshold"],
        energy_lineage["high_threshold"],
    )
    objective = Distillation(teacher.to(device), groups, energy_lineage["temperature"], params.distill, params.heda)
    views = {"crop_padding": params.data.crop_padding, "horizontal_flip": params.data.horizontal_flip}
    images = open_images(DATA, "train", device, **views)
    validation = open_images(DATA, "val", device)
    members = torch.from_numpy(subset["index"].copy()).to(device)
    steps = steps_per_epoch(len(images), training.batch_size)

    def epoch_steps(epoch: int) -> Iterator[DistillationStep]:
        generator = torch.Generator(device).manual_seed(epoch_seed(params.seed, epoch))
        clean = shuffled_batches(images, training.batch_size, generator)
        return map(DistillationStep, clean, _companions(images, members, params, epoch, steps))

    choices = {"distill": params.distill.model_dump(mode="json"), "heda": params.heda.model_dump(mode="json")}
    decides = {**choices, **lineage, "views": views, "seed": params.seed, "data": data["fingerprint"]}
    with (
        open_checkpoint(CHECKPOINTS, "student", decides) as checkpoint,
        learning_curves(STUDENT_CURVES, "distill", training.epochs, steps) as curves,
    ):
        records = train(
            student,
            epoch_steps,
            steps,
            objective,
            training,
            seed=params.seed,
            device=device,
            validate=lambda trained: top1(trained, validation),
            checkpoint=checkpoint,
            on_step=curves.step,
            on_epoch=curves.epoch,
        )
        card = network_card("student", params.distill.network, data, lineage)
        card = write_network(STUDENT, student, card | training_card(records, params.seed) | choices)
    print(f"student {card['network']}: validation top-1 {card['val_top1']:.2%}")


def _companions(
    images: DeviceImages, members: torch.Tensor, params: Params, epoch: int, steps: int
) -> Iterator[Companion | None]:
    """One HE-DA companion batch per step, or None per step if there is no mixing."""
    if params.heda.mix == "none":
        yield from [None] * steps
        return
    size = companion_size(min(params.distill.training.batch_size, len(images)), params.heda.fraction)
    # streams of their own, so that the clean batches are the same with and without HE-DA
    on_device = torch.Generator(images.device).manual_seed(epoch_seed(params.seed, epoch, stream=1))
    on_host = torch.Generator().manual_seed(epoch_seed(params.seed, epoch, stream=2))
    mix = MIXES[params.heda.mix]
    for index in cycled_indices(members, size, steps, on_device):
        yield Companion(mix(images.views(index, on_device), on_host), images.labels[index])


if __name__ == "__main__":
    run(distill)
