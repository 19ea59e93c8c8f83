"""From trained networks to files for devices: one handler per format, and a parity gate for each file.

Handlers: :mod:`onnx_file`, :mod:`openvino_ir`, :mod:`torch_program`. TensorRT has none, because an engine runs only on
the kind of machine that built it: :mod:`pipeline.runtimes` builds it there, from these very ONNX files.
"""

from __future__ import annotations

from pipeline.export.calibration import select, write_record
from pipeline.export.files import GRAPH_BYTES, ExportedFile, PlannedFile, export_all, plan
from pipeline.export.parity import Parity, check_parity, compare
from pipeline.export.structure import check_structure

__all__ = [
    "GRAPH_BYTES",
    "ExportedFile",
    "Parity",
    "PlannedFile",
    "check_parity",
    "check_structure",
    "compare",
    "export_all",
    "plan",
    "select",
    "write_record",
]
