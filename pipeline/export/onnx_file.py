"""ONNX files: float32, typed float16, and int8 Q/DQ, all from one graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pipeline.export import graph
from pipeline.export.base import Source
from pipeline.export.energy_output import with_energy
from pipeline.export.half_precision import to_fp16
from pipeline.export.structure import check_structure


class OnnxFile:
    """Input "input" [batch, 3, S, S], outputs "logits" [batch, K] and "energy" [batch]: float32, whatever is inside."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    runtime: ClassVar[str] = "onnxruntime"

    def write(self, source: Source, precision: str, path: Path, metadata: Mapping[str, str]) -> tuple[Path, ...]:
        """See :class:`pipeline.export.base.Format`; the file's structure is checked as well."""
        float_nodes: tuple[str, ...] = ()
        match precision:
            case "fp32":
                model = source.graph
            case "fp16":
                model = to_fp16(source.graph)
            case "int8":
                model, float_nodes = source.int8_graph.model, source.int8_graph.float_nodes
            case _:
                raise ValueError(f"precision {precision!r} is not one of fp32, fp16, int8")
        model = with_energy(model, source.energy_temperature)
        if source.batch is not None:
            graph.fix_batch(model, source.batch)
        if source.ir_version is not None:
            model.ir_version = source.ir_version
        graph.write(model, path, metadata)
        check_structure(path, precision, float_nodes)
        return (path,)
