"""Accuracy and latency of exported files on the device that runs them: what the stages benchmark and measure share.

This machine and a device over ssh differ in the address only: both get the same bundle and run the same code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import BenchmarkParams
from pipeline.data.loader import open_images
from pipeline.data.store import preprocessing
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.energy.groups import HIGH, energy_score
from pipeline.errors import ParamsError
from pipeline.evaluation.accuracy import top1_correct
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.reference import read_reference
from pipeline.remote import Address, BundleContent, run_bundle, write_bundle
from pipeline.runtimes import ENERGY, INPUT, LOGITS
from pipeline.store.atomic import atomic_file
from pipeline.store.paths import DATA
from pipeline.store.space import require_space
from pipeline.store.tables import (
    model_files,
    sha256_file,
    write_json,
)
from pipeline.training.inference import inference_batch

SCHEMA = 1
BUNDLE, SAMPLES = "bundle.pyz", "samples.npz"
_OF_THE_FILE = ("name", "role", "format", "sha256", "size_bytes")
_PARITY = ("parity_max_abs", "parity_mean_abs", "parity_top1_agreement", "energy_max_abs")
_NO_PARITY = "parity on the device not measured: the answers sent along are those of the student"

Json = dict[str, Any]


def spread_over(total: int, wanted: int) -> NDArray[np.int64]:
    """``wanted`` indices, all if there are fewer, at equal distances from 0 to ``total``."""
    count = min(wanted, total)
    return np.arange(count, dtype=np.int64) * total // count


def bundle_content(plan: Plan, wanted: int) -> BundleContent:
    """A plan with images spread over the test split, the answers of the student's weights, and the teacher's groups.

    Raises:
        DataError: an artifact is missing or damaged.
        LineageError: two artifacts come from different runs.
    """
    reference = read_reference()
    images = open_images(DATA, "test", torch.device("cpu"))
    index = spread_over(len(images), wanted)
    inputs = images.centre(torch.from_numpy(index)).contiguous()
    with torch.inference_mode():
        logits = torch.cat([reference.student(part).float() for part in torch.split(inputs, inference_batch(images))])
    return BundleContent(
        plan=plan,
        inputs=inputs.numpy(),
        logits=logits.numpy(),
        energy=energy_score(logits, reference.energy_temperature).numpy(),
        labels=images.labels.numpy()[index],
        groups=reference.groups[index],
        card={
            "names": {"input": INPUT, "logits": LOGITS, "energy": ENERGY},
            "labels": list(reference.data["class_names"]),
            "preprocessing": preprocessing(reference.data),
            "lineage": dict(reference.exported),
        },
    )


def make_plan(chosen: Sequence[Candidate], settings: BenchmarkParams, key: str, process_seconds: float) -> Plan:
    """The plan of a measurement; images and answers are in the bundle.

    Args:
        key: where ``settings`` come from, for the message.
        process_seconds: for what a process does beside measuring.

    Raises:
        ParamsError: a file of a fixed batch size is to run with another.
    """
    for fixed in {candidate.file["batch"] for candidate in chosen}:
        try:
            settings.check_batch(fixed)
        except ValueError as error:
            raise ParamsError(f"{key}: {error}") from None
    other = {"runtimes", "batch_size", "images", "sustained_minutes", "throughput"}
    return Plan(
        tuple(
            Variant(
                candidate.name,
                candidate.runtime,
                str(candidate.path),
                candidate.file["precision"],
                settings.batch_size,
                fixed_batch=candidate.file["batch"] is not None,
            )
            for candidate in chosen
        ),
        inputs="inputs.npy",
        expected="expected.npz",
        sustained_seconds=60 * settings.sustained_minutes,
        throughput=tuple(settings.throughput),
        timeout_seconds=process_seconds,
        **settings.model_dump(exclude=other),
    )


def measure(
    chosen: Sequence[Candidate],
    settings: BenchmarkParams,
    address: Address,
    folder: Path,
    *,
    key: str,
    timeout_seconds: float,
    process_seconds: float,
    on_progress: Callable[[int, int, str], None],
) -> Json:
    """Measure files at an address.

    Args:
        folder: for the bundle and the samples; the note by which a killed client finds its run is kept here, so the
            next call must name the same folder.
        key: where ``settings`` come from, for messages.
        timeout_seconds: for the whole of it.
        process_seconds: for what one process does beside measuring, so that one that hangs does not take all the time.

    Returns:
        What was measured, ready for JSON; the samples are in ``folder / SAMPLES``.

    Raises:
        RemoteError: nothing was measured.
        SpaceError: the disk cannot hold what is sent to be measured.
        DataError, LineageError, ParamsError: the files are not fit to be measured.
    """
    plan = make_plan(chosen, settings, key, process_seconds)
    content = bundle_content(plan, settings.images)
    models = {part for candidate in chosen for part in model_files(candidate.path)}
    needed = content.inputs.nbytes + sum(part.stat().st_size for part in models)
    require_space(folder / BUNDLE, needed, "the files and images to measure with")
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / BUNDLE
    write_bundle(bundle, content)
    result = run_bundle(bundle, address, folder, timeout_seconds=timeout_seconds, on_progress=on_progress)
    return document(result, chosen, settings, content) | {"samples_sha256": sha256_file(folder / SAMPLES)}


def document(result: Json, chosen: Sequence[Candidate], settings: BenchmarkParams, sent: BundleContent) -> Json:
    """What a run gave as it is kept: one row per file and runtime, with the hash of the file."""
    files = {candidate.name: candidate.file for candidate in chosen}
    return {
        "schema": SCHEMA,
        "device": result["device"],
        "machine": result["provenance"],
        "settings": settings.model_dump(mode="json") | {"images": len(sent.labels)},
        "lineage": dict(sent.card["lineage"]),
        "bundle_sha256": result["bundle_sha256"],
        "started_at": result["started_at"],
        "seconds": result["seconds"],
        "tuning": result["tuning"],
        "notes": result["notes"],
        "rows": [_row(variant, files[variant["name"]], sent) for variant in result["variants"]],
    }


def _row(variant: Json, file: Mapping[str, Any], sent: BundleContent) -> Json:
    # a variant's name is unique in the plan; the report joins rows by file and runtime
    row = {key: value for key, value in variant.items() if key != "path"}
    row |= {key: file[key] for key in _OF_THE_FILE}
    accuracy = row.get("accuracy")
    if accuracy is None:
        return row
    high = sent.groups == HIGH
    reference = top1_correct(sent.logits, sent.labels)
    found = accuracy["top1_high_energy"]
    row["accuracy"] = accuracy | {
        "delta_top1_high_energy": None if found is None or not high.any() else found - float(reference[high].mean())
    }
    if file["role"] != "student":
        row["accuracy"] |= dict.fromkeys(_PARITY)
        row["notes"] = [*row["notes"], _NO_PARITY]
    return row


def write_measurement(measured: Json, folder: Path, result: Path, samples: Path) -> None:
    """Put what :func:`measure` gave in its place, each file whole, and remove ``folder``.

    The result comes last, because it is what others read.
    """
    with atomic_file(samples) as temporary:
        shutil.copyfile(folder / SAMPLES, temporary)
    write_json(result, measured)
    shutil.rmtree(folder, ignore_errors=True)


def lines(measured: Json) -> list[str]:
    """One line per row for the terminal."""
    return [f"{row['name']:20} {row['runtime']:12} {_in_short(row)}" for row in measured["rows"]]


def _in_short(row: Json) -> str:
    if row["error"] is not None:
        return str(row["error"])
    text = f"p50 {row['latency_p50_ms']:.3f} ms, {row['verdict'].replace('_', ' ')}"
    accuracy = row.get("accuracy")
    return text if accuracy is None else f"{text}, top-1 {accuracy['top1']:.2%} of {accuracy['images']}"
