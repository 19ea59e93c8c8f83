"""A small network and a training of a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compute.seeds import stream_seed
from pipeline.config import Params, TrainingParams
from pipeline.data.loader import Batch
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import train
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from pipeline.training.task import Task

STEPS = 3
CPU = torch.device("cpu")
QUIET = Session(CPU)


class Killed(Exception):  # noqa: N818  not an error of ours
    pass


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(96, 3)
    )


def mixed(network: nn.Module) -> Predictions:
    return Predictions(torch.tensor([0, 1]), torch.tensor([0, 0]))


def cross_entropy(network: nn.Module, batch: Batch, epoch: int) -> Tensor:
    return F.cross_entropy(network(batch.images).float(), batch.labels)


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(stream_seed(0, 0, epoch))
    for step in range(STEPS):
        labels = torch.randint(3, (8,), generator=generator)
        images = torch.randn(8, 3, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
        yield Batch(images, labels, 8 * step + torch.arange(8))


def settings(params: Params, **changes: Any) -> TrainingParams:
    base = {"epochs": 4, "learning_rate": 0.05, "warmup_epochs": 1.0, "precision": "fp32", "compile": "off"}
    return params.teacher.training.model_copy(update=base | changes)


def run(
    params: Params,
    student: nn.Module,
    training: TrainingParams | None = None,
    checkpoint: Checkpoint | None = None,
    session: Session = QUIET,
    **changes: Any,
) -> list[EpochRecord]:
    usual: dict[str, Any] = {"kept": student, "epoch_steps": batches, "steps": STEPS, "objective": cross_entropy}
    usual |= {"validate": mixed, "seed": 0, "name": "hot", "block": "students.hot"}
    return session.watched(train(student, Task(**usual | changes), training or settings(params), session, checkpoint))


def killed_after(steps: int) -> Session:
    """A session that is killed in the step after so many."""
    left = iter(range(steps))

    def kill_later() -> None:
        if next(left, None) is None:
            raise Killed

    return Session(CPU, on_step=kill_later)
