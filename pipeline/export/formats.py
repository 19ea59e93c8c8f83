"""Export formats: one writer per format, and the common source of their files.

TensorRT's engines have no writer: an engine runs only on the type of machine that built it, so :mod:`pipeline.runtimes`
builds it on the device, from these ONNX files.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from openvino._offline_transformations import apply_moc_transformations
from torch import Tensor, nn

from pipeline.compute.tracing import in_float32
from pipeline.config import ExportParams, Precision, RuntimeName
from pipeline.energy.groups import energy_score
from pipeline.errors import ExportError
from pipeline.export import graph
from pipeline.export.capture import capture, deployable, reference_logits
from pipeline.export.half_precision import to_fp16
from pipeline.export.int8.forms import FormName
from pipeline.export.int8.quantize import Quantizer
from pipeline.export.structure import check_structure
from pipeline.portable.text import first_line
from pipeline.runtimes.openvino_runtime import openvino_core
from pipeline.store.documents import Role, Shape

IR_SECTION = "energykd"  # section of an OpenVINO IR's rt_info for the metadata


@dataclass(frozen=True)
class ExportSource:
    """A trained network, with the parameters and images to write and check its files.

    Attributes:
        trained: the network, float32 [N, C, H, W] -> float32 [N, K]; the export does not change it.
        params: block ``export`` of params.yaml.
        energy_temperature: T_E of the output "energy".
        calibration_images: float32 [n, C, H, W], normalised, n >= 1; they set the int8 quantisation scales.
        parity_images: float32 [m, C, H, W], normalised, m >= 1; the parity check runs each file on these images.
        parity_labels: int64 [m].
    """

    trained: nn.Module
    role: Role
    params: ExportParams
    energy_temperature: float
    calibration_images: NDArray[np.float32]
    parity_images: NDArray[np.float32]
    parity_labels: NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image."""
        _, channels, height, width = self.parity_images.shape
        return channels, height, width

    @cached_property
    def network(self) -> nn.Module:
        """Float32 copy of the network in eval mode, in the form that is exported."""
        return deployable(self.trained)

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """Logits [m, K] of the trained network on the parity images."""
        return reference_logits(in_float32(self.trained), self.parity_images, self.role)

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """Float32 ONNX graph of the network with the logits as only output; cached, so callers must not change it."""
        return graph.from_program(capture(self.network, self.shape, self.role), self.params.opset)

    @cached_property
    def fp16_graph(self) -> onnx.ModelProto:
        """The graph with float16 weights and arithmetic; cached too."""
        return to_fp16(self.graph)

    @cached_property
    def quantizer(self) -> Quantizer:
        """Makes the int8 graphs of the network."""
        return Quantizer(self.graph, self.calibration_images, self.params.int8)


class WithEnergy(nn.Module):
    """A network that returns logits [B, K] and their energy [B]."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, energy_score(logits, self.temperature)


def write_torch(source: ExportSource, precision: Precision, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a torch.export program: the network without its Python source code, float32 only.

    Loading a program can run code from the file, so only files of the run's own manifest are loaded. The metadata are
    extra files of the archive.
    """
    if precision != "fp32":
        raise ValueError(f"a torch program is written in fp32, not in {precision}")
    network = WithEnergy(source.network, source.energy_temperature)
    content = io.BytesIO()  # in memory first, because torch.export.save ends the process on a full disk
    program = capture(network, source.shape, source.role)
    torch.export.save(program, content, extra_files=dict(sorted(metadata.items())))
    path.write_bytes(content.getbuffer())


def write_onnx(
    source: ExportSource,
    precision: Precision,
    path: Path,
    metadata: Mapping[str, str],
    form: FormName = "onnxruntime",
) -> None:
    """Write an ONNX file (float32, typed float16 or int8 Q/DQ) and check its structure. The input "input" [batch, C, H,
    W] and the outputs "logits" [batch, K] and "energy" [batch] are float32 in every precision.
    """
    graph.write(_onnx_model(source, precision, form), path, metadata)
    fp32_layers = source.quantizer.graph(form).fp32_layers if precision == "int8" else ()
    check_structure(path, precision, fp32_layers, for_tensorrt=form == "tensorrt")


def write_openvino(source: ExportSource, precision: Precision, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an OpenVINO IR, an .xml and a .bin file.

    The steps are those of ``openvino.convert_model``. That function is not used, because it sends usage data over the
    network and records the path of its input. The weights are not compressed.
    """
    original = _onnx_model(source, precision, "openvino")
    try:
        model = openvino_core().read_model(original.SerializeToString())
        apply_moc_transformations(model, cf=False, smart_reshape=True)
        _number_unnamed_layers(model, original.graph)
        for key, value in sorted(metadata.items()):
            model.set_rt_info(value, [IR_SECTION, key])
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(
            f"OpenVINO cannot convert {path.name} ({first_line(error)}); set export.openvino to false or choose "
            "another network"
        ) from error


def _onnx_model(source: ExportSource, precision: Precision, form: FormName) -> onnx.ModelProto:
    match precision:
        case "fp32" | "bf16":
            model = source.graph
        case "fp16":
            model = source.fp16_graph
        case "int8":
            model = source.quantizer.graph(form).model
    model = graph.with_energy(model, source.energy_temperature)
    if source.params.batch is not None:
        graph.fix_batch(model, source.params.batch)
    if source.params.ir_version is not None:
        model.ir_version = source.params.ir_version
    return model


def _number_unnamed_layers(model: openvino.Model, original: onnx.GraphProto) -> None:
    """Name layers without an ONNX name by their index; OpenVINO numbers them per process, so bytes would differ."""
    known = {node.name for node in original.node} | {name for node in original.node for name in node.output}
    known |= {value.name for value in (*original.input, *original.output, *original.initializer)}
    for index, layer in enumerate(model.get_ordered_ops()):
        if layer.get_friendly_name() not in known:
            layer.set_friendly_name(f"{layer.get_type_name()}_{index}")


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        suffix: of the file that the runtime loads.
        runtime: name of the runtime that runs the file for the parity check.
        form: of an int8 file, see :mod:`pipeline.export.int8.forms`; None for a format without int8.
        write: writes the file; equal inputs give equal bytes. Raises ExportError if the network cannot be written.
    """

    suffix: str
    runtime: RuntimeName
    form: FormName | None
    write: Callable[[ExportSource, Precision, Path, Mapping[str, str]], None]


FormatName = Literal["torch", "onnx", "openvino", "tensorrt"]
FORMATS: dict[FormatName, Format] = {
    "torch": Format(".pt2", "torch", None, write_torch),
    "onnx": Format(".onnx", "onnxruntime", "onnxruntime", write_onnx),
    "openvino": Format(".xml", "openvino", "openvino", write_openvino),
    # TensorRT reads the common ONNX files in its other precisions
    "tensorrt": Format("_tensorrt.onnx", "onnxruntime", "tensorrt", partial(write_onnx, form="tensorrt")),
}
