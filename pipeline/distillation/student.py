"""The student: trained on a scored training split, with clean batches and companion batches together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from models.describe import count_macs, count_parameters
from pipeline.compute.distributed import World
from pipeline.compute.seeds import CLEAN, COMPANIONS, MIXING, NUMBERED, STRONG, stream_seed
from pipeline.config import DistillParams, Params
from pipeline.data.augmentation import Part
from pipeline.data.loader import (
    Batch,
    Images,
    cycled_indices,
    open_images,
    shares,
    steps_per_epoch,
    view_batches,
)
from pipeline.data.normalisation import Normalisation, taking
from pipeline.data.views import numbered_views
from pipeline.distillation.losses import make_loss
from pipeline.distillation.losses.base import BaseLoss
from pipeline.distillation.mixing import MIXES, companion_size
from pipeline.distillation.objective import Companion, DistillationObjective, DistillationStep
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.temperatures import Temperatures, certainty_temperatures, group_temperatures
from pipeline.errors import located
from pipeline.lineage import Run
from pipeline.soft_labels.storing import check_soft_labels
from pipeline.soft_labels.table import Answers, SoftLabels
from pipeline.store.documents import ImageFormat, NetworkCard
from pipeline.store.space import require_space
from pipeline.training import weights
from pipeline.training.card import EpochRecord, card_facts, training_facts
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.cross_entropy import CrossEntropy, epoch_indices
from pipeline.training.inference import predict
from pipeline.training.initial import given_teacher, initial_network
from pipeline.training.loop import train
from pipeline.training.optimizer import check_trainable
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from pipeline.training.task import Task


@dataclass(frozen=True)
class NetworkSize:
    """Learnable parameters, and multiply-accumulates of one image."""

    parameters: int
    macs: int

    @classmethod
    def of(cls, network: nn.Module, image: ImageFormat) -> NetworkSize:
        return cls(count_parameters(network), count_macs(network, image.shape))


def check_networks(params: Params, num_classes: int, image: ImageFormat) -> dict[str, NetworkSize]:
    """Build the teacher and all students and run them once, so that a mistake shows before anything is trained.

    Returns:
        The size of each student, by name.

    Raises:
        ParamsError: a network does not exist or cannot take the images, or an optimizer, stages to freeze or those of
            a feature loss do not fit, or batches of one image.
        CheckpointError: the given weights do not fit their network.
    """
    if params.teacher.checkpoint is None:
        teacher = initial_network(params.teacher, "teacher", num_classes, image.shape).network
    else:
        teacher = given_teacher(params.teacher, num_classes, image.shape)
    weights.check_runs(teacher, "teacher.network", num_classes, image.shape)
    if params.teacher.checkpoint is None:
        check_trainable(teacher, params.teacher.training, "teacher.training", image.shape)
    sizes = {}
    for name, distill in params.students.items():
        block = params.block_of(name)
        student = initial_network(distill, block, num_classes, image.shape).network
        weights.check_runs(student, f"{block}.network", num_classes, image.shape)
        check_trainable(student, distill.training, f"{block}.training", image.shape)
        with located(f"params.yaml: {block}."):
            make_loss(distill, student, teacher, image.shape)
        sizes[name] = NetworkSize.of(student, image)
    return sizes


@dataclass(frozen=True)
class ScoredImages:
    """The training split with its scores and HE-DA subset.

    Attributes:
        images: N training images on the compute device.
        groups: energy groups of the N images; codes on the same device.
        energy_temperature: T_E of the scores.
        subset: int64 [M], the images that HE-DA draws companion batches from, on the same device.
        teacher_normalisation: of the teacher that scored them; None: that of ``images``.
        certainty: float32 [N], what continuous temperatures follow, on the same device; None: for groups alone.
        soft_labels: the teachers' stored answers; None unless they are used.
    """

    images: Images
    groups: EnergyGroups
    energy_temperature: float
    subset: Tensor
    teacher_normalisation: Normalisation | None = None
    certainty: Tensor | None = None
    soft_labels: SoftLabels | None = None

    @classmethod
    def of(cls, run: Run, params: Params, device: torch.device, normalisation: Normalisation) -> ScoredImages:
        """The scored training split of a run, in the normalisation of the student."""
        energy, subset = run.energy, run.subset.columns["index"]
        codes = torch.from_numpy(energy.columns["group"].copy()).to(device)
        groups = EnergyGroups(codes, energy.lineage.low_threshold, energy.lineage.high_threshold)
        images = open_images(run.places.data, "train", device, normalisation, params.data.augmentation)
        by_energy = params.distill.temperatures.of == "energy"
        certainty = -energy.columns["energy"] if by_energy else energy.columns["max_logit"].copy()
        return cls(
            images,
            groups,
            energy.lineage.temperature,
            torch.from_numpy(subset.copy()).to(device),
            Normalisation.of(run.teacher),
            torch.from_numpy(certainty).to(device),
            SoftLabels.read(run, device) if params.distill.view == "stored" else None,
        )

    def temperatures(self, params: DistillParams, seed: int) -> Temperatures:
        """The temperatures that ``params`` ask for; ``seed`` decides a random assignment.

        Raises:
            ParamsError: as of :func:`pipeline.energy.temperatures.certainty_temperatures`.
            ValueError: they are continuous, but the certainty is not given.
        """
        chosen = params.temperatures
        if chosen.mode == "groups":
            temperatures = group_temperatures(self.groups, self.energy_temperature, chosen)
        elif self.certainty is None:
            raise ValueError("continuous temperatures need the certainty of the images")
        else:
            temperatures = certainty_temperatures(self.certainty, self.energy_temperature, chosen)
        return temperatures.shuffled(seed) if params.assignment == "random" else temperatures


@dataclass(frozen=True)
class TrainedStudent:
    """A student after its last epoch; its crash checkpoint still exists.

    Attributes:
        facts: fields of its card.
    """

    network: nn.Module
    records: list[EpochRecord]
    facts: dict[str, Any]
    checkpoint: Checkpoint


def make_student(run: Run, name: str, params: Params, session: Session) -> NetworkCard | None:
    """Distill the student of this name in ``params`` and write it to its place in the run.

    Returns:
        Its card; None in all processes but the first.

    Raises:
        SpaceError: the disk cannot hold the weights.
        EnergyKDError: as of :func:`trained_student`.
    """
    folder = run.network(name).places.weights
    with trained_student(run, name, params, session) as student:
        # inside the block: the crash checkpoint is removed after the student is written
        return weights.write_network(folder, student.network, student.facts) if session.world.is_main else None


@contextmanager
def trained_student(run: Run, name: str, params: Params, session: Session) -> Iterator[TrainedStudent]:
    """Distill the student of this name in ``params``; its crash checkpoint stays locked while the block runs.

    Raises:
        ParamsError: there is no such network, it cannot take the images, or the loss does not fit the networks.
        CheckpointError: the weights that it is to start from do not fit.
        SpaceError: the disk cannot hold the weights, or the epochs that are stored while it trains.
        TrainingError: as of :func:`pipeline.training.loop.train`.
    """
    block, params = params.block_of(name), params.of_student(name)
    torch.manual_seed(params.seed)
    data, teacher = run.data, weights.read_network(run.places.teacher, run.teacher)
    lineage = {"teacher": run.teacher.weights_sha256, "energy": run.energy_sha256, "subset": run.subset_sha256}
    if params.distill.view == "stored":
        check_soft_labels(run, params)
        lineage["soft_labels"] = run.soft_labels_sha256
    initial = initial_network(params.distill, block, len(data.class_names), data.image.shape)
    student, normalisation = initial.network, initial.normalised(data, name, session)
    lineage |= initial.lineage
    scored = ScoredImages.of(run, params, session.device, normalisation)
    weights.check_runs(student, f"{block}.network", len(data.class_names), data.image.shape)
    check_trainable(student, params.distill.training, f"{block}.training", data.image.shape)
    with session.world.barrier():
        if session.world.is_main:
            size = weights.state_bytes(student)
            require_space(run.network(name).places.weights, size, f"the weights of {name}", output=size)
    validation = open_images(run.places.data, "val", session.device, normalisation)
    heda_in_use = params.heda.model_dump(mode="json") if params.heda.mix != "none" else {"mix": "none"}
    choices = {"distill": params.distill.model_dump(mode="json"), "heda": heda_in_use}
    key_parts: dict[str, Any] = {**choices, **lineage, "views": params.data.augmentation.model_dump(mode="json")}
    key_parts |= {"seed": params.seed, "data": data.fingerprint, "normalisation": normalisation}
    with session.checkpoint("student", key_parts, name) as checkpoint:
        epochs = train_student(student, teacher, scored, validation, params, session, checkpoint, name, block)
        records = session.watched(epochs)
        facts = card_facts("student", params.distill.network, data, lineage, normalisation)
        facts |= training_facts(records, params.seed, params.distill.training.keep)
        yield TrainedStudent(student, records, facts | choices, checkpoint)


def train_student(
    student: nn.Module,
    teacher: nn.Module,
    scored: ScoredImages,
    validation: Images,
    params: Params,
    session: Session,
    checkpoint: Checkpoint | None = None,
    name: str = "student",
    block: str = "distill",
) -> Iterator[EpochRecord]:
    """Train ``student`` in place under ``params.distill`` and ``params.heda``; ``params.seed`` decides every draw.

    Args:
        name, block: of the student, and where ``params.distill`` stands in params.yaml, for messages.

    Raises:
        TrainingError: as of :func:`pipeline.training.loop.train`.
        ParamsError: the stages of a feature loss do not fit the networks, or the temperatures cannot follow the
            certainty of this teacher.
    """
    images, world = scored.images, session.world
    with located(f"params.yaml: {block}."):
        base = make_loss(params.distill, student, teacher, images.shape)
        temperatures = scored.temperatures(params.distill, params.seed)
    training = params.distill.training
    if base.reads_features:  # by hooks, which a compiled network does not run
        training = training.model_copy(update={"compile": "off"})
    teacher = teacher.to(images.device).to(memory_format=torch.channels_last)
    teacher = taking(images.normalisation, teacher, scored.teacher_normalisation or images.normalisation)
    objective = DistillationObjective(
        teacher,
        base,
        temperatures,
        params.distill,
        params.heda,
        CrossEntropy.of(images.labels, training),
    )
    steps = steps_per_epoch(len(images), training.batch_size)

    def epoch_steps(epoch: int) -> Iterator[DistillationStep]:
        generator, strong_generator = (
            torch.Generator(images.device).manual_seed(stream_seed(params.seed, stream, epoch))
            for stream in (CLEAN, STRONG)
        )
        indices = epoch_indices(images.labels, training, generator)
        companions = _companions(scored, params, epoch, steps, world)
        if params.distill.view != "clean":
            for step, companion in zip(
                _numbered_steps(scored, params.seed, indices, epoch, world), companions, strict=True
            ):
                yield replace(step, companion=companion)
            return
        clean = view_batches(images, indices, generator, world)
        strong: Iterable[Tensor | None] = repeat(None, steps)
        if base.strong_views:
            strong = images.strong_views(indices, strong_generator, shares(indices, world))
        for batch, companion, strong_views in zip(clean, companions, strong, strict=True):
            yield DistillationStep(batch, companion, strong_views)

    def validate(network: nn.Module) -> Predictions:
        return predict(network, validation, world)

    with base.reading_features():
        trained = _StudentWithConnectors(student, base) if base.reads_features else student
        task = Task(student, epoch_steps, steps, objective, validate, params.seed, name, block, [teacher])
        yield from train(trained, task, training, session, checkpoint)


class _StudentWithConnectors(nn.Module):
    """The student and the connectors of a feature loss, which are trained together; only the student is kept."""

    def __init__(self, student: nn.Module, base: BaseLoss) -> None:
        super().__init__()
        self.student = student
        self.loss = base

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images)
        return logits


def _numbered_steps(
    scored: ScoredImages, seed: int, indices: Sequence[Tensor], epoch: int, world: World
) -> Iterator[DistillationStep]:
    """This process's part of each batch under the views that are numbered by epochs: stored ones, or else mixed."""
    images, stored = scored.images, scored.soft_labels
    mine = [index[part] for index, part in zip(indices, shares(indices, world), strict=True)]
    answers: Iterable[Answers | None] = repeat(None, len(mine))
    if stored is None:
        seed, mixed = stream_seed(seed, NUMBERED), True
        numbers = [torch.full_like(index, epoch) for index in mine]
    else:
        seed, mixed = stored.seed, stored.mixed
        numbers, answers = stored.of_epoch(mine, epoch)
    views = numbered_views(images, zip(mine, numbers, strict=True), seed, mixed=mixed)
    for whole, index, view, answer in zip(indices, mine, views, answers, strict=True):
        batch = Batch(view.images, images.labels[index], index, world.weight(len(index), len(whole)))
        partners = None if view.mixture is None else images.labels[view.mixture.partner]
        yield DistillationStep(batch, mixture=view.mixture, partner_labels=partners, answers=answer)


