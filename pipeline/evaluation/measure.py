"""Measure accuracy and latency of exported files on a device, for the stages benchmark and measure.

This machine and a device over ssh differ only in the address: both receive the same bundle and run the same code.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import BenchmarkParams
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import preprocessing
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.errors import ParamsError
from pipeline.evaluation.evaluate import expected_of
from pipeline.evaluation.runnable import RunnableFile
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.accuracy import Expected
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.files import atomic_file, sha256_file
from pipeline.remote import Address, BundleContent, run_bundle, write_bundle
from pipeline.runtimes import ENERGY, INPUT, LOGITS
from pipeline.store.answers import spread_over
from pipeline.store.documents import ExportedFile, Measurement
from pipeline.store.paths import model_files
from pipeline.store.space import require_space
from pipeline.training.inference import inference_batch
from pipeline.training.weights import read_network

_CPU = torch.device("cpu")
BUNDLE, SAMPLES = "bundle.pyz", "samples.npz"


@dataclass(frozen=True)
class MeasurementRequest:
    """Settings of one measurement.

    Attributes:
        files: files to measure.
        settings: block ``benchmark`` of params.yaml or of a device.yaml.
        key: source of the settings, for messages.
        address: of the device.
        folder: for the bundle and the fetched files, removed at the end. It also holds the id of the run on the device:
            a call with the same folder after a crash continues that run.
        result, samples: output files for the measurement and for the latency of every timed call.
        timeout_seconds: limit for the whole measurement, without the wait for another run on the device.
        process_seconds: limit for one process, without the timed part, so that a hanging process ends early.
    """

    files: Sequence[RunnableFile]
    settings: BenchmarkParams
    key: str
    address: Address
    folder: Path
    result: Path
    samples: Path
    timeout_seconds: float
    process_seconds: float


def measure(run: Run, request: MeasurementRequest, on_progress: Callable[[int, int, str], None]) -> Measurement:
    """Measure files at an address and write the result and the samples, each file atomically.

    Raises:
        RemoteError: nothing was measured.
        SpaceError: the disk cannot hold the bundle.
        DataError, LineageError, ParamsError: an artifact or a setting is not usable.
    """
    networks = {runnable.network.name: runnable.network for runnable in request.files}.values()
    content = bundle_content(run, make_plan(request), list(networks), request.settings.images)
    models = {part for runnable in request.files for part in model_files(runnable.path)}
    bundle = request.folder / BUNDLE
    needed = sum(images.nbytes for images in content.inputs.values()) + sum(part.stat().st_size for part in models)
    require_space(bundle, needed, "the files and images of the bundle")
    request.folder.mkdir(parents=True, exist_ok=True)
    write_bundle(bundle, content)
    reported = run_bundle(
        bundle,
        request.address,
        request.folder,
        timeout_seconds=request.timeout_seconds,
        wait_seconds=60 * request.settings.wait_minutes,
        on_progress=on_progress,
    )
    files = {runnable.name: runnable.file for runnable in request.files}
    measurement = Measurement(
        device=reported.device,
        machine=reported.machine,
        settings=request.settings.model_dump(mode="json", exclude={"wait_minutes"})
        | {"images": min(request.settings.images, run.data.counts.test)},
        lineage=run.measured_from(networks),
        bundle_sha256=reported.bundle_sha256,
        samples_sha256=sha256_file(request.folder / SAMPLES),
        started_at=reported.started_at,
        seconds=reported.seconds,
        tuning=reported.tuning,
        notes=reported.notes,
        rows=[_with_file_facts(row, files[row.name]) for row in reported.rows],
    )
    with atomic_file(request.samples) as temporary:
        shutil.copyfile(request.folder / SAMPLES, temporary)
    measurement.write(request.result)  # last, because later stages start from this file
    shutil.rmtree(request.folder, ignore_errors=True)
    return measurement


def make_plan(request: MeasurementRequest) -> Plan:
    """Make the plan of a measurement; the bundle contains the images and reference outputs.

    Raises:
        ParamsError: the batch size differs from the fixed batch size of a file.
    """
    settings = request.settings
    for fixed in {runnable.file.batch for runnable in request.files}:
        try:
            settings.check_batch(fixed)
        except ValueError as error:
            raise ParamsError(f"{request.key}: {error}") from None
    excluded = {"runtimes", "batch_size", "images", "sustained_minutes", "throughput", "wait_minutes"}
    inputs = _input_names([runnable.network for runnable in request.files])
    return Plan(
        tuple(
            Variant(
                runnable.name,
                runnable.runtime,
                str(runnable.path),
                runnable.file.precision,
                batch=settings.batch_size,
                fixed_batch=runnable.file.batch is not None,
                inputs=inputs[runnable.network.name],
                expected=runnable.network.name,
            )
            for runnable in request.files
        ),
        sustained_seconds=60 * settings.sustained_minutes,
        throughput=tuple(settings.throughput),
        timeout_seconds=request.process_seconds,
        **settings.model_dump(exclude=excluded),
    )


def bundle_content(run: Run, plan: Plan, networks: Sequence[NetworkRun], count: int) -> BundleContent:
    """Put a plan into a bundle, with ``count`` images of the test split in the normalisation of each network, and each
    torch network's outputs for them."""
    names = _input_names(networks)
    inputs: dict[str, NDArray[np.float32]] = {}
    expected: dict[str, Expected] = {}
    for network in networks:
        images = open_images(run.places.data, "test", _CPU, Normalisation.of(network.card))
        index = spread_over(len(images), count)
        pixels = images.centre(torch.from_numpy(index)).contiguous()
        trained = read_network(network.places.weights, network.card)
        with torch.inference_mode():
            logits = torch.cat([trained(part).float() for part in torch.split(pixels, inference_batch(images))])
        inputs.setdefault(names[network.name], pixels.numpy())
        expected[network.name] = expected_of(run, logits, images.labels.numpy()[index], index)
    return BundleContent(
        plan=plan,
        inputs=inputs,
        expected=expected,
        card={
            "names": {"input": INPUT, "logits": LOGITS, "energy": ENERGY},
            "labels": run.data.class_names,
            "preprocessing": {network.name: preprocessing(network.card) for network in networks},
            "lineage": run.measured_from(networks).model_dump(),
        },
    )


def _input_names(networks: Sequence[NetworkRun]) -> dict[str, str]:
    """Network -> name of its images in the bundle; networks of the same normalisation share them."""
    first: dict[Normalisation, str] = {}
    return {network.name: first.setdefault(Normalisation.of(network.card), network.name) for network in networks}


def _with_file_facts(row: MeasuredRow, file: ExportedFile) -> MeasuredRow:
    """Complete a row from the export manifest; the device knows only the variant's name in the plan."""
    return replace(
        row, name=file.name, role=file.role, format=file.format, sha256=file.sha256, size_bytes=file.size_bytes
    )


def in_short(row: MeasuredRow) -> str:
    """Summarise a row in one line for the terminal."""
    text = f"{row.name:20} {row.runtime:12} "
    if row.error is not None:
        return text + row.error
    text += f"p50 {row.latency_p50_ms:.3f} ms, {str(row.verdict).replace('_', ' ')}"
    accuracy = row.accuracy
    return text if accuracy is None else f"{text}, top-1 {accuracy.top1:.2%} of {accuracy.images}"
