"""Helpers for the tests of distillation: a few random images, settings of two epochs, and a training on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import models
from pipeline.config import Params
from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.distillation.student import ScoredImages, train_student
from pipeline.energy.groups import EnergyGroups
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.session import Session
from tests.conftest import STUDENT, augmented, loss_params

CPU = torch.device("cpu")


def images(count: int, size: int = 16, padding: int = 1) -> Images:
    """Noise, the brighter the higher the label of 4."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 4
    pixels = generator.integers(0, 100, (count, size, size, 3)) + 40 * labels[:, None, None, None]
    resident = ResidentPixels(pixels.astype(np.uint8), CPU, padding=padding)
    views = augmented(padding, horizontal_flip=True)
    return Images(resident, torch.from_numpy(labels), Normalisation([0.5] * 3, [0.25] * 3), views)


def scored(training: Images) -> ScoredImages:
    """The images with energies that rise with the index, and the first 20 as the subset."""
    return ScoredImages(
        training, EnergyGroups.fit(torch.linspace(-9, -1, len(training)), 0.25, 0.25), 4.0, torch.arange(20)
    )


def settings(params: Params, **changes: Any) -> Params:
    """Two epochs in batches of 16 in fp32, and ``changes`` to the block distill; a loss may be given by its name."""
    quick = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "precision": "fp32", "compile": "off"}
    training = params.distill.training.model_copy(update=quick)
    if isinstance(name := changes.get("loss"), str):
        changes["loss"] = loss_params(name)
    return distilling(params, **{"training": training} | changes)


def distilling(params: Params, **changes: Any) -> Params:
    """The parameters with ``changes`` to the block distill, which the only student takes as it is."""
    distillation = params.distill.model_copy(update=changes)
    return params.model_copy(update={"distill": distillation, "students": {STUDENT: distillation}})


def build(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(name, 4).to(memory_format=torch.channels_last)


def train(
    params: Params, student: nn.Module, teacher: nn.Module, checkpoint: Checkpoint | None = None, **session: Any
) -> list[EpochRecord]:
    """Distill ``student`` in place. ``session``: what is not as in a session of one process on the CPU."""
    epochs = train_student(
        student, teacher, scored(images(48)), images(16), params, Session(CPU, **session), checkpoint
    )
    return list(epochs)
