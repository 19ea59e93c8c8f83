"""How cross-entropy, distillation, temperatures and companion batches add up to the number that is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import DistillParams, DkdParams, HedaParams, KdParams
from pipeline.data.loader import Batch
from pipeline.energy import EnergyGroups, assign_groups, energy_score, sample_temperatures
from pipeline.heda import Mixed
from pipeline.losses import dkd, kd


@dataclass(frozen=True)
class Companion:
    """The companion batch of HE-DA: mixed high-energy images, and the labels int64 [M] before mixing."""

    mixed: Mixed
    labels: Tensor


@dataclass(frozen=True)
class DistillationStep:
    """A clean batch and, where HE-DA is on, its companion."""

    batch: Batch
    companion: Companion | None

    @property
    def index(self) -> Tensor:
        return self.batch.index


BaseLoss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Distillation:
    """The student's objective: base loss with one temperature per sample, plus HE-DA on the companion batch.

    mean_i base_loss_i(tau_i) + heda.kd_weight * mean_j kd_j + heda.mixed_label_weight * mean_j CE_j, j over the mixed
    images. The teacher is frozen here and stays outside the student: not in its parameters, modes or checkpoints.

    Args:
        teacher: moved nowhere; put into eval mode, gradients off.
        groups: of the stored energies of the training split; codes on the device of the batches.
        energy_temperature: T_E of the scores, for ``assignment: view``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        groups: EnergyGroups,
        energy_temperature: float,
        params: DistillParams,
        heda: HedaParams,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.groups = groups
        self.energy_temperature = energy_temperature
        self.heda = heda
        self.by_view = params.assignment == "view"
        self.temperatures = partial(
            sample_temperatures,
            low_energy=params.temperatures.low_energy,
            mid=params.temperatures.mid,
            high_energy=params.temperatures.high_energy,
        )
        self.mid = params.temperatures.mid
        self.base_loss = _kd_loss(params.kd) if params.loss == "kd" else _dkd_loss(params.dkd)

    def __call__(self, student: nn.Module, step: DistillationStep, epoch: int) -> Tensor:
        """The scalar to minimise; ``epoch`` is counted from 0."""
        batch, companion = step.batch, step.companion
        clean_teacher, mixed_teacher = self._teacher_logits(batch, companion)
        student_logits = student(batch.images).float()
        tau = self._clean_temperatures(batch, clean_teacher)
        loss = self.base_loss(student_logits, clean_teacher, batch.labels, tau, epoch).mean()
        if companion is None or mixed_teacher is None:
            return loss
        # a pass of its own, so that the clean batch keeps its own batch statistics, as in the reference
        mixed_logits = student(companion.mixed.images).float()
        mixed_loss = kd(mixed_logits, mixed_teacher, self._mixed_temperatures(mixed_teacher)).mean()
        return loss + self.heda.kd_weight * mixed_loss + self._mixed_label_loss(mixed_logits, companion)

    def _teacher_logits(self, batch: Batch, companion: Companion | None) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            if companion is None:
                return self.teacher(batch.images).float(), None
            clean, mixed = batch.images, companion.mixed.images
            logits = self.teacher(torch.cat([clean, mixed])).float()
            return logits[: len(clean)], logits[len(clean) :]

    def _clean_temperatures(self, batch: Batch, teacher_logits: Tensor) -> Tensor:
        if self.by_view:
            return self._view_temperatures(teacher_logits)
        return self.temperatures(self.groups.codes[batch.index])

    def _mixed_temperatures(self, teacher_logits: Tensor) -> Tensor | float:
        # a mixed image has no stored score; the paper's HE-DA runs use the middle temperature for all
        return self._view_temperatures(teacher_logits) if self.by_view else self.mid

    def _view_temperatures(self, teacher_logits: Tensor) -> Tensor:
        energy = energy_score(teacher_logits, self.energy_temperature)
        return self.temperatures(assign_groups(energy, self.groups.low_threshold, self.groups.high_threshold))

    def _mixed_label_loss(self, logits: Tensor, companion: Companion) -> Tensor:
        if self.heda.mixed_label_weight == 0:
            return logits.new_zeros(())
        own = F.cross_entropy(logits, companion.labels)
        partner = F.cross_entropy(logits, companion.labels[companion.mixed.partner])
        share = companion.mixed.share
        return self.heda.mixed_label_weight * (share * own + (1 - share) * partner)


def _kd_loss(params: KdParams) -> BaseLoss:
    def per_sample(student: Tensor, teacher: Tensor, labels: Tensor, tau: Tensor, epoch: int) -> Tensor:
        hard = F.cross_entropy(student, labels, reduction="none")
        return params.ce_weight * hard + params.kd_weight * kd(student, teacher, tau)

    return per_sample


def _dkd_loss(params: DkdParams) -> BaseLoss:
    def per_sample(student: Tensor, teacher: Tensor, labels: Tensor, tau: Tensor, epoch: int) -> Tensor:
        hard = F.cross_entropy(student, labels, reduction="none")
        # the reference counts epochs from 1
        warmup = min((epoch + 1) / params.warmup_epochs, 1.0) if params.warmup_epochs else 1.0
        soft = dkd(student, teacher, labels, tau, params.alpha, params.beta)
        return params.ce_weight * hard + params.kd_weight * warmup * soft

    return per_sample
