"""The student's objective: cross-entropy + distillation at one temperature per sample + HE-DA."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import DistillParams, HedaParams
from pipeline.data.loader import Batch
from pipeline.distillation.losses.base import BaseLoss, ViewLogits
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.logits import standardize
from pipeline.distillation.sample_weight import entropy_weight
from pipeline.distillation.teacher_cache import TeacherCache
from pipeline.energy.temperatures import Temperatures


@dataclass(frozen=True)
class Companion:
    """The companion batch of HE-DA: M images of the subset, mixed within themselves.

    Attributes:
        images: mixed, [M, C, H, W].
        partner: int64 [M], index into ``labels`` of each image's partner.
        lam: lambda, the weight of each image in its mixture; the rest is its partner's.
        labels: int64, of the images before mixing; the first M are those of ``images``.
        process_weight: as in :class:`~pipeline.data.loader.Batch`.
    """

    images: Tensor
    partner: Tensor
    lam: float
    labels: Tensor
    process_weight: float = 1.0


@dataclass(frozen=True)
class DistillationStep:
    """The batches of one training step.

    Attributes:
        batch: the clean batch.
        companion: None without HE-DA.
        strong: strongly augmented second views of the batch [B, C, H, W]; None if the loss does not use them.
    """

    batch: Batch
    companion: Companion | None = None
    strong: Tensor | None = None

    @property
    def index(self) -> Tensor:
        return self.batch.index


class DistillationObjective:
    """The student's objective: a base loss with one temperature per sample, plus HE-DA on the companion batch.

    L = ce_weight * mean_i CE_i + sum_k weight_k * mean_i w_i term_ki(tau_i)      (the same again for strong views)
      + heda.kd_weight * mean_j KD_j(tau_j) + heda.mixed_label_weight * mean_j CE_j,  j over the mixed images

    For ``loss: kd`` the only term is kd_weight * tau_i^2 KL(softmax(t_i / tau_i) || softmax(s_i / tau_i)). tau_i is
    T_low, T_mid or T_high by the energy group of image i (Energy KD), or continuous in the teacher's certainty. w_i is
    1 or the entropy weight. The mixed images come from the HE-DA subset, and their loss is always KD. Each of several
    processes computes L on its part of the batch, weighted so that the mean over the processes is L of the whole batch.
    The teacher is frozen and is not a submodule of the student.

    Args:
        teacher: on the device of the batches; it is put into eval mode, and its gradients are switched off.
        base: the base loss; the objective must be called inside its ``reading_features()`` block.
        temperatures: of the N training images, on the device of the batches.
        cache: the teacher's logits of clean views, looked up instead of computed.
        cross_entropy: mean over a batch, from logits [B, K] and labels [B].
    """

    def __init__(
        self,
        teacher: nn.Module,
        base: BaseLoss,
        temperatures: Temperatures,
        params: DistillParams,
        heda: HedaParams,
        cache: TeacherCache | None = None,
        cross_entropy: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.base = base
        self.temperatures = temperatures
        self.params = params
        self.heda = heda
        self.cache = cache
        self.cross_entropy = cross_entropy

    def __call__(self, student: nn.Module, step: DistillationStep, epoch: int) -> Tensor:
        """The scalar to minimise; ``epoch`` is counted from 0."""
        batch, companion = step.batch, step.companion
        clean_teacher, strong_teacher, mixed_teacher = self._teacher_logits(step)
        # separate student passes, so that the clean batch keeps its own batch statistics, as in the authors' code
        loss = self._view_loss(student(batch.images).float(), clean_teacher, batch, epoch)
        if step.strong is not None:
            loss = loss + self._view_loss(student(step.strong).float(), strong_teacher, batch, epoch, strong=True)
        loss = batch.process_weight * loss
        if companion is not None and mixed_teacher is not None:
            mixed_loss = self._mixed_loss(student(companion.images).float(), mixed_teacher, companion)
            loss = loss + companion.process_weight * mixed_loss
        return loss

    def forget(self) -> None:
        """Forget the teacher's logits of earlier steps."""
        if self.cache is not None:
            self.cache.clear()

    def _view_loss(
        self, student: Tensor, teacher: Tensor | None, batch: Batch, epoch: int, *, strong: bool = False
    ) -> Tensor:
        """ce_weight * mean CE + the terms of the base loss, for the logits of one view."""
        loss = self.base.ce_weight * self.cross_entropy(student, batch.labels)
        if teacher is None:
            return loss
        by_view = self.params.assignment == "view"
        tau = self.temperatures.of_logits(teacher) if by_view else self.temperatures.stored[batch.index]
        view = ViewLogits(
            student=self._prepared_student(student, tau),
            teacher=self._prepared(teacher),
            raw_teacher=teacher,
            labels=batch.labels,
            temperature=tau,
            strong=strong,
        )
        weight = entropy_weight(student, teacher) if self.params.sample_weight == "entropy" else 1.0
        for term in self.base.terms(view, epoch):
            loss = loss + (term.values * weight).mean() * term.weight
        return loss

    def _mixed_loss(self, student: Tensor, teacher: Tensor, companion: Companion) -> Tensor:
        """heda.kd_weight * mean KD + heda.mixed_label_weight * mean CE, for the logits of the mixed images."""
        # a mixed image has no stored energy; the paper's HE-DA runs use the middle temperature for all of them
        by_view = self.params.assignment == "view"
        tau = self.temperatures.of_logits(teacher) if by_view else self.params.temperatures.mid
        loss = self.heda.kd_weight * kd(self._prepared_student(student, tau), self._prepared(teacher), tau).mean()
        if self.heda.mixed_label_weight == 0:
            return loss
        own = self.cross_entropy(student, companion.labels[: len(student)])
        partner = self.cross_entropy(student, companion.labels[companion.partner])
        return loss + self.heda.mixed_label_weight * (companion.lam * own + (1 - companion.lam) * partner)

    def _teacher_logits(self, step: DistillationStep) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Teacher logits of the clean, strong and mixed images, from one pass; None where no loss needs them."""
        wanted = [
            step.batch.images if self.base.needs_teacher else None,
            step.strong if self.base.needs_teacher else None,
            step.companion.images if step.companion is not None else None,
        ]
        present = [images for images in wanted if images is not None]
        if not present:
            return None, None, None
        logits = self._teacher_pass(torch.cat(present) if len(present) > 1 else present[0], wanted[0], step.batch)
        parts = iter(torch.split(logits, [len(images) for images in present]))
        clean, strong, mixed = (None if images is None else next(parts) for images in wanted)
        return clean, strong, mixed

    @torch.no_grad()
    def _teacher_pass(self, images: Tensor, clean: Tensor | None, batch: Batch) -> Tensor:
        if self.cache is None or clean is None or batch.views is None:
            logits: Tensor = self.teacher(images)
        else:
            logits = self.cache(images, batch.index, batch.views)
        return logits.float()

    def _prepared_student(self, logits: Tensor, tau: Tensor | float) -> Tensor:
        """Prepared logits for a loss that divides them by the teacher's tau, [B] or constant.

        Where ``temperatures.student`` is own, they are scaled so that it divides them by the student's own temperature;
        a constant one is that of both networks.
        """
        prepared = self._prepared(logits)
        if self.params.temperatures.student == "same" or not isinstance(tau, Tensor):
            return prepared
        return prepared * (tau / self.temperatures.of_logits(logits.detach())).unsqueeze(1)

    def _prepared(self, logits: Tensor) -> Tensor:
        return standardize(logits) if self.params.logit_standardization else logits
