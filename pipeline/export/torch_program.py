"""The torch.export program: the network itself, without the Python code that defined it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from pipeline.export.base import Source
from pipeline.export.capture import capture
from pipeline.export.energy_output import WithEnergy


class TorchProgram:
    """A .pt2 file, float32. Reading one runs code that it names, so only files of one's own manifest are loaded."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    runtime: ClassVar[str] = "torch"

    def write(self, source: Source, precision: str, path: Path, metadata: Mapping[str, str]) -> tuple[Path, ...]:
        """See :class:`pipeline.export.base.Format`; the metadata are extra files of the archive."""
        if precision != "fp32":
            raise ValueError(f"a torch program is written in fp32, not in {precision}")
        network = WithEnergy(source.network, source.energy_temperature)
        program = capture(network, source.image_size, source.role)
        # not into the file: a full disk would end the whole process there
        content = io.BytesIO()
        torch.export.save(program, content, extra_files=dict(sorted(metadata.items())))
        path.write_bytes(content.getbuffer())
        return (path,)
