"""Train a student on one set of scored images: the objective, its clean batches and its companion batches together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from pipeline.compute.device import compiled
from pipeline.compute.distributed import ALONE, World
from pipeline.compute.seeds import CLEAN, COMPANIONS, MIXING, STRONG, stream_seed
from pipeline.config import FeatureParams, MlkdParams, Params, TrainingParams
from pipeline.data.loader import Images, Part, cycled_indices, shares, shuffled_indices, steps_per_epoch, view_batches
from pipeline.distillation.feature_loss import feature_loss
from pipeline.distillation.mixing import MIXES, Mixed, companion_size
from pipeline.distillation.objective import Companion, Distillation, DistillationStep
from pipeline.distillation.teacher_cache import TeacherMemo
from pipeline.energy.groups import EnergyGroups
from pipeline.errors import ParamsError
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.inference import answers
from pipeline.training.loop import EpochRecord, train


@dataclass(frozen=True)
class ScoredImages:
    """The training split and what the teacher's scores say of it.

    Attributes:
        images: N training images on the compute device.
        groups: energy groups of the N images; codes on the same device.
        energy_temperature: T_E of the scores.
        subset: int64 [M], the images that HE-DA draws companion batches from, on the same device.
    """

    images: Images
    groups: EnergyGroups
    energy_temperature: float
    subset: Tensor


def distill(
    student: nn.Module,
    teacher: nn.Module,
    scored: ScoredImages,
    validation: Images,
    params: Params,
    *,
    world: World = ALONE,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Train ``student`` in place under ``params.distill`` and ``params.heda``; ``params.seed`` decides every draw.

    Args:
        world, checkpoint, on_step, on_epoch: as for :func:`pipeline.training.loop.train`.

    Returns:
        One record per epoch.

    Raises:
        TrainingError: the loss was not finite.
        ParamsError: the stages of a feature loss do not fit the networks, or it is asked for compiled or with a memo;
            or the memo does not fit into memory.
    """
    images, training = scored.images, _training(params)
    groups = scored.groups
    if params.distill.assignment == "random":
        groups = groups.shuffled(params.seed)
    features = feature_loss(params.distill, student, teacher, images.size)
    teacher, memo = teacher.to(images.device).to(memory_format=torch.channels_last), None
    if params.distill.teacher_memo:
        memo = TeacherMemo(teacher, len(images), images.view_count, images.device, world.size)
    else:  # what the memo leaves to the teacher has many sizes, each of which would be compiled
        teacher = compiled(teacher, training.compile, images.device)
    objective = Distillation(teacher, groups, scored.energy_temperature, params.distill, params.heda, features, memo)
    steps = steps_per_epoch(len(images), training.batch_size)

    def epoch_steps(epoch: int) -> Iterator[DistillationStep]:
        generator, strong_generator = (
            torch.Generator(images.device).manual_seed(stream_seed(params.seed, stream, epoch))
            for stream in (CLEAN, STRONG)
        )
        indices = shuffled_indices(len(images), training.batch_size, generator)
        clean = view_batches(images, indices, generator, world)
        strong: Iterable[Tensor | None] = repeat(None, steps)
        if _wants_strong_views(params):
            strong = images.strong_views(indices, strong_generator, shares(indices, world))
        companions = _companions(scored, params, epoch, steps, world)
        for batch, companion, strong_views in zip(clean, companions, strong, strict=True):
            yield DistillationStep(batch, companion, strong_views)

    with features.tapped() if features is not None else nullcontext():
        return train(
            student if features is None else _StudentWithConnectors(student, features),
            epoch_steps,
            steps,
            objective,
            training,
            seed=params.seed,
            device=images.device,
            validate=lambda trained: answers(student, validation, world),
            world=world,
            checkpoint=checkpoint,
            on_step=on_step,
            on_epoch=on_epoch,
        )


class _StudentWithConnectors(nn.Module):
    """The student, and beside it the connectors of a feature loss, which are trained with it and then thrown away."""

    def __init__(self, student: nn.Module, features: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images)
        return logits


def _training(params: Params) -> TrainingParams:
    training = params.distill.training
    if not isinstance(params.distill.loss, FeatureParams):
        return training
    if training.compile == "on":
        raise ParamsError(
            f"params.yaml: distill.training.compile is on, but {params.distill.loss.name} reads feature maps by hooks, "
            "which a compiled network does not run; set it to auto"
        )
    if params.distill.teacher_memo:
        raise ParamsError(
            f"params.yaml: distill.teacher_memo keeps the teacher's logits, but {params.distill.loss.name} reads its "
            "feature maps; set it to false"
        )
    return training.model_copy(update={"compile": "off"})


def _wants_strong_views(params: Params) -> bool:
    return isinstance(params.distill.loss, MlkdParams) and params.distill.loss.strong_view


def _companions(
    scored: ScoredImages, params: Params, epoch: int, steps: int, world: World
) -> Iterator[Companion | None]:
    """This process's part of one HE-DA companion batch per step, or None per step if there is no mixing."""
    if params.heda.mix == "none":
        yield from [None] * steps
        return
    images = scored.images
    size = companion_size(min(params.distill.training.batch_size, len(images)), params.heda.fraction)
    # streams of their own, so that the clean batches are the same with and without HE-DA
    on_device = torch.Generator(images.device).manual_seed(stream_seed(params.seed, COMPANIONS, epoch))
    on_host = torch.Generator().manual_seed(stream_seed(params.seed, MIXING, epoch))
    draw = MIXES[params.heda.mix]
    mixings = [draw(size, images.size, images.size, on_host) for _ in range(steps)]
    # moved at once, not in each step
    partners = torch.stack([mixing.partner for mixing in mixings]).to(images.device)
    indices = cycled_indices(scored.subset, size, steps, on_device)
    share = shares(indices[:1], world)[0]
    own = torch.arange(size, device=images.device)[share]
    weight = world.weight(len(own), size)
    parts: list[Part] = [slice(None)] * steps
    if world.size > 1:  # partners may be in another process's part, so they are made here as well
        parts = [torch.cat([own, partner[share]]) for partner in partners]
        partners = torch.arange(len(own), 2 * len(own), device=images.device).expand(steps, -1)
    for whole, part, mixing, partner, (views, _) in zip(
        indices, parts, mixings, partners, images.views(indices, on_device, parts), strict=True
    ):
        mixed = mixing.apply(views[: len(own)], views, partner)
        yield Companion(Mixed(mixed, partner, mixing.share), images.labels[whole[part]], weight)
