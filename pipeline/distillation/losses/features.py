"""The losses on feature maps: which submodules they compare, and the connectors that are trained for it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

import models
from pipeline.config import DistillParams
from pipeline.distillation.features import FeatureTap, feature_shapes
from pipeline.distillation.losses.attention import Attention
from pipeline.distillation.losses.base import BaseLoss, Term, ViewLogits, warmup
from pipeline.distillation.losses.fitnet import FitNet
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.reviewkd import ReviewKD
from pipeline.errors import ParamsError
from pipeline.portable.text import first_line
from pipeline.store.documents import Shape

# name -> makes the loss on feature maps from the channels of the student's and the teacher's stages
FEATURE_LOSSES: dict[str, Callable[[Sequence[int], Sequence[int]], nn.Module]] = {
    "fitnet": FitNet,
    "at": Attention,
    "reviewkd": ReviewKD,
}


class FeatureLoss(BaseLoss):
    """feature_weight * warm-up * one of :data:`FEATURE_LOSSES`, + kd_weight * KD.

    It compares the stages that the parameters name, else those that the networks declare, shallow to deep; fitnet
    compares the middle one. Hooks are in place only inside :meth:`reading_features`.

    Raises:
        ParamsError: the stages are not named where they have to be, do not exist, differ in number, or do not return
            feature maps [B, C, H, W]; or batches of one image are too small for the connectors.
    """

    reads_features = True

    def __init__(self, params: DistillParams, student: nn.Module, teacher: nn.Module, shape: Shape) -> None:
        super().__init__(params, student, teacher, shape)
        stages = [
            _stages("student", student, self.params.student_stages),
            _stages("teacher", teacher, self.params.teacher_stages),
        ]
        if len(stages[0]) != len(stages[1]):
            raise ParamsError(
                f"loss: the student has {len(stages[0])} stages ({', '.join(stages[0])}) and the "
                f"teacher {len(stages[1])} ({', '.join(stages[1])}); name equally many of both"
            )
        if self.params.name == "fitnet":
            middle = len(stages[0]) // 2
            stages = [names[middle : middle + 1] for names in stages]
        try:
            self._student_tap, self._teacher_tap = FeatureTap(student, stages[0]), FeatureTap(teacher, stages[1])
            maps = _map_shapes(student, stages[0], shape), _map_shapes(teacher, stages[1], shape)
        except ValueError as error:
            raise ParamsError(f"loss: {error}") from None
        self.loss = FEATURE_LOSSES[self.params.name](*([channels for channels, *_ in shapes] for shapes in maps))
        if params.training.batch_size == 1:
            _check_single_images(self.loss, *([torch.zeros(1, *map_shape) for map_shape in shapes] for shapes in maps))

    @contextmanager
    def reading_features(self) -> Iterator[None]:
        """The block in which the feature maps of each forward pass of both networks are kept."""
        with self._student_tap, self._teacher_tap:
            yield

    def terms(self, view: ViewLogits, epoch: int) -> list[Term]:
        # the clean images come first in the teacher's batch
        teacher = [feature[: len(view.labels)] for feature in self._teacher_tap.features()]
        values: Tensor = self.loss(self._student_tap.features(), teacher)
        terms = [Term(self.params.feature_weight * warmup(self.params.warmup_epochs, epoch), values)]
        if self.kd_weight:
            terms.append(Term(self.kd_weight, kd(view.student, view.teacher, view.temperature)))
        return terms


def _stages(role: str, network: nn.Module, given: Sequence[str] | None) -> Sequence[str]:
    names = given or models.stage_names(network)
    if not names:
        raise ParamsError(
            f"loss.{role}_stages is needed, because {type(network).__name__} declares no stages; "
            "name submodules whose outputs are feature maps, shallow to deep"
        )
    return names


def _map_shapes(network: nn.Module, names: Sequence[str], shape: Shape) -> list[tuple[int, ...]]:
    shapes = feature_shapes(network, names, shape)
    for name, found in zip(names, shapes, strict=True):
        if len(found) != 3:
            raise ValueError(
                f'submodule "{name}" of {type(network).__name__} returns {["B", *found]}, not feature maps '
                "[B, C, H, W]; name another"
            )
    return shapes


def _check_single_images(loss: nn.Module, student: list[Tensor], teacher: list[Tensor]) -> None:
    """Refuse maps [1, C, H, W] in which a batch norm of the connectors would see one pixel."""
    try:
        deepcopy(loss).train()(student, teacher)  # a copy, because batch norms remember what they have seen
    except ValueError as error:
        raise ParamsError(
            f"training.batch_size is 1, but the layers that {type(loss).__name__} trains cannot "
            f"learn from the maps of single images ({first_line(error)}); set it to 2 or more"
        ) from None
