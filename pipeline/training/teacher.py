"""The teacher: trained on the labels here, or taken from a given checkpoint; either way its accuracy is checked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.compute.distributed import ALONE, World
from pipeline.config import Params
from pipeline.data.loader import open_images, training_views
from pipeline.data.store import read_card
from pipeline.errors import CheckpointError, TrainingError
from pipeline.store.space import require_space
from pipeline.store.tables import sha256_file
from pipeline.training.answers import Answers
from pipeline.training.card import checkpoint_card, network_card, training_card
from pipeline.training.checkpoint import open_checkpoint
from pipeline.training.inference import answers
from pipeline.training.loop import EpochRecord, train_classifier
from pipeline.training.weights import build_network, check_runs, load_foreign, state_bytes, write_network


def make_teacher(
    folder: Path,
    data: Path,
    params: Params,
    device: torch.device,
    checkpoints: Path,
    *,
    world: World = ALONE,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> dict[str, Any]:
    """Write the teacher that ``params.teacher`` asks for into ``folder`` and return its card.

    Args:
        data: the packed store.
        checkpoints: root of the crash checkpoints.
        world: the processes that train together; the first writes.
        on_step, on_epoch: as for :func:`pipeline.training.loop.train`; not called for a given checkpoint.

    Raises:
        ParamsError: there is no such network, or it cannot take the images.
        CheckpointError: the given checkpoint does not fit the network, or its accuracy is below ``minimum_top1`` or
            that of guessing.
        SpaceError: the disk cannot hold the weights, or the epochs that are stored while it trains.
        TrainingError: as of :func:`pipeline.training.loop.train`, or the accuracy of the trained teacher is such.
    """
    torch.manual_seed(params.seed)
    card = read_card(data)
    classes = len(card["class_names"])
    network = build_network(params.teacher.network, classes, "teacher.network")
    check_runs(network, "teacher.network", classes, card["image_size"])
    with world.together():
        if world.first:
            size = state_bytes(network)
            require_space(folder, size, "the weights of the teacher", output=size)
    if params.teacher.checkpoint is not None:
        made = _load(network, data, params, device, world)
        return write_network(folder, network, made) if world.first else made
    return _train(folder, network, data, params, device, checkpoints, world, on_step, on_epoch)


def _load(network: nn.Module, data: Path, params: Params, device: torch.device, world: World) -> dict[str, Any]:
    path = Path(str(params.teacher.checkpoint))
    load_foreign(network, path)
    found = answers(network.to(device), open_images(data, "val", device), world)
    if (shortfall := _shortfall(found, params.teacher.minimum_top1)) is not None:
        raise CheckpointError(
            f"checkpoint {path} {shortfall}; check that it was trained on these classes in this order and with this "
            "data.mean and data.std, or lower the limit"
        )
    card = network_card("teacher", params.teacher.network, read_card(data), {"checkpoint": sha256_file(path)})
    return card | checkpoint_card(found.top1)


def _train(
    folder: Path,
    network: nn.Module,
    data: Path,
    params: Params,
    device: torch.device,
    checkpoints: Path,
    world: World,
    on_step: Callable[[], None],
    on_epoch: Callable[[EpochRecord], None],
) -> dict[str, Any]:
    card = read_card(data)
    views = training_views(params.data)
    decides = {
        "network": params.teacher.network,
        "training": params.teacher.training.model_dump(mode="json"),
        "views": views,
        "seed": params.seed,
        "data": card["fingerprint"],
    }
    validation = open_images(data, "val", device)
    with open_checkpoint(checkpoints, "teacher", decides, world, keep=True) as checkpoint:
        with world.together():
            if world.first:
                checkpoint.require_space(network)
        records = train_classifier(
            network,
            open_images(data, "train", device, **views),
            validation,
            params.teacher.training,
            params.seed,
            world=world,
            checkpoint=checkpoint,
            on_step=on_step,
            on_epoch=on_epoch,
        )
        if (shortfall := _shortfall(answers(network, validation, world), params.teacher.minimum_top1)) is not None:
            raise TrainingError(
                f"the trained teacher ({len(records)} epochs, the last at learning rate "
                f"{records[-1].learning_rate:.3g}) {shortfall}; change teacher.training in params.yaml or lower the "
                "limit"
            )
        made = network_card("teacher", params.teacher.network, card, {}) | training_card(records, params.seed)
        # inside the block: the crash checkpoint goes only once the teacher is there
        return write_network(folder, network, made) if world.first else made


def _shortfall(found: Answers, minimum_top1: float) -> str | None:
    """What is too little of a teacher's answers to the validation images, else None."""
    if found.top1 < minimum_top1:
        return f"reaches validation top-1 {found.top1:.4f}, below teacher.minimum_top1 {minimum_top1}"
    if not found.at_chance:
        return None
    wrong = (found.given != found.labels).nonzero().flatten()[:8].tolist()
    shortfall = (
        f"is at chance level, teaching nothing: over the classes its validation accuracy is {found.balanced:.4f}, and "
        f"guessing may reach {found.guessing:.4f} (wrong are images {', '.join(map(str, wrong))}, ...)"
    )
    if minimum_top1 > 0:
        return shortfall
    logging.warning("the teacher %s; it is taken since teacher.minimum_top1 is 0", shortfall)
    return None
