"""The teacher: trained on the labels here, or taken from a given checkpoint; either way its accuracy is checked."""

import logging
from pathlib import Path

import torch
from torch import nn

from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.errors import CheckpointError, TrainingError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.store.documents import NetworkCard
from pipeline.store.space import require_space
from pipeline.training.card import card_facts, checkpoint_facts, training_facts
from pipeline.training.inference import predict
from pipeline.training.loop import train_classifier
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from pipeline.training.weights import build_network, check_runs, load_pretrained, state_bytes, write_network


def make_teacher(run: Run, params: Params, session: Session) -> NetworkCard | None:
    """Train the teacher, or take the given checkpoint, and write it to its place in the run.

    Returns:
        Its card; None in all processes but the first.

    Raises:
        ParamsError: there is no such network, or it cannot take the images.
        CheckpointError: the given checkpoint does not fit the network, or its accuracy is below ``minimum_top1`` or
            that of guessing.
        SpaceError: the disk cannot hold the weights, or the epochs that are stored while it trains.
        TrainingError: as of :func:`pipeline.training.loop.train`, or the accuracy of the trained teacher is too low.
    """
    torch.manual_seed(params.seed)
    data, folder = run.data, run.places.teacher
    classes, image = len(data.class_names), data.image
    network = build_network(params.teacher.network, classes, "teacher.network", channels=image.channels)
    check_runs(network, "teacher.network", classes, image.shape)
    with session.world.barrier():
        if session.world.is_main:
            require_space(folder, state_bytes(network), "the weights of the teacher", output=state_bytes(network))
    if params.teacher.checkpoint is None:
        return _train(network, run, params, session)
    path = Path(params.teacher.checkpoint)
    load_pretrained(network, path)
    validation = open_images(run.places.data, "val", session.device)
    predictions = predict(network.to(session.device), validation, session.world)
    if (shortfall := _shortfall(predictions, params.teacher.minimum_top1)) is not None:
        raise CheckpointError(
            f"checkpoint {path} {shortfall}; check that it was trained on these classes in this order and with this "
            "data.mean and data.std, or lower the limit"
        )
    facts = card_facts("teacher", params.teacher.network, data, {"checkpoint": sha256_file(path)})
    facts |= checkpoint_facts(predictions.top1)
    return write_network(folder, network, facts) if session.world.is_main else None


def _train(network: nn.Module, run: Run, params: Params, session: Session) -> NetworkCard | None:
    teacher, data, augmentation = params.teacher, run.data, params.data.augmentation
    key_parts = {
        "network": teacher.network,
        "training": teacher.training.model_dump(mode="json"),
        "views": augmentation.model_dump(mode="json"),
        "seed": params.seed,
        "data": data.fingerprint,
    }
    images = open_images(run.places.data, "train", session.device, augmentation)
    validation = open_images(run.places.data, "val", session.device)
    with session.checkpoint("teacher", key_parts, network) as checkpoint:
        epochs = train_classifier(network, images, validation, teacher.training, params.seed, session, checkpoint)
        records = session.watched(epochs)
        shortfall = _shortfall(predict(network, validation, session.world), teacher.minimum_top1)
        if shortfall is not None:
            raise TrainingError(
                f"the trained teacher ({len(records)} epochs, the last at learning rate "
                f"{records[-1].learning_rate:.3g}) {shortfall}; change teacher.training in params.yaml or lower the "
                "limit"
            )
        facts = card_facts("teacher", teacher.network, data, {}) | training_facts(records, params.seed)
        # inside the block: the crash checkpoint is removed after the teacher is written
        return write_network(run.places.teacher, network, facts) if session.world.is_main else None


def _shortfall(predictions: Predictions, minimum_top1: float) -> str | None:
    """Why the teacher's validation accuracy is too low, in one clause; None if it is not."""
    if predictions.top1 < minimum_top1:
        return f"reaches validation top-1 {predictions.top1:.4f}, below teacher.minimum_top1 {minimum_top1}"
    if not predictions.at_chance:
        return None
    wrong = (predictions.predicted != predictions.labels).nonzero().flatten()[:8].tolist()
    shortfall = (
        f"is at chance level, so it teaches nothing: its balanced validation accuracy is {predictions.balanced:.4f}, "
        f"and guessing may reach {predictions.guessing:.4f} (misclassified images: {', '.join(map(str, wrong))}, ...)"
    )
    if minimum_top1 > 0:
        return shortfall
    logging.warning("the teacher %s; it is used because teacher.minimum_top1 is 0", shortfall)
    return None