def _companions(
    scored: ScoredImages, params: Params, epoch: int, steps: int, world: World
) -> Iterator[Companion | None]:
    """This process's part of one HE-DA companion batch per step, or None per step if there is no mixing."""
    if params.heda.mix == "none":
        yield from [None] * steps
        return
    images = scored.images
    size = companion_size(min(params.distill.training.batch_size, len(images)), params.heda.fraction)
    # separate random streams, so that the clean batches are the same with and without HE-DA
    on_device = torch.Generator(images.device).manual_seed(stream_seed(params.seed, COMPANIONS, epoch))
    on_host = torch.Generator().manual_seed(stream_seed(params.seed, MIXING, epoch))
    draw = MIXES[params.heda.mix]
    mixings = [draw(size, *images.shape[1:], on_host) for _ in range(steps)]
    # one transfer for all steps
    partners = torch.stack([mixing.partner for mixing in mixings]).to(images.device)
    indices = cycled_indices(scored.subset, size, steps, on_device)
    my_part = shares(indices[:1], world)[0]
    mine = torch.arange(size, device=images.device)[my_part]  # positions in the batch
    weight = world.weight(len(mine), size)
    loaded: list[Part] = [slice(None)] * steps
    if world.size > 1:  # a partner may belong to another process's part: load it here too
        loaded = [torch.cat([mine, partner[my_part]]) for partner in partners]
        partners = torch.arange(len(mine), 2 * len(mine), device=images.device).expand(steps, -1)
    for index, places, mixing, partner, views in zip(
        indices, loaded, mixings, partners, images.views(indices, on_device, loaded), strict=True
    ):
        mixed = mixing.apply(views[: len(mine)], views, partner)
        yield Companion(mixed, partner, mixing.lam, images.labels[index[places]], weight)
