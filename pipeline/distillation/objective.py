"""How cross-entropy, distillation, temperatures and companion batches add up to the number that is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import DistillParams, DistParams, DkdParams, FeatureParams, HedaParams, MlkdParams
from pipeline.data.loader import Batch
from pipeline.distillation.feature_loss import FeatureLoss
from pipeline.distillation.losses import dist, dkd, kd, low_confidence, mlkd, standardize
from pipeline.distillation.mixing import Mixed
from pipeline.distillation.teacher_cache import TeacherMemo
from pipeline.energy.groups import EnergyGroups, assign_groups, energy_score, sample_temperatures


@dataclass(frozen=True)
class Companion:
    """The companion batch of HE-DA.

    Attributes:
        mixed: M mixed images of the subset.
        labels: int64, before mixing: those of the M images first; partners point into them.
        weight: as of :class:`~pipeline.data.loader.Batch`.
    """

    mixed: Mixed
    labels: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class DistillationStep:
    """What one step is made of.

    Attributes:
        batch: the clean batch.
        companion: where HE-DA is on.
        strong: second views of the batch's images under strong augmentation [B, 3, S, S], where the loss wants them.
    """

    batch: Batch
    companion: Companion | None = None
    strong: Tensor | None = None

    @property
    def index(self) -> Tensor:
        return self.batch.index


# student logits, teacher logits, labels, tau -> [B]
LogitLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Distillation:
    """The student's objective: base loss with one temperature per sample, plus HE-DA on the companion batch.

    ce_weight * mean_i CE_i + kd_weight * warm-up * mean_i logit_loss_i(tau_i)
    + feature_weight * warm-up * mean_i feature_loss_i
    + heda.kd_weight * mean_j kd_j + heda.mixed_label_weight * mean_j CE_j, j over the mixed images.
    With strong views, the first line is added once more for them. Where several processes share a batch, i and j run
    over this process's part and its terms are weighted, so that the mean over the processes is the sum above.
    The teacher is frozen here and stays outside the student: not in its parameters, modes or checkpoints.

    Args:
        teacher: moved nowhere; put into eval mode, gradients off.
        groups: of the stored energies of the training split; codes on the device of the batches.
        energy_temperature: T_E of the scores, for ``assignment: view``.
        features: of student and this teacher, tapped while the objective is called; None where the loss is one of
            logits.
        memo: of this teacher, asked in its place where clean images are among those to look at.
    """

    def __init__(
        self,
        teacher: nn.Module,
        groups: EnergyGroups,
        energy_temperature: float,
        params: DistillParams,
        heda: HedaParams,
        features: FeatureLoss | None = None,
        memo: TeacherMemo | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.groups = groups
        self.energy_temperature = energy_temperature
        self.params = params
        self.heda = heda
        self.features = features
        self.memo = memo
        self.weights = params.loss
        self.logit_loss = _logit_loss(params)
        # the selection by confidence is one of the plain view
        self.strong_loss = _logit_loss(params, every_sample=True)
        self.prepared = _prepared(params)
        self.temperatures = partial(
            sample_temperatures,
            low_energy=params.temperatures.low_energy,
            mid=params.temperatures.mid,
            high_energy=params.temperatures.high_energy,
        )
        self.stored_temperatures = self.temperatures(groups.codes)  # [N]

    def __call__(self, student: nn.Module, step: DistillationStep, epoch: int) -> Tensor:
        """The scalar to minimise; ``epoch`` is counted from 0."""
        batch, companion = step.batch, step.companion
        clean_teacher, strong_teacher, mixed_teacher = self._teacher_logits(step)
        # each pass is one of its own, so that the clean batch keeps its own batch statistics, as in the reference
        student_logits = student(batch.images).float()
        loss = self.weights.ce_weight * F.cross_entropy(student_logits, batch.labels)
        if self.features is not None:
            loss = loss + self._feature_term(self.features, len(batch.images), epoch)
        if clean_teacher is not None:
            loss = loss + self._logit_term(self.logit_loss, student_logits, clean_teacher, batch, epoch)
        if step.strong is not None:
            strong_logits = student(step.strong).float()
            loss = loss + self.weights.ce_weight * F.cross_entropy(strong_logits, batch.labels)
            if strong_teacher is not None:
                loss = loss + self._logit_term(self.strong_loss, strong_logits, strong_teacher, batch, epoch)
        loss = batch.weight * loss
        if companion is not None and mixed_teacher is not None:
            mixed_logits = student(companion.mixed.images).float()
            tau = self._mixed_temperatures(mixed_teacher)
            mixed_loss = kd(self.prepared(mixed_logits), self.prepared(mixed_teacher), tau).mean()
            mixed_loss = self.heda.kd_weight * mixed_loss + self._mixed_label_loss(mixed_logits, companion)
            loss = loss + companion.weight * mixed_loss
        return loss

    def _teacher_logits(self, step: DistillationStep) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Teacher logits of the clean, strong and mixed images, each only where a loss needs them; one pass for all."""
        wanted = [
            step.batch.images if self.weights.kd_weight or self.features is not None else None,
            step.strong if self.weights.kd_weight else None,
            step.companion.mixed.images if step.companion is not None else None,
        ]
        present = [images for images in wanted if images is not None]
        if not present:
            return None, None, None
        logits = self._teacher_pass(torch.cat(present) if len(present) > 1 else present[0], wanted[0], step.batch)
        parts = iter(torch.split(logits, [len(images) for images in present]))
        clean, strong, mixed = (None if images is None else next(parts) for images in wanted)
        return clean if self.weights.kd_weight else None, strong, mixed

    @torch.no_grad()
    def _teacher_pass(self, images: Tensor, clean: Tensor | None, batch: Batch) -> Tensor:
        if self.memo is None or clean is None or batch.views is None:
            logits: Tensor = self.teacher(images)
        else:
            logits = self.memo(images, batch.index, batch.views)
        return logits.float()

    def _logit_term(self, loss: LogitLoss, student: Tensor, teacher: Tensor, batch: Batch, epoch: int) -> Tensor:
        tau = self._clean_temperatures(batch, teacher)
        values = loss(student, teacher, batch.labels, tau)
        warmup = _warmup(self.weights.warmup_epochs, epoch) if isinstance(self.weights, DkdParams) else 1.0
        return values.mean() * (self.weights.kd_weight * warmup)

    def _feature_term(self, features: FeatureLoss, batch_size: int, epoch: int) -> Tensor:
        # the teacher's pass holds the clean images first
        teacher = [feature[:batch_size] for feature in features.teacher_features()]
        values: Tensor = features(features.student_features(), teacher)
        assert isinstance(self.weights, FeatureParams)  # noqa: S101  features are there for no other loss
        return values.mean() * (self.weights.feature_weight * _warmup(self.weights.warmup_epochs, epoch))

    def _clean_temperatures(self, batch: Batch, teacher_logits: Tensor) -> Tensor:
        if self.params.assignment == "view":
            return self._view_temperatures(teacher_logits)
        return self.stored_temperatures[batch.index]

    def _mixed_temperatures(self, teacher_logits: Tensor) -> Tensor | float:
        # a mixed image has no stored score; the paper's HE-DA runs use the middle temperature for all
        if self.params.assignment == "view":
            return self._view_temperatures(teacher_logits)
        return self.params.temperatures.mid

    def _view_temperatures(self, teacher_logits: Tensor) -> Tensor:
        energy = energy_score(teacher_logits, self.energy_temperature)
        return self.temperatures(assign_groups(energy, self.groups.low_threshold, self.groups.high_threshold))

    def _mixed_label_loss(self, logits: Tensor, companion: Companion) -> Tensor:
        if self.heda.mixed_label_weight == 0:
            return logits.new_zeros(())
        own = F.cross_entropy(logits, companion.labels[: len(logits)])
        partner = F.cross_entropy(logits, companion.labels[companion.mixed.partner])
        share = companion.mixed.share
        return self.heda.mixed_label_weight * (share * own + (1 - share) * partner)


