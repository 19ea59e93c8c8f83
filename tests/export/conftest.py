"""One small trained network in all formats, written once for all tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import ExportParams, Params
from pipeline.export import ExportedFile, export_all

SIZE = 16
CLASSES = 4
TEMPERATURE = 4.0
METADATA = {
    "class_names": json.dumps(["a", "b", "c", "d"]),
    "preprocessing": json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "size": [SIZE, SIZE]}),
    "lineage": json.dumps({"student": "12" * 32}),
}


class Small(nn.Module):
    """Convolution, batch normalisation, a depthwise residual and a classifier: what students are made of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images)
        maps = maps + self.depthwise(maps)
        return self.classifier(maps.mean((2, 3)))


@dataclass(frozen=True)
class Exported:
    """A folder of files and what they were made from."""

    folder: Path
    files: dict[str, ExportedFile]
    student: nn.Module
    teacher: nn.Module
    params: ExportParams
    calibration: NDArray[np.float32]
    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    progress: list[str]

    def again(self, folder: Path, **changes: object) -> list[ExportedFile]:
        """Export once more, with other arguments where given."""
        arguments = {
            "params": self.params,
            "image_size": SIZE,
            "energy_temperature": TEMPERATURE,
            "calibration_images": self.calibration,
            "parity_images": self.images,
            "metadata": METADATA,
            "out": folder,
            "on_progress": lambda name: None,
        }
        networks = (changes.pop("student", self.student), changes.pop("teacher", self.teacher))
        return export_all(*networks, **(arguments | changes))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Exported:
    """The student in all formats and precisions, and the teacher; the networks are left in training mode."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % CLASSES
    centres = torch.randn(CLASSES, 3, SIZE, SIZE, generator=generator)
    pool = centres[labels] + 0.7 * torch.randn(160, 3, SIZE, SIZE, generator=generator)
    student, teacher = (_trained(width, pool, labels) for width in (8, 16))
    with torch.inference_mode():
        logits = student.eval()(pool[64:]).numpy()
    student.train()
    folder = tmp_path_factory.mktemp("export") / "files"
    progress: list[str] = []
    made = Exported(
        folder=folder,
        files={},
        student=student,
        teacher=teacher,
        # every layer quantised: of three layers one may be all that stands out
        params=params.export.model_copy(update={"int8": params.export.int8.model_copy(update={"float_share": 0.0})}),
        calibration=pool[:64].numpy(),
        images=pool[64:].numpy(),
        logits=logits,
        progress=progress,
    )
    made.files.update({file.name: file for file in made.again(folder, on_progress=progress.append)})
    return made


def _trained(width: int, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(width)
    network = Small(width)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network
