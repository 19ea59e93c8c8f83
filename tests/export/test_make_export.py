"""The export of a run: what is written into its place, and what the files say of the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pipeline.config import ExportParams, Params
from pipeline.data.store import make_store, preprocessing, read_split
from pipeline.errors import LineageError, SpaceError
from pipeline.export.calibration import select
from pipeline.export.files import make_export
from pipeline.export.int8.quantize import weight_bits
from pipeline.lineage import Places, Run
from pipeline.portable.files import sha256_file
from pipeline.store.documents import CalibrationRecord, Role
from pipeline.store.tables import EnergyLineage, write_table
from pipeline.training.card import card_facts, checkpoint_facts
from pipeline.training.weights import build_network, write_network


@pytest.fixture(scope="module")
def settings(params: Params) -> ExportParams:
    calibration = params.export.calibration.model_copy(update={"images": 32})
    parity = params.export.parity.model_copy(update={"images": 16})
    changes = {"precisions": ["fp32"], "openvino": False, "teacher": False}
    changes |= {"calibration": calibration, "parity": parity}
    return params.export.model_copy(update=changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Run:
    """Digits of 8 pixels, networks that were not trained, and energies by chance."""
    folder = tmp_path_factory.mktemp("run")
    places = Places(
        *(folder / name for name in ("data", "teacher", "energy.parquet")),
        student=folder / "student",
        export=folder / "export",
    )
    data = make_store(places.data, params.data.model_copy(update={"image_size": 8}))

    def write(role: Role, place: Path, lineage: dict[str, str], **facts: object) -> str:
        network = build_network("resnet8", 10, f"{role}.network")
        facts |= card_facts(role, "resnet8", data, lineage) | checkpoint_facts(0.1)
        return write_network(place, network, facts).weights_sha256

    torch.manual_seed(0)
    teacher = write("teacher", places.teacher, {})
    labels = np.asarray(read_split(places.data, "train").labels)
    energy = np.random.default_rng(0).normal(-8, 1, len(labels)).astype(np.float32)
    columns = {
        "index": np.arange(len(labels)),
        "label": labels,
        "energy": energy,
        "confidence": np.full(len(labels), 0.5, np.float32),
        "correct": np.zeros(len(labels), bool),
        "group": np.ones(len(labels), np.int8),
    }
    thresholds = {"temperature": 4.0, "low_threshold": -9.0, "high_threshold": -7.0}
    lineage = EnergyLineage(data=data.fingerprint, teacher=teacher, split="train", **thresholds)
    write_table(places.energy, [columns], lineage)
    taught = {"teacher": teacher, "energy": sha256_file(places.energy), "subset": "0" * 64}
    write("student", places.student, taught, distill={"network": "resnet8"}, heda={"mix": "none"})
    return Run(places)


@pytest.fixture(scope="module")
def exported(run: Run, settings: ExportParams) -> Run:
    make_export(run, settings, lambda *_: None)
    return Run(run.places)


def test_the_manifest_lists_the_files_and_what_they_were_made_from(exported: Run) -> None:
    manifest = exported.exported
    assert [file.name for file in manifest.files] == ["student_fp32.pt2", "student_fp32.onnx"]
    written = {path.name for path in exported.places.export.iterdir()}
    assert written == {file.name for file in manifest.files} | {"calibration.json", "export.json"}
    assert manifest.lineage == exported.made_from
    assert {file.parity.images for file in manifest.files} == {16}


def test_the_record_names_the_calibration_images_and_their_hash(exported: Run, settings: ExportParams) -> None:
    record = CalibrationRecord.read(exported.places.export / "calibration.json")
    scores = exported.energy.columns
    indices = select(scores["label"], scores["energy"], 32, "stratified", 0)
    assert record.indices == indices.tolist()
    assert record.sha256 == hashlib.sha256(indices.tobytes()).hexdigest()
    assert (record.data, record.energy) == (exported.made_from.data, exported.made_from.energy)
    bits = weight_bits(settings.int8)
    assert (record.selection, record.seed, record.int8) == (
        "stratified",
        0,
        settings.int8.model_dump() | {"weight_bits": bits},
    )


def test_a_file_says_of_what_run_it_is(exported: Run) -> None:
    model = onnx.load(exported.places.export / "student_fp32.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found.pop("parameters")) == {
        "network": "resnet8",
        "seed": None,
        "distill": {"network": "resnet8"},
        "heda": {"mix": "none"},
    }
    assert json.loads(found.pop("class_names")) == list("0123456789")
    assert json.loads(found.pop("preprocessing")) == preprocessing(exported.student)
    assert json.loads(found.pop("lineage")) == exported.made_from.model_dump()
    assert found == {
        "energy_temperature": "4.0",
        "data": exported.data.source,
        "data_licence": exported.data.licence,
        "role": "student",
        "precision": "fp32",
    }


def test_a_disk_without_room_is_refused_before_anything_is_written(
    exported: Run, settings: ExportParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in exported.places.export.iterdir()}
    monkeypatch.setattr("pipeline.store.space.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(SpaceError, match=r"^the exported files need .* MB, but .* has .* free; free space there$"):
        make_export(exported, settings, lambda *_: None)
    assert {path: path.read_bytes() for path in exported.places.export.iterdir()} == before


def test_a_student_of_another_teacher_is_not_exported(run: Run, settings: ExportParams, tmp_path: Path) -> None:
    places = run.places
    torch.manual_seed(1)
    facts = card_facts("teacher", "resnet8", run.data, {}) | checkpoint_facts(0.1)
    write_network(tmp_path / "teacher", build_network("resnet8", 10, "teacher.network"), facts)
    mixed = Places(places.data, tmp_path / "teacher", places.energy, student=places.student, export=tmp_path / "export")
    with pytest.raises(LineageError, match="was made from teacher"):
        make_export(Run(mixed), settings, lambda *_: None)
    assert not mixed.export.exists()
