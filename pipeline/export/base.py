"""What all file formats have in common: one interface, and the source that each of them is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from pipeline.export.graph import from_program

INPUT = "input"
OUTPUT = "logits"


@dataclass(frozen=True)
class Source:
    """One captured network and what its files are made with.

    Attributes:
        program: of the network in float32 evaluation mode, input float32 [N, 3, S, S], output float32 [N, K].
        opset: ONNX operator set of the files.
        calibration_images: float32 [n, 3, S, S], normalised, to set the int8 ranges.
    """

    program: ExportedProgram
    opset: int
    calibration_images: NDArray[np.float32]

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The network in ONNX, float32, made once; not to be changed."""
        return from_program(self.program, self.opset)


class Format(Protocol):
    """One kind of file.

    Attributes:
        name: as in export.json.
        suffix: of the file that a runtime is given.
        runtime: the runtime of :mod:`pipeline.runtimes` that checks the file.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    runtime: ClassVar[str]

    def write(self, source: Source, precision: str, path: Path, metadata: Mapping[str, str]) -> tuple[Path, ...]:
        """Write the file in one precision; returns all paths written, ``path`` first. Equal inputs give equal bytes.

        Raises:
            ExportError: the network cannot be written in this format and precision.
        """
        ...
