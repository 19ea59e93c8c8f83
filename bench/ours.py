"""(b) The pipeline's own training, and (d) its own scoring, on stores that it has written."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from bench.setting import CROP_PADDING, Setting
from pipeline.data.loader import Images, open_images, steps_per_epoch, training_views
from pipeline.distillation.student import ScoredImages, distill
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.scoring import score_images
from pipeline.energy.subset import select_subset

ENERGY_TEMPERATURE = 4.0


class Ours:
    """Images/s of pipeline.distillation.student.distill: the second of two epochs, its validation not counted.

    The images of the clean batches count, with HE-DA too.

    Args:
        fraction: f of HE-DA; 0 for none.
        storage: packed, or files that are decoded while training.
        compiled: whether the networks' passes are compiled; the first epoch pays for it.
        half_known: with the memo of the teacher's logits and flips alone, two views an image, so that the second epoch
            finds half of the logits in it; 240 epochs of the 162 views that padding by 4 gives find 48 % on average.
    """

    def __init__(
        self,
        setting: Setting,
        fraction: float = 0.0,
        storage: str = "packed",
        *,
        compiled: bool = False,
        half_known: bool = False,
    ) -> None:
        self._setting = setting
        self._params = setting.params(fraction, epochs=2, compiled=compiled, memo=half_known)
        device, folder = torch.device(setting.device), setting.store(storage)
        padding = 0 if half_known else CROP_PADDING
        data = self._params.data.model_copy(update={"crop_padding": padding, "horizontal_flip": True})
        images = open_images(folder, "train", device, **training_views(data))
        self._validation = open_images(folder, "val", device)
        # which image is in which group changes no speed, so there is no need to score them
        energy = torch.randn(len(images), generator=torch.Generator().manual_seed(0)).to(device)
        groups = EnergyGroups.fit(energy, 0.2, 0.2)
        self._image_count = steps_per_epoch(len(images), setting.batch_size) * setting.batch_size
        self._scored = ScoredImages(images, groups, ENERGY_TEMPERATURE, select_subset(energy, fraction or 1.0))

    def __call__(self) -> float:
        setting = self._setting
        student, teacher = setting.network(setting.student), setting.network(setting.teacher)
        records = distill(student, teacher, self._scored, self._validation, self._params)
        return self._image_count / records[-1].seconds


class Scoring:
    """Images/s of the pipeline's scoring pass over the training images."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.images = open_images(setting.store(), "train", torch.device(setting.device))
        self.teacher = setting.network(setting.teacher).to(memory_format=torch.channels_last)  # as the stage does
        score(self.teacher, self.images)

    def __call__(self) -> float:
        started = self.setting.clock()
        score(self.teacher, self.images)
        return len(self.images) / (self.setting.clock() - started)


def score(teacher: nn.Module, images: Images) -> None:
    """One scoring pass of the pipeline: the one place that knows how it is called."""
    with TemporaryDirectory() as folder:
        score_images(teacher, images, ENERGY_TEMPERATURE, Path(folder))
