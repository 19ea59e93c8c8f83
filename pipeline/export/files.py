"""Write all files of one run and prove each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.config import ExportParams
from pipeline.errors import ExportError
from pipeline.export.base import Format, Source
from pipeline.export.capture import deployable, reference_logits
from pipeline.export.onnx_file import OnnxFile
from pipeline.export.openvino_ir import OpenVinoIr
from pipeline.export.parity import Parity, check_energy, check_parity
from pipeline.export.torch_program import TorchProgram
from pipeline.runtimes import Answers, joined, load, run_padded
from pipeline.runtimes.errors import RuntimesError
from pipeline.store.tables import sha256_model

# What a file takes beside the fp32 weights, at most: the graph, with all that a format notes of each operation. No
# precision takes more for the weights.
GRAPH_BYTES = 4 * 2**20
_CHUNK = 32  # images per call of a runtime
_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class PlannedFile:
    """One file to write."""

    role: str
    format: Format
    precision: str

    @property
    def name(self) -> str:
        """File name, the one that a runtime is given."""
        return f"{self.role}_{self.precision}{self.format.suffix}"


@dataclass(frozen=True)
class ExportedFile:
    """One file that was written and compared with its network.

    Attributes:
        name: of the file in the folder; an IR is known by its .xml.
        role: "student" or "teacher".
        format: "onnx", "openvino" or "torch".
        precision: "fp32", "fp16" or "int8".
        sha256: over the bytes of all its parts, the named one first.
        size_bytes: of all its parts.
        batch: images per call, fixed in the file; None for any number.
        float_nodes: convolutions and matrix products that stay fp32 in an int8 file, in the order of computation.
        parity: with the torch network's float32 logits.
        energy_max_abs: largest difference of the file's energies from the torch network's.
        runtime: that computed the file's logits for the comparison.
        executed_precision: what that runtime reports it computed in on this machine.
    """

    name: str
    role: str
    format: str
    precision: str
    sha256: str
    size_bytes: int
    batch: int | None
    float_nodes: tuple[str, ...]
    parity: Parity
    energy_max_abs: float
    runtime: str
    executed_precision: str

    def entry(self) -> dict[str, Any]:
        """The file's entry in export.json."""
        entry = asdict(self)
        parity = entry.pop("parity")
        parity |= {key: entry.pop(key) for key in ("energy_max_abs", "runtime", "executed_precision")}
        return {**entry, "float_nodes": list(self.float_nodes), "parity": parity}


def plan(params: ExportParams, *, teacher: bool) -> list[PlannedFile]:
    """The files that :func:`export_all` writes, in its order."""
    precisions = [precision for precision in _PRECISIONS if precision in params.precisions]
    files = [PlannedFile("student", TorchProgram(), "fp32")]
    files += [PlannedFile("student", OnnxFile(), precision) for precision in precisions]
    if params.openvino:
        files += [PlannedFile("student", OpenVinoIr(), precision) for precision in precisions]
    if teacher and params.teacher:
        files.append(PlannedFile("teacher", OnnxFile(), "fp32"))
    return files


def export_all(
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    params: ExportParams,
    image_size: int,
    energy_temperature: float,
    calibration_images: NDArray[np.float32],
    parity_images: NDArray[np.float32],
    metadata: Mapping[str, str],
    out: Path,
    on_progress: Callable[[str], None],
) -> list[ExportedFile]:
    """Write the student in all formats and precisions, and the teacher in fp32, and compare each file with its network.

    The networks stay where and as they are. Equal inputs and library versions give equal bytes.

    Args:
        student, teacher: networks with their weights; the teacher is None or left out by ``params.teacher``.
        image_size: side S of the square images, pixels.
        energy_temperature: T_E of the output "energy".
        calibration_images: float32 [n, 3, S, S], normalised, n >= 1; set the int8 ranges.
        parity_images: float32 [m, 3, S, S], normalised, m >= 1; real images that each file is compared on.
        metadata: written into every file, with "role" and "precision" of the file added.
        out: a folder, made if it is not there; files of these names are replaced.
        on_progress: called with the name of each file before it is written.

    Returns:
        One entry per file, in the order of :func:`plan`.

    Raises:
        ExportError: images of another shape or type, a network or a file that cannot be exported, a file that is not
            what it claims to be or is too far from its network, or a file where the folder is to be.
        OSError: the folder cannot be written.
    """
    for name, images in (("calibration", calibration_images), ("parity", parity_images)):
        if images.ndim != 4 or images.shape[1:] != (3, image_size, image_size) or images.dtype != np.float32:
            raise ExportError(
                f"the {name} images are {images.dtype} {list(images.shape)} where float32 [N, 3, {image_size}, "
                f"{image_size}] is needed; run the stage prepare again"
            )
        if len(images) == 0 or not np.isfinite(images).all():
            raise ExportError(
                f"the {name} images are none, or hold values that are not finite; run the stage prepare again"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ExportError(f"{out} is a file; remove it, or choose another folder") from None
    networks = {"student": student, "teacher": teacher}
    exported: list[ExportedFile] = []
    sources: dict[str, Source] = {}
    references: dict[str, NDArray[np.float32]] = {}
    for file in plan(params, teacher=teacher is not None):
        on_progress(file.name)
        network = networks[file.role]
        if file.role not in sources and network is not None:
            twin = deployable(network)
            references[file.role] = reference_logits(twin, parity_images, file.role)
            sources[file.role] = Source(
                network=twin,
                role=file.role,
                image_size=image_size,
                energy_temperature=energy_temperature,
                opset=params.opset,
                ir_version=params.ir_version,
                batch=params.batch,
                calibration_images=calibration_images,
                int8=params.int8,
            )
        source = sources[file.role]
        float_nodes = source.int8_graph.float_nodes if file.precision == "int8" else ()
        described = {**metadata, "role": file.role, "precision": file.precision}
        if float_nodes:
            described["float_nodes"] = json.dumps(float_nodes)
        path = out / file.name
        parts = file.format.write(source, file.precision, path, described)
        batch = None if file.format.name == "torch" else params.batch
        answers, executed = _run(file, path, parity_images, batch)
        reference = references[file.role]
        parity = check_parity(file.name, file.precision, reference, answers.logits, params.parity)
        energy_max_abs = check_energy(file.name, answers, reference, energy_temperature)
        exported.append(
            ExportedFile(
                name=file.name,
                role=file.role,
                format=file.format.name,
                precision=file.precision,
                sha256=sha256_model(path),
                size_bytes=sum(part.stat().st_size for part in parts),
                batch=batch,
                float_nodes=float_nodes,
                parity=parity,
                energy_max_abs=energy_max_abs,
                runtime=file.format.runtime,
                executed_precision=executed,
            )
        )
    return exported


def _run(file: PlannedFile, path: Path, images: NDArray[np.float32], batch: int | None) -> tuple[Answers, str]:
    """Answers of a file by its runtime, and the precision that the runtime reports."""
    try:
        runtime = load(file.format.runtime, path, precision=file.precision)
        size = batch or _CHUNK
        chunks = (images[start : start + size] for start in range(0, len(images), size))
        return joined(run_padded(runtime, chunk, batch) for chunk in chunks), runtime.executed().precision
    except RuntimesError as error:
        raise ExportError(str(error).rstrip(".")) from error
