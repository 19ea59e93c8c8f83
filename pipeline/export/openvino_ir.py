"""OpenVINO IR, made from the ONNX file of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx
import openvino
from openvino._offline_transformations import apply_moc_transformations

from pipeline.errors import ExportError
from pipeline.export.base import Source
from pipeline.export.capture import first_line
from pipeline.runtimes.openvino_core import openvino_core

SECTION = "energykd"  # of the rt_info, where the metadata are


class OpenVinoIr:
    """An .xml file with its .bin beside it. The precision is that of the ONNX file beside it; nothing is compressed."""

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    runtime: ClassVar[str] = "openvino"

    def write(self, source: Source, precision: str, path: Path, metadata: Mapping[str, str]) -> tuple[Path, ...]:
        """See :class:`pipeline.export.base.Format`.

        The steps are those of ``openvino.convert_model``, which itself would report its use to the maker over the
        network and record the path of its input.
        """
        original = path.with_suffix(".onnx")
        try:
            model = openvino_core().read_model(original)
            apply_moc_transformations(model, cf=False, smart_reshape=True)
            _name_layers(model, onnx.load(original))
            for key, value in sorted(metadata.items()):
                model.set_rt_info(value, [SECTION, key])
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot convert {original.name} ({first_line(error)}); set export.openvino to false or "
                "choose another network"
            ) from error
        return (path, path.with_suffix(".bin"))


def _name_layers(model: openvino.Model, original: onnx.ModelProto) -> None:
    """Number the layers that have no name in the ONNX graph: OpenVINO names them by a counter of the whole process."""
    graph = original.graph
    known = {node.name for node in graph.node} | {name for node in graph.node for name in node.output}
    known |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for index, layer in enumerate(model.get_ordered_ops()):
        if layer.get_friendly_name() not in known:
            layer.set_friendly_name(f"{layer.get_type_name()}_{index}")
