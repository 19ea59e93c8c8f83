"""One small trained network in all formats, written once for all tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Params
from pipeline.export.files import PlannedFile, plan, write_files
from pipeline.export.formats import ExportSource
from pipeline.store.documents import ExportedFile
from tests.conftest import STUDENT

SIZE = 16
CLASSES = 4
METADATA = {
    "class_names": json.dumps(["a", "b", "c", "d"]),
    "preprocessing": json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "size": [SIZE, SIZE]}),
    "lineage": json.dumps({"network": "12" * 32}),
}
ONNX = {precision: PlannedFile(STUDENT, "onnx", precision) for precision in ("fp32", "fp16", "int8")}
_MADE_ONCE = ("network", "reference", "graph", "fp16_graph", "quantizer")


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
    sources: dict[str, ExportSource]
    before: dict[str, torch.Tensor]  # state of the student before the export
    logits: NDArray[np.float32]  # of the trained student itself for the parity images
    files: dict[str, ExportedFile] = field(default_factory=dict)
    progress: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def student(self) -> nn.Module:
        return self.sources["student"].trained

    @property
    def calibration(self) -> NDArray[np.float32]:
        return self.sources["student"].calibration_images

    @property
    def images(self) -> NDArray[np.float32]:
        return self.sources["student"].parity_images

    def changed(self, *parts: str, role: str = "student", images: int | None = None, **params: object) -> ExportSource:
        """A source with other parameters, and fewer parity images.

        Args:
            parts: of what is made once, those that are made anew because they depend on the change.
        """
        old = self.sources[role]
        new = replace(
            old,
            params=old.params.model_copy(update=params),
            parity_images=old.parity_images[: images or len(self.images)],
            parity_labels=old.parity_labels[: images or len(self.images)],
        )
        kept = {name: vars(old)[name] for name in _MADE_ONCE if name in vars(old) and name not in parts}
        if "reference" in kept:
            kept["reference"] = kept["reference"][: len(new.parity_images)]
        vars(new).update(kept)
        return new


def write(folder: Path, planned: Sequence[PlannedFile], source: ExportSource) -> list[ExportedFile]:
    """Files of this source in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_files(planned, source, METADATA, folder, lambda *_: None)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Exported:
    """The student in all formats and precisions, and the teacher; the networks are left in training mode."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % CLASSES
    centres = torch.randn(CLASSES, 3, SIZE, SIZE, generator=generator)
    pool = centres[labels] + 0.7 * torch.randn(160, 3, SIZE, SIZE, generator=generator)
    settings = params.export.model_copy(update={"tensorrt": True})
    parts = pool[:64].numpy(), pool[64:].numpy(), labels[64:].numpy()
    sources = {
        role: ExportSource(_trained(width, pool, labels), role, settings, 4.0, *parts)
        for role, width in (("student", 8), ("teacher", 16))
    }
    folder = tmp_path_factory.mktemp("export")
    student = sources["student"].trained
    with torch.inference_mode():
        logits = student.eval()(pool[64:]).numpy()
    student.train()
    made = Exported(folder, sources, copy.deepcopy(student.state_dict()), logits)
    for role, name in (("student", STUDENT), ("teacher", None)):
        planned = plan(settings, name)
        files = write_files(planned, sources[role], METADATA, folder, lambda *step: made.progress.append(step))
        made.files.update({file.name: file for file in files})
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