def _logit_loss(params: DistillParams, *, every_sample: bool = False) -> LogitLoss:
    """The loss on logits that ``params`` ask for; plain kd where the base loss is one of feature maps.

    Args:
        every_sample: leave out the selection by confidence of mlkd.
    """
    prepared = _prepared(params)
    match params.loss:
        case DkdParams(alpha=alpha, beta=beta):
            return lambda student, teacher, labels, tau: dkd(
                prepared(student), prepared(teacher), labels, tau, alpha, beta
            )
        case DistParams(inter_weight=inter, intra_weight=intra):
            return lambda student, teacher, labels, tau: dist(prepared(student), prepared(teacher), tau, inter, intra)
        case MlkdParams(low_confidence_only=low_confidence_only):
            base, select = params.temperatures.mid, low_confidence_only and not every_sample
            return lambda student, teacher, labels, tau: mlkd(
                prepared(student),
                prepared(teacher),
                tau,
                base=base,
                # confidence is one of the teacher's own logits
                instance_weight=low_confidence(teacher) if select else None,
            )
        case _:
            return lambda student, teacher, labels, tau: kd(prepared(student), prepared(teacher), tau)


def _prepared(params: DistillParams) -> Callable[[Tensor], Tensor]:
    """What is done to logits before they enter a loss."""
    return standardize if params.logit_standardization else _unchanged


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _warmup(epochs: float, epoch: int) -> float:
    # the references count epochs from 1
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0
