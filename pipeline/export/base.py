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
from torch import nn

from pipeline.config import Int8Params
from pipeline.export.capture import capture
from pipeline.export.graph import from_program
from pipeline.export.int8.quantize import Int8Graph, to_int8


@dataclass(frozen=True)
class Source:
    """One captured network and what its files are made with.

    Attributes:
        network: of :func:`pipeline.export.capture.deployable`, float32 [N, 3, S, S] to float32 [N, K].
        role: "student" or "teacher", for messages.
        image_size: S, pixels.
        energy_temperature: T_E of the files' second output.
        opset: ONNX operator set of the files.
        ir_version: version of the ONNX file format; None as torch writes it.
        batch: images per call, fixed in the ONNX and OpenVINO files; None for any number.
        calibration_images: float32 [n, 3, S, S], normalised, to choose the numbers of the int8 files.
        int8: how they are chosen.
    """

    network: nn.Module
    role: str
    image_size: int
    energy_temperature: float
    opset: int
    ir_version: int | None
    batch: int | None
    calibration_images: NDArray[np.float32]
    int8: Int8Params

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """The network in ONNX, float32, with the logits alone as output; made once, not to be changed."""
        return from_program(capture(self.network, self.image_size, self.role), self.opset)

    @cached_property
    def int8_graph(self) -> Int8Graph:
        """The same in int8; made once, not to be changed."""
        return to_int8(self.graph, self.calibration_images, self.int8)


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
