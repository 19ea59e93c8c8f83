"""The feature losses on two networks: which submodules are compared, and the connectors trained for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

import models
from pipeline.config import DistillParams, FeatureParams
from pipeline.distillation.features import FeatureTap, feature_shapes
from pipeline.distillation.losses import Attention, FitNet, ReviewKD
from pipeline.errors import ParamsError


class FeatureLoss(nn.Module):
    """One of fitnet, at and reviewkd between the stages of a student and of a teacher.

    Its parameters, those of the connectors, are trained beside the student's and are not part of it. Neither network is
    a submodule, and both are tapped only while :meth:`tapped` lasts.

    Args:
        kind: the loss. fitnet compares the middle one of the stages.
        student_stages, teacher_stages: names of submodules that return [B, C, H, W], shallow to deep, as many of each.
        image_size: pixels; for one pass of each network that finds the channels.

    Raises:
        ValueError: the numbers of stages differ, a submodule does not exist, or one returns something else.
    """

    def __init__(
        self,
        kind: str,
        student: nn.Module,
        teacher: nn.Module,
        student_stages: Sequence[str],
        teacher_stages: Sequence[str],
        image_size: int,
    ) -> None:
        super().__init__()
        if len(student_stages) != len(teacher_stages):
            raise ValueError(
                f"the student has {len(student_stages)} stages ({', '.join(student_stages)}) and the teacher "
                f"{len(teacher_stages)} ({', '.join(teacher_stages)}); name as many of each"
            )
        if kind == "fitnet":
            middle = slice(len(student_stages) // 2, len(student_stages) // 2 + 1)
            student_stages, teacher_stages = student_stages[middle], teacher_stages[middle]
        self._student_tap = FeatureTap(student, student_stages)
        self._teacher_tap = FeatureTap(teacher, teacher_stages)
        student_channels = _channels(student, student_stages, image_size)
        teacher_channels = _channels(teacher, teacher_stages, image_size)
        self.loss: nn.Module
        match kind:
            case "fitnet":
                self.loss = FitNet(student_channels, teacher_channels)
            case "at":
                self.loss = Attention()
            case "reviewkd":
                self.loss = ReviewKD(student_channels, teacher_channels)
            case _:
                raise ValueError(f"there is no feature loss {kind!r}")

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """While it lasts, the features of each forward pass of both networks are kept."""
        with self._student_tap, self._teacher_tap:
            yield

    def student_features(self) -> list[Tensor]:
        """Features of the student's latest forward pass; once per pass."""
        return self._student_tap.features()

    def teacher_features(self) -> list[Tensor]:
        """Features of the teacher's latest forward pass; once per pass."""
        return self._teacher_tap.features()

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss of each sample: [B]."""
        values: Tensor = self.loss(student, teacher)
        return values


def feature_loss(params: DistillParams, student: nn.Module, teacher: nn.Module, image_size: int) -> FeatureLoss | None:
    """The feature loss that ``params`` ask for; None where the loss is one of logits.

    Raises:
        ParamsError: the stages are not named where they have to be, or cannot be compared.
    """
    loss = params.loss
    if not isinstance(loss, FeatureParams):
        return None
    stages = []
    for role, network, given in (
        ("student", student, loss.student_stages),
        ("teacher", teacher, loss.teacher_stages),
    ):
        names = given or models.stage_names(network)
        if not names:
            raise ParamsError(
                f"params.yaml: distill.loss.{role}_stages is needed, because {type(network).__name__} declares no "
                "stages; name submodules whose outputs are feature maps, shallow to deep"
            )
        stages.append(names)
    try:
        return FeatureLoss(loss.name, student, teacher, stages[0], stages[1], image_size)
    except ValueError as error:
        raise ParamsError(f"params.yaml: distill.loss: {error}") from None


def _channels(network: nn.Module, names: Sequence[str], image_size: int) -> list[int]:
    channels = []
    for name, shape in zip(names, feature_shapes(network, names, image_size), strict=True):
        if len(shape) != 3:
            raise ValueError(
                f'submodule "{name}" of {type(network).__name__} returns {["B", *shape]}, not feature maps '
                "[B, C, H, W]; name another"
            )
        channels.append(shape[0])
    return channels
