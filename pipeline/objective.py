"""How cross-entropy, distillation, temperatures and companion batches add up to the number that is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import DistillParams, HedaParams
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


# student logits, teacher logits, labels, tau -> [B]
BaseLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Distillation:
    """The student's objective: base loss with one temperature per sample, plus HE-DA on the companion batch.

    ce_weight * mean_i CE_i + kd_weight * warm-up * mean_i base_loss_i(tau_i)
    + heda.kd_weight * mean_j kd_j + heda.mixed_label_weight * mean_j CE_j, j over the mixed images.
    The teacher is frozen here and stays outside the student: not in its parameters, modes or checkpoints.

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
        self.weights = params.kd if params.loss == "kd" else params.dkd
        self.warmup_epochs = params.dkd.warmup_epochs if params.loss == "dkd" else 0.0
        self.base_loss = _base_loss(params)

    def __call__(self, student: nn.Module, step: DistillationStep, epoch: int) -> Tensor:
        """The scalar to minimise; ``epoch`` is counted from 0."""
        batch, companion = step.batch, step.companion
        clean_teacher, mixed_teacher = self._teacher_logits(batch, companion)
        student_logits = student(batch.images).float()
        loss = self.weights.ce_weight * F.cross_entropy(student_logits, batch.labels)
        if clean_teacher is not None:
            tau = self._clean_temperatures(batch, clean_teacher)
            soft = self.base_loss(student_logits, clean_teacher, batch.labels, tau).mean()
            loss = loss + self.weights.kd_weight * self._warmup(epoch) * soft
        if companion is None or mixed_teacher is None:
            return loss
        # a pass of its own, so that the clean batch keeps its own batch statistics, as in the reference
        mixed_logits = student(companion.mixed.images).float()
        mixed_loss = kd(mixed_logits, mixed_teacher, self._mixed_temperatures(mixed_teacher)).mean()
        return loss + self.heda.kd_weight * mixed_loss + self._mixed_label_loss(mixed_logits, companion)

    def _teacher_logits(self, batch: Batch, companion: Companion | None) -> tuple[Tensor | None, Tensor | None]:
        """Teacher logits of the clean and of the mixed images, each only where a loss needs them; one pass for both."""
        clean = [batch.images] if self.weights.kd_weight else []
        mixed = [companion.mixed.images] if companion is not None else []
        if not clean and not mixed:
            return None, None
        with torch.no_grad():
            logits = self.teacher(torch.cat(clean + mixed) if clean and mixed else (clean + mixed)[0]).float()
        size = len(batch.images) if clean else 0
        return logits[:size] if clean else None, logits[size:] if mixed else None

    def _warmup(self, epoch: int) -> float:
        # the reference counts epochs from 1
        return min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

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


def _base_loss(params: DistillParams) -> BaseLoss:
    match params.loss:
        case "kd":
            return lambda student, teacher, labels, tau: kd(student, teacher, tau)
        case "dkd":
            alpha, beta = params.dkd.alpha, params.dkd.beta
            return lambda student, teacher, labels, tau: dkd(student, teacher, labels, tau, alpha, beta)
