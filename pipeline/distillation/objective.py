"""The student's objective: cross-entropy + distillation at one temperature per sample + HE-DA."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import DistillParams, HedaParams
from pipeline.data.loader import Batch
from pipeline.data.views import Mixture
from pipeline.distillation.losses.base import BaseLoss, ViewLogits
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.logits import standardize
from pipeline.distillation.sample_weight import entropy_weight
from pipeline.energy.temperatures import Temperatures
from pipeline.soft_labels.table import Answers
from pipeline.training.cross_entropy import CrossEntropy


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
        batch: the main batch.
        companion: None without HE-DA.
        strong: strongly augmented second views of the batch [B, C, H, W]; None if the loss does not use them.
        mixture: of the images of the main batch; None if they are not mixed.
        partner_labels: int64 [B], of the images that they are mixed with.
        answers: the teachers' stored answers to the main batch; None: the teacher computes them.
    """

    batch: Batch
    companion: Companion | None = None
    strong: Tensor | None = None
    mixture: Mixture | None = None
    partner_labels: Tensor | None = None
    answers: Answers | None = None

    @property
    def index(self) -> Tensor:
        return self.batch.index


class DistillationObjective:
    """The student's objective: a base loss with one temperature per sample, plus HE-DA on the companion batch.

    L = ce_weight * mean_i CE_i + sum_k weight_k * mean_i w_i term_ki(tau_i)      (the same again for strong views)
      + heda.kd_weight * mean_j KD_j(tau_j) + heda.mixed_label_weight * mean_j CE_j,  j over the mixed images

    For ``loss: kd`` the only term is kd_weight * tau_i^2 KL(softmax(t_i / tau_i) || softmax(s_i / tau_i)). tau_i is
    T_low, T_mid or T_high by the energy group of image i (Energy KD), or continuous in the teacher's certainty. w_i is
    1 or the entropy weight. The mixed images j come from the HE-DA subset, and their loss is always KD. Where the
    images i of the main batch are mixed too, CE_i is the mean over the two labels of a mixture, weighted by their
    shares. Each of several processes computes L on its part of the batch, weighted so that the mean over the processes
    is L of the whole batch. The teacher is frozen and is not a submodule of the student.

    Args:
        teacher: on the device of the batches; it is put into eval mode, and its gradients are switched off.
        base: the base loss; the objective must be called inside its ``reading_features()`` block.
        temperatures: of the N training images, on the device of the batches.
        cross_entropy: of the labels.
    """

    def __init__(
        self,
        teacher: nn.Module,
        base: BaseLoss,
        temperatures: Temperatures,
        params: DistillParams,
        heda: HedaParams,
        cross_entropy: CrossEntropy | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.base = base
        self.temperatures = temperatures
        self.params = params
        self.heda = heda
        self.cross_entropy = cross_entropy or CrossEntropy()

    def __call__(self, student: nn.Module, step: DistillationStep, epoch: int) -> Tensor:
        """The scalar to minimise; ``epoch`` is counted from 0."""
        batch, companion = step.batch, step.companion
        answers, strong_answers, mixed_answers = self._answers(step)
        # separate student passes, so that the main batch keeps its own batch statistics, as in the authors' code
        loss = self._view_loss(student(batch.images).float(), answers, step, epoch)
        if step.strong is not None:
            loss = loss + self._view_loss(student(step.strong).float(), strong_answers, step, epoch, strong=True)
        loss = batch.process_weight * loss
        if companion is not None and mixed_answers is not None:
            mixed_loss = self._mixed_loss(student(companion.images).float(), mixed_answers, companion)
            loss = loss + companion.process_weight * mixed_loss
        return loss

    def _view_loss(
        self, student: Tensor, answers: Answers | None, step: DistillationStep, epoch: int, *, strong: bool = False
    ) -> Tensor:
        """ce_weight * mean CE + the terms of the base loss, for the logits of one view."""
        loss = self.base.ce_weight * self._label_loss(student, step)
        if answers is None:
            return loss
        mixed = step.mixture is not None
        tau = self._mixed_temperatures(answers) if mixed else self._temperatures(answers, step.batch.index)
        view = ViewLogits(
            student=self._prepared_student(student, tau),
            teacher=self._prepared(answers.logits),
            raw_teacher=answers.logits,
            labels=step.batch.labels,
            temperature=tau if isinstance(tau, Tensor) else torch.full_like(answers.logits[:, 0], tau),
            strong=strong,
        )
        weight = entropy_weight(student, answers.logits) if self.params.sample_weight == "entropy" else 1.0
        for term in self.base.terms(view, epoch):
            loss = loss + (term.values * weight).mean() * term.weight
        return loss

    def _label_loss(self, student: Tensor, step: DistillationStep) -> Tensor:
        labels, mixture = step.batch.labels, step.mixture
        if mixture is None or step.partner_labels is None:
            return self.cross_entropy(student, labels)
        own, partner = self.cross_entropy(student, labels, mixture.share), 1 - mixture.share
        return own + self.cross_entropy(student, step.partner_labels, partner)

    def _mixed_loss(self, student: Tensor, teacher: Answers, companion: Companion) -> Tensor:
        """heda.kd_weight * mean KD + heda.mixed_label_weight * mean CE, for the logits of the companion batch."""
        tau = self._mixed_temperatures(teacher)
        prepared = self._prepared_student(student, tau), self._prepared(teacher.logits)
        loss = self.heda.kd_weight * kd(*prepared, tau).mean()
        if self.heda.mixed_label_weight == 0:
            return loss
        own = self.cross_entropy(student, companion.labels[: len(student)])
        partner = self.cross_entropy(student, companion.labels[companion.partner])
        return loss + self.heda.mixed_label_weight * (companion.lam * own + (1 - companion.lam) * partner)

    def _answers(self, step: DistillationStep) -> tuple[Answers | None, Answers | None, Answers | None]:
        """Answers to the main, strong and companion images, from one pass or stored; None where no loss needs them."""
        needed = self.base.needs_teacher
        wanted = [
            step.batch.images if needed and step.answers is None else None,
            step.strong if needed else None,
            step.companion.images if step.companion is not None else None,
        ]
        present = [images for images in wanted if images is not None]
        if not present:
            return step.answers, None, None
        with torch.no_grad():
            logits = self.teacher(torch.cat(present) if len(present) > 1 else present[0]).float()
        parts = iter(torch.split(logits, [len(images) for images in present]))
        main, strong, mixed = (None if images is None else Answers(next(parts)) for images in wanted)
        return step.answers if main is None else main, strong, mixed

    def _temperatures(self, answers: Answers, index: Tensor) -> Tensor:
        """tau [B] of views of the images ``index``."""
        by_view = self.params.assignment == "view"
        return self._view_temperatures(answers) if by_view else self.temperatures.stored[index]

    def _mixed_temperatures(self, answers: Answers) -> Tensor | float:
        """tau of mixed images, [B] or one for all: they have no stored score, and the paper takes the middle one."""
        return self._view_temperatures(answers) if self.params.assignment == "view" else self.params.temperatures.mid

    def _view_temperatures(self, answers: Answers) -> Tensor:
        stored = answers.certainty(self.temperatures.of)
        return self.temperatures.of_logits(answers.logits) if stored is None else self.temperatures.of_certainty(stored)

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
