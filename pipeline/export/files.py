"""The stage export: write all files of a network and compare each with it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import TEACHER, ExportParams, Precision
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import preprocessing
from pipeline.errors import ExportError
from pipeline.export.calibration import select
from pipeline.export.formats import FORMATS, ExportSource, FormatName
from pipeline.export.int8.quantize import weight_bits
from pipeline.export.parity import check_energy, check_parity
from pipeline.lineage import NetworkRun
from pipeline.portable.accuracy import Outputs
from pipeline.portable.files import atomic_folder
from pipeline.runtimes import RuntimesError, joined, load, run_padded
from pipeline.runtimes.openvino_runtime import precision_hint
from pipeline.store.documents import CalibrationRecord, ExportedFile, ExportManifest, FileParity, Role
from pipeline.store.paths import MANIFEST, model_files
from pipeline.store.space import require_space
from pipeline.store.tables import sha256_model
from pipeline.training.weights import read_network, state_bytes

# largest size of a file's graph and metadata; the weights need at most their fp32 size in every precision
GRAPH_BYTES = 4 * 2**20
_IMAGES_AT_ONCE = 32  # per call of a runtime
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

Progress = Callable[[int, int, str], None]  # files written, files in total, name of the next file


@dataclass(frozen=True)
class PlannedFile:
    """One file to write."""

    student: str | None
    format: FormatName
    precision: Precision

    @property
    def role(self) -> Role:
        return "teacher" if self.student is None else "student"

    @property
    def name(self) -> str:
        """Name of the file that a runtime loads; a second file, the .bin of an OpenVINO IR, lies beside it."""
        return f"{self.student or TEACHER}_{self.precision}{FORMATS[self.format].suffix}"


def plan(params: ExportParams, student: str | None) -> list[PlannedFile]:
    """List the files of a student, or of the teacher (None), in the order of the manifest."""
    if student is None:
        return [PlannedFile(None, "onnx", "fp32")] if params.teacher else []
    precisions = [precision for precision in _PRECISIONS if precision in params.precisions]
    files = [PlannedFile(student, "torch", "fp32")]
    files += [PlannedFile(student, "onnx", precision) for precision in precisions]
    files += [PlannedFile(student, "openvino", precision) for precision in precisions if params.openvino]
    return files + ([PlannedFile(student, "tensorrt", "int8")] if params.tensorrt and "int8" in precisions else [])


def make_export(network: NetworkRun, params: ExportParams, on_progress: Progress) -> ExportManifest:
    """Write the files of :func:`plan`, the calibration record and the manifest into the network's export folder.

    Raises:
        ExportError: see :func:`write_files`.
        SpaceError: the disk cannot hold the files.
        DataError, LineageError, CheckpointError: an artifact of the run is missing, damaged or from another run.
    """
    run, calibration = network.run, params.calibration
    scores, temperature = run.energy.columns, run.energy.lineage.temperature
    trained, normalisation = read_network(network.places.weights, network.card), Normalisation.of(network.card)
    train_index = select(scores["label"], scores["energy"], calibration.images, calibration.selection, calibration.seed)
    train, val = (open_images(run.places.data, name, torch.device("cpu"), normalisation) for name in ("train", "val"))
    val_index = torch.arange(min(params.parity.images, len(val)))
    pixels = (images.centre(index) for images, index in ((train, torch.from_numpy(train_index)), (val, val_index)))
    parts = *(part.contiguous().numpy() for part in pixels), val.labels[val_index].numpy()
    source = ExportSource(trained, network.role, params, temperature, *parts)
    planned, places = plan(params, network.student), network.places
    needed = len(planned) * (state_bytes(trained) + GRAPH_BYTES)
    require_space(places.export, needed, f"the exported files of {network.name}", output=needed)
    with atomic_folder(places.export) as folder:
        files = write_files(planned, source, _metadata(network), folder, on_progress)
        if any(file.precision == "int8" for file in planned):
            CalibrationRecord(
                data=network.made_from.data,
                energy=network.made_from.energy,
                selection=calibration.selection,
                seed=calibration.seed,
                int8=params.int8.model_dump() | {"weight_bits": weight_bits(params.int8)},
                sha256=hashlib.sha256(train_index.astype("<i8").tobytes()).hexdigest(),
                indices=train_index.tolist(),
            ).write(folder / "calibration.json")
        return ExportManifest(lineage=network.made_from, opset=params.opset, files=files).write(folder / MANIFEST)


def write_files(
    planned: Sequence[PlannedFile],
    source: ExportSource,
    metadata: Mapping[str, str],
    folder: Path,
    on_progress: Progress,
) -> list[ExportedFile]:
    """Write the files and check each one; equal inputs and library versions give equal bytes.

    Args:
        planned: files to write of the network of ``source``.
        metadata: written into every file, together with the file's "role" and "precision".

    Raises:
        ExportError: a network cannot be exported, or a file fails the check of its structure, parity or energy.
    """
    files: list[ExportedFile] = []
    for file in planned:
        on_progress(len(files), len(planned), file.name)
        form, path = FORMATS[file.format], folder / file.name
        reference = source.reference  # before the file, so that a failure of the network is reported as one
        file_metadata = {**metadata, "role": file.role, "precision": file.precision}
        if form.runtime == "openvino":  # the IR has no place for it that OpenVINO reads by itself
            file_metadata["inference_precision_hint"] = precision_hint(file.precision, has_fp16=True)
        layers: Sequence[str] = ()
        if file.precision == "int8" and form.form is not None:
            on_layer = partial(_on_layer, on_progress, len(files), len(planned), file.name)
            layers = source.quantizer.graph(form.form, on_layer).fp32_layers
            file_metadata |= {"fp32_layers": json.dumps(layers), "weight_bits": str(source.quantizer.weight_bits)}
        form.write(source, file.precision, path, file_metadata)
        batch = None if file.format == "torch" else source.params.batch
        outputs, executed = _run(file, path, source.parity_images, batch)
        parity, change = check_parity(
            file.name, file.precision, reference, outputs.logits, source.parity_labels, source.params.parity
        )
        energy_max_abs = check_energy(file.name, outputs, reference, source.energy_temperature)
        files.append(
            ExportedFile(
                name=file.name,
                role=file.role,
                **vars(file),
                sha256=sha256_model(path),
                size_bytes=sum(part.stat().st_size for part in model_files(path)),
                batch=batch,
                fp32_layers=list(layers),
                parity=FileParity(
                    **vars(parity),
                    delta_top1=change.value,
                    delta_ci_low=change.low,
                    delta_ci_high=change.high,
                    energy_max_abs=energy_max_abs,
                    runtime=form.runtime,
                    executed_precision=executed,
                ),
            )
        )
    on_progress(len(files), len(planned), "")
    return files


def _on_layer(on_progress: Progress, done: int, total: int, name: str, layer: int, layers: int) -> None:
    on_progress(done, total, f"{name}, layer {layer} of {layers}")


def _run(file: PlannedFile, path: Path, images: NDArray[np.float32], batch: int | None) -> tuple[Outputs, str]:
    """Run a file on images; return its outputs and the precision that the runtime reports."""
    size = batch or _IMAGES_AT_ONCE
    chunks = (images[start : start + size] for start in range(0, len(images), size))
    try:
        runtime = load(FORMATS[file.format].runtime, path, precision=file.precision)
        return joined(run_padded(runtime, chunk, batch) for chunk in chunks), runtime.executed().precision
    except RuntimesError as error:
        raise ExportError(str(error).rstrip(".")) from error


def _metadata(network: NetworkRun) -> dict[str, str]:
    """Collect the metadata that all files of a network share: preprocessing, labels, lineage, licence."""
    data, card = network.run.data, network.card
    return {
        "energy_temperature": json.dumps(network.run.energy.lineage.temperature),
        "parameters": json.dumps(card.model_dump(include={"network", "seed", "distill", "heda"})),
        "class_names": json.dumps(data.class_names),
        "preprocessing": json.dumps(preprocessing(card)),
        "lineage": json.dumps(network.made_from.model_dump()),
        "data": data.source,
        "data_licence": data.licence,
    }
