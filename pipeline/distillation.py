"""Train a student on one set of scored images: the objective, its clean batches and its companion batches together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor, nn

from pipeline.checkpoint import Checkpoint
from pipeline.config import Params
from pipeline.data.loader import Images, cycled_indices, shuffled_indices, steps_per_epoch, view_batches
from pipeline.energy import EnergyGroups
from pipeline.feature_loss import feature_loss
from pipeline.heda import MIXES, companion_size
from pipeline.inference import top1
from pipeline.objective import Companion, Distillation, DistillationStep
from pipeline.training import EpochRecord, epoch_seed, train


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
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Train ``student`` in place under ``params.distill`` and ``params.heda``; ``params.seed`` decides every draw.

    Args:
        checkpoint, on_step, on_epoch: as for :func:`pipeline.training.train`.

    Returns:
        One record per epoch.

    Raises:
        TrainingError: the loss was not finite.
        ParamsError: the stages of a feature loss do not fit the networks.
    """
    images, training = scored.images, params.distill.training
    groups = scored.groups
    if params.distill.assignment == "random":
        groups = groups.shuffled(params.seed)
    features = feature_loss(params.distill, student, teacher, images.size)
    objective = Distillation(
        teacher.to(images.device), groups, scored.energy_temperature, params.distill, params.heda, features
    )
    steps = steps_per_epoch(len(images), training.batch_size)

    def epoch_steps(epoch: int) -> Iterator[DistillationStep]:
        generator, strong_generator = (
            torch.Generator(images.device).manual_seed(epoch_seed(params.seed, epoch, stream)) for stream in (0, 3)
        )
        indices = shuffled_indices(len(images), training.batch_size, generator)
        clean = view_batches(images, indices, generator)
        strong = images.strong_views(indices, strong_generator) if _wants_strong_views(params) else repeat(None, steps)
        companions = _companions(scored, params, epoch, steps)
        for batch, companion, strong_views in zip(clean, companions, strong, strict=True):
            yield DistillationStep(batch, companion, strong_views)

    with features.tapped() if features is not None else nullcontext():
        return train(
            student if features is None else nn.ModuleDict({"student": student, "features": features}),
            epoch_steps,
            steps,
            lambda trained, step, epoch: objective(student, step, epoch),
            training,
            seed=params.seed,
            device=images.device,
            validate=lambda trained: top1(student, validation),
            checkpoint=checkpoint,
            on_step=on_step,
            on_epoch=on_epoch,
        )


def _wants_strong_views(params: Params) -> bool:
    return params.distill.loss == "mlkd" and params.distill.mlkd.strong_view


def _companions(scored: ScoredImages, params: Params, epoch: int, steps: int) -> Iterator[Companion | None]:
    """One HE-DA companion batch per step, or None per step if there is no mixing."""
    if params.heda.mix == "none":
        yield from [None] * steps
        return
    images = scored.images
    size = companion_size(min(params.distill.training.batch_size, len(images)), params.heda.fraction)
    # streams of their own, so that the clean batches are the same with and without HE-DA
    on_device = torch.Generator(images.device).manual_seed(epoch_seed(params.seed, epoch, stream=1))
    on_host = torch.Generator().manual_seed(epoch_seed(params.seed, epoch, stream=2))
    mix = MIXES[params.heda.mix]
    for batch in view_batches(images, cycled_indices(scored.subset, size, steps, on_device), on_device):
        yield Companion(mix(batch.images, on_host), batch.labels)
