"""Stage train_teacher: train the teacher, or take a given checkpoint; either way check its accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.artifacts import sha256_file
from pipeline.card import checkpoint_card, network_card, training_card
from pipeline.checkpoint import open_checkpoint
from pipeline.compute import choose_device
from pipeline.config import Params
from pipeline.data.loader import Batch, DeviceImages, open_images, shuffled_batches, steps_per_epoch
from pipeline.data.store import read_card
from pipeline.errors import CheckpointError, TrainingError
from pipeline.inference import top1
from pipeline.layout import CHECKPOINTS, DATA, TEACHER, TEACHER_CURVES
from pipeline.training import cross_entropy, epoch_seed, train
from pipeline.weights import build_network, check_runs, load_foreign, write_network
from stages.common import run
from stages.curves import learning_curves


def train_teacher(params: Params) -> None:
    torch.manual_seed(params.seed)
    device = choose_device(params.device)
    data = read_card(DATA)
    network = build_network(params.teacher.network, len(data["class_names"]), "teacher.network")
    check_runs(network, "teacher.network", len(data["class_names"]), data["image_size"])
    validation = open_images(DATA, "val", device)
    make = _train if params.teacher.checkpoint is None else _load
    card = make(network, params, data, validation)
    print(f"teacher {card['network']} ({card['source']}): validation top-1 {card['val_top1']:.2%}")


def _load(network: nn.Module, params: Params, data: dict[str, Any], validation: DeviceImages) -> dict[str, Any]:
    path = Path(str(params.teacher.checkpoint))
    load_foreign(network, path)
    accuracy = top1(network.to(validation.device), validation)
    if accuracy < params.teacher.minimum_top1:
        raise CheckpointError(
            f"checkpoint {path} reaches validation top-1 {accuracy:.4f}, below teacher.minimum_top1 "
            f"{params.teacher.minimum_top1}; check that it was trained on these classes in this order and with this "
            "data.mean and data.std, or lower the limit"
        )
    with learning_curves(TEACHER_CURVES, "teacher", epochs=0, steps=0):
        card = network_card("teacher", params.teacher.network, data, {"checkpoint": sha256_file(path)})
        return write_network(TEACHER, network, card | checkpoint_card(accuracy))


def _train(network: nn.Module, params: Params, data: dict[str, Any], validation: DeviceImages) -> dict[str, Any]:
    training = params.teacher.training
    views = {"crop_padding": params.data.crop_padding, "horizontal_flip": params.data.horizontal_flip}
    images = open_images(DATA, "train", validation.device, **views)
    steps = steps_per_epoch(len(images), training.batch_size)

    def epoch_steps(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator(images.device).manual_seed(epoch_seed(params.seed, epoch))
        return shuffled_batches(images, training.batch_size, generator)

    decides = {
        "network": params.teacher.network,
        "training": training.model_dump(mode="json"),
        "views": views,
        "seed": params.seed,
        "data": data["fingerprint"],
    }
    with (
        open_checkpoint(CHECKPOINTS, "teacher", decides) as checkpoint,
        learning_curves(TEACHER_CURVES, "teacher", training.epochs, steps) as curves,
    ):
        records = train(
            network,
            epoch_steps,
            steps,
            cross_entropy,
            training,
            seed=params.seed,
            device=images.device,
            validate=lambda trained: top1(trained, validation),
            checkpoint=checkpoint,
            on_step=curves.step,
            on_epoch=curves.epoch,
        )
        accuracy = records[-1].val_top1
        if accuracy < params.teacher.minimum_top1:
            raise TrainingError(
                f"the trained teacher reaches validation top-1 {accuracy:.4f}, below teacher.minimum_top1 "
                f"{params.teacher.minimum_top1}; change teacher.training in params.yaml or lower the limit"
            )
        card = network_card("teacher", params.teacher.network, data, {})
        return write_network(TEACHER, network, card | training_card(records, params.seed))


if __name__ == "__main__":
    run(train_teacher)
