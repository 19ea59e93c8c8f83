"""One tiny network with a residual connection, in every format and precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.runtimes.openvino_runtime import openvino_core

SIZE = 16
CLASSES = 5


@dataclass(frozen=True)
class TinyNetwork:
    """Exported files by precision, float32 images [4, 3, 16, 16] and the torch network's logits [4, 5]."""

    torch: Path
    onnx: dict[str, Path]
    openvino: dict[str, Path]
    images: NDArray[np.float32]
    logits: NDArray[np.float32]

    def file(self, runtime: str, precision: str = "fp32") -> Path:
        return {"torch": {"fp32": self.torch}, "onnxruntime": self.onnx, "openvino": self.openvino}[runtime][precision]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyNetwork:
    import openvino
    import torch

    folder = tmp_path_factory.mktemp("tiny")
    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return torch.relu(maps + self.convolution(maps))

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        Residual(),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, CLASSES),
    ).eval()
    images = torch.randn(4, 3, SIZE, SIZE)
    onnx = {precision: folder / f"tiny_{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "tiny_fp32.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            onnx["fp32"],
            dynamo=True,
            external_data=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    _write_typed_fp16(onnx["fp32"], onnx["fp16"])
    _write_int8(onnx["fp32"], onnx["int8"], images.numpy())
    intermediate = {precision: path.with_suffix(".xml") for precision, path in onnx.items()}
    for precision, path in intermediate.items():
        openvino.save_model(openvino_core().read_model(onnx[precision]), path, compress_to_fp16=False)
    with torch.inference_mode():
        logits = network(images).numpy()
    return TinyNetwork(folder / "tiny_fp32.pt2", onnx, intermediate, images.numpy(), logits)


def _write_typed_fp16(source: Path, target: Path) -> None:
    """Weights and all arithmetic in float16, float32 at the boundary."""
    import onnx

    model = onnx.load(source)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for node in graph.node:
        node.input[:] = ["input_half" if name == "input" else name for name in node.input]
        node.output[:] = ["logits_half" if name == "logits" else name for name in node.output]
    graph.node.insert(0, onnx.helper.make_node("Cast", ["input"], ["input_half"], to=onnx.TensorProto.FLOAT16))
    graph.node.append(onnx.helper.make_node("Cast", ["logits_half"], ["logits"], to=onnx.TensorProto.FLOAT))
    del graph.value_info[:]
    onnx.save(model, target)


def _write_int8(source: Path, target: Path, images: NDArray[np.float32]) -> None:
    """Unsigned activations, as the documentation of ONNX Runtime recommends; 7-bit weights, for CPUs without VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, Any]] = iter([{"input": images}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
