"""The teacher: trained on the labels here, or taken from a given checkpoint; either way its accuracy is checked."""

import logging
from pathlib import Path

import torch
from torch import nn

from pipeline.config import TEACHER, FurtherTeacherParams, Params, TeacherParams
from pipeline.data.loader import open_images
from pipeline.data.normalisation import USUAL_NORMALISATIONS, Normalisation, taking
from pipeline.errors import CheckpointError, TrainingError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.store.documents import NetworkCard
from pipeline.store.space import require_space
from pipeline.training.card import card_facts, checkpoint_facts, training_facts
from pipeline.training.inference import predict, sampled_top1
from pipeline.training.initial import (
    Initial,
    given_normalisation,
    given_teacher,
    initial_network,
    library_normalisation,
)
from pipeline.training.loop import train_classifier
from pipeline.training.optimizer import check_trainable
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from pipeline.training.weights import check_runs, state_bytes, write_network

_SAMPLE = 2000  # validation images on which normalisations are compared, at most
_MUCH_WORSE = 0.1  # of top-1


def make_teacher(run: Run, params: Params, session: Session) -> NetworkCard | None:
    """Train the teacher, or take the given checkpoint, and write it to its place in the run.

    Returns:
        Its card; None in all processes but the first.

    Raises:
        ParamsError: there is no such network, or it cannot take the images.
        CheckpointError: the given weights do not fit the network; or the accuracy of a given checkpoint is below
            ``minimum_top1`` or that of guessing, or much better in another normalisation than the given one.
        SpaceError: the disk cannot hold the weights, or the epochs that are stored while it trains.
        TrainingError: as of :func:`pipeline.training.loop.train`, or the accuracy of the trained teacher is too low.
    """
    torch.manual_seed(params.seed)
    data, folder, checkpoint = run.data, run.places.teacher, params.teacher.checkpoint
    classes, shape = len(data.class_names), data.image.shape
    if checkpoint is None:
        initial = initial_network(params.teacher, "teacher", classes, shape)
        network = initial.network
    else:
        network = given_teacher(params.teacher, classes, shape)
    check_runs(network, "teacher.network", classes, shape)
    with session.world.barrier():
        if session.world.is_main:
            require_space(folder, state_bytes(network), "the weights of the teacher", output=state_bytes(network))
    if checkpoint is None:
        check_trainable(network, params.teacher.training, "teacher.training", shape)
        return _train(initial, run, params, session)
    normalisation = fitting_normalisation(network.to(session.device), run, params.teacher, session)
    validation = open_images(run.places.data, "val", session.device, normalisation)
    predictions = predict(network, validation, session.world)
    if (shortfall := _shortfall(predictions, params.teacher.minimum_top1)) is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint} {shortfall}; check that it was trained on these classes in this order, or lower "
            "the limit"
        )
    lineage = {"checkpoint": sha256_file(Path(checkpoint))}
    facts = card_facts("teacher", params.teacher.network, data, lineage, normalisation)
    facts |= checkpoint_facts(predictions.top1)
    return write_network(folder, network, facts) if session.world.is_main else None


def _train(initial: Initial, run: Run, params: Params, session: Session) -> NetworkCard | None:
    teacher, data, augmentation, network = params.teacher, run.data, params.data.augmentation, initial.network
    normalisation = initial.normalised(data, TEACHER, session)
    key_parts = {
        "network": teacher.network,
        "training": teacher.training.model_dump(mode="json"),
        "views": augmentation.model_dump(mode="json"),
        "normalisation": normalisation,
        "seed": params.seed,
        "data": data.fingerprint,
        **initial.lineage,
    }
    images = open_images(run.places.data, "train", session.device, normalisation, augmentation)
    validation = open_images(run.places.data, "val", session.device, normalisation)
    with session.checkpoint("teacher", key_parts) as checkpoint:
        epochs = train_classifier(network, images, validation, teacher.training, params.seed, session, checkpoint)
        records = session.watched(epochs)
        shortfall = _shortfall(predict(network, validation, session.world), teacher.minimum_top1)
        if shortfall is not None:
            raise TrainingError(
                f"the trained teacher ({len(records)} epochs, the last at learning rate "
                f"{records[-1].learning_rate:.3g}) {shortfall}; change teacher.training in params.yaml or lower the "
                "limit"
            )
        facts = card_facts("teacher", teacher.network, data, initial.lineage, normalisation)
        facts |= training_facts(records, params.seed, teacher.training.keep)
        # inside the block: the crash checkpoint is removed after the teacher is written
        return write_network(run.places.teacher, network, facts) if session.world.is_main else None


def fitting_normalisation(
    network: nn.Module, run: Run, params: TeacherParams | FurtherTeacherParams, session: Session, block: str = TEACHER
) -> Normalisation:
    """The given normalisation of a checkpoint, or the usual one in which it is most accurate on validation images.

    Raises:
        CheckpointError: the given one is much worse than another.
    """
    channels = run.data.image.channels
    known = {"its library": library_normalisation(params.network, channels)}
    known |= {"the training images": Normalisation.of(run.data)}
    known |= {name: usual.of_channels(channels) for name, usual in USUAL_NORMALISATIONS.items()}
    candidates = {name: found for name, found in known.items() if found is not None}
    given = given_normalisation(params)
    if given is not None:
        candidates = {"params.yaml": given} | candidates
    images = open_images(run.places.data, "val", session.device, Normalisation.of(run.data))
    top1 = {
        name: sampled_top1(taking(images.normalisation, network, candidate), images, _SAMPLE)
        for name, candidate in candidates.items()
    }
    best = max(top1, key=lambda name: top1[name])  # the first of equals
    if given is None:
        others = ", ".join(f"{name} {value:.4f}" for name, value in top1.items() if name != best)
        session.tell(
            f"normalisation: that of {best}, in which checkpoint {params.checkpoint} fits best: validation top-1 "
            f"{top1[best]:.4f} ({others})"
        )
        return candidates[best]
    if top1[best] - top1["params.yaml"] >= _MUCH_WORSE:
        raise CheckpointError(
            f"checkpoint {params.checkpoint} has validation top-1 {top1['params.yaml']:.4f} with {block}.mean and "
            f"{block}.std, but {top1[best]:.4f} with those of {best} ({candidates[best]}); set them to these or to null"
        )
    return given


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
