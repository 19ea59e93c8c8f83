"""The teacher: trained on the labels here, or taken from a given checkpoint; either way its accuracy is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.artifacts import sha256_file
from pipeline.card import checkpoint_card, network_card, training_card
from pipeline.checkpoint import open_checkpoint
from pipeline.config import Params
from pipeline.data.loader import open_images, training_views
from pipeline.data.store import read_card
from pipeline.disk import require_space
from pipeline.distributed import ALONE, World
from pipeline.errors import CheckpointError, TrainingError
from pipeline.inference import top1
from pipeline.training import EpochRecord, train_classifier
from pipeline.weights import build_network, check_runs, load_foreign, state_bytes, write_network


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
        on_step, on_epoch: as for :func:`pipeline.training.train`; not called for a given checkpoint.

    Raises:
        ParamsError: there is no such network, or it cannot take the images.
        CheckpointError: the given checkpoint does not fit the network, or is below ``minimum_top1``.
        SpaceError: the disk cannot hold the weights, or the epochs that are stored while it trains.
        TrainingError: the loss was not finite, or the trained teacher is below ``minimum_top1``.
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
    accuracy = top1(network.to(device), open_images(data, "val", device), world)
    if accuracy < params.teacher.minimum_top1:
        raise CheckpointError(
            f"checkpoint {path} reaches validation top-1 {accuracy:.4f}, below teacher.minimum_top1 "
            f"{params.teacher.minimum_top1}; check that it was trained on these classes in this order and with this "
            "data.mean and data.std, or lower the limit"
        )
    card = network_card("teacher", params.teacher.network, read_card(data), {"checkpoint": sha256_file(path)})
    return card | checkpoint_card(accuracy)


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
    with open_checkpoint(checkpoints, "teacher", decides, world, keep=True) as checkpoint:
        with world.together():
            if world.first:
                checkpoint.require_space(network)
        records = train_classifier(
            network,
            open_images(data, "train", device, **views),
            open_images(data, "val", device),
            params.teacher.training,
            params.seed,
            world=world,
            checkpoint=checkpoint,
            on_step=on_step,
            on_epoch=on_epoch,
        )
        accuracy = records[-1].val_top1
        if accuracy < params.teacher.minimum_top1:
            raise TrainingError(
                f"the trained teacher reaches validation top-1 {accuracy:.4f}, below teacher.minimum_top1 "
                f"{params.teacher.minimum_top1}; change teacher.training in params.yaml or lower the limit"
            )
        made = network_card("teacher", params.teacher.network, card, {}) | training_card(records, params.seed)
        # inside the block: the crash checkpoint goes only once the teacher is there
        return write_network(folder, network, made) if world.first else made
