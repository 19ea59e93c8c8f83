"""What writing crash checkpoints costs: its share of the time that training takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import TrainingParams
from pipeline.data.loader import open_images
from pipeline.data.store import read_card
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import train_classifier
from pipeline.training.weights import build_network

TARGET = 0.02  # of the training time, at most


@dataclass(frozen=True)
class Cost:
    """Of one training.

    Attributes:
        seconds: of the whole training, validation and checkpoints included.
        saving_seconds: of that, the writing of checkpoints until they were on the disk.
        size_bytes: of a checkpoint.
    """

    network: str
    epochs: int
    images: int
    seconds: float
    saving_seconds: float
    size_bytes: int

    @property
    def share(self) -> float:
        return self.saving_seconds / self.seconds


class _Timed(Checkpoint):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds = 0.0

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, records: list[dict[str, Any]]) -> None:
        started = time.perf_counter()
        super().save(network, optimizer, records)
        self.seconds += time.perf_counter() - started


def measure(data: Path, networks: Sequence[str], training: TrainingParams, beside: Path) -> list[Cost]:
    """Train each network on the store ``data``, with checkpoints in a new folder beside ``beside``, on that disk."""
    device = torch.device("cpu")
    classes = len(read_card(data)["class_names"])
    costs = []
    for name in networks:
        images, validation = open_images(data, "train", device), open_images(data, "val", device)
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=beside.parent) as folder:
            checkpoint = _Timed(Path(folder))
            started = time.perf_counter()
            torch.manual_seed(0)
            train_classifier(
                build_network(name, classes, "network"), images, validation, training, 0, checkpoint=checkpoint
            )
            seconds = time.perf_counter() - started
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        costs.append(Cost(name, training.epochs, len(images), seconds, checkpoint.seconds, size))
    return costs
