"""The export of a run: what is written into its place, and what the files say of the run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pipeline import runtimes
from pipeline.config import TEACHER, ExportParams, Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import preprocessing
from pipeline.errors import LineageError, SpaceError
from pipeline.export.calibration import select
from pipeline.export.files import make_export
from pipeline.export.int8.quantize import weight_bits
from pipeline.lineage import NetworkRun, Run
from pipeline.store.documents import CalibrationRecord
from pipeline.training.inference import all_logits
from pipeline.training.weights import read_network
from tests.conftest import places_in, write_student, write_untrained

OTHER = Normalisation((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def settings(params: Params) -> ExportParams:
    calibration = params.export.calibration.model_copy(update={"images": 32})
    parity = params.export.parity.model_copy(update={"images": 16, "max_top1_drop": 1.0})
    changes = {"precisions": ["fp32", "int8"], "openvino": False, "calibration": calibration, "parity": parity}
    return params.export.model_copy(update=changes)


@pytest.fixture(scope="module")
def exported(tiny_run_once: Path, tmp_path_factory: pytest.TempPathFactory, settings: ExportParams) -> Run:
    """The teacher, and a student of another normalisation, of which nothing was trained."""
    places = places_in(shutil.copytree(tiny_run_once, tmp_path_factory.mktemp("export") / "run"))
    write_student(Run(places), "small", normalisation=OTHER)
    for network in Run(places, ["small"]).networks:
        make_export(network, settings, lambda *_: None)
    return Run(places, ["small"])


@pytest.fixture
def small(exported: Run) -> NetworkRun:
    return exported.network("small")


@pytest.fixture
def teacher(exported: Run) -> NetworkRun:
    return exported.network(TEACHER)


def written_by(network: NetworkRun) -> set[str]:
    return {path.name for path in network.places.export.iterdir()}


def test_the_manifest_lists_the_files_and_what_they_were_made_from(small: NetworkRun) -> None:
    manifest = small.exported
    names = ["small_fp32.pt2", "small_fp32.onnx", "small_int8.onnx"]
    assert [file.name for file in manifest.files] == names
    assert {(file.role, file.student) for file in manifest.files} == {("student", "small")}
    assert written_by(small) == {*names, "calibration.json", "export.json"}
    assert manifest.lineage == small.made_from
    assert {file.parity.images for file in manifest.files} == {16}


def test_the_teacher_has_one_file_and_no_calibration(teacher: NetworkRun) -> None:
    [file] = teacher.exported.files
    assert (file.name, file.role, file.student) == ("teacher_fp32.onnx", "teacher", None)
    assert written_by(teacher) == {"teacher_fp32.onnx", "export.json"}
    assert teacher.exported.lineage.network == teacher.exported.lineage.teacher == teacher.card.weights_sha256


def test_each_network_takes_its_own_normalisation_and_answers_as_in_torch(exported: Run) -> None:
    seen = []
    for network in exported.networks:
        normalisation = Normalisation.of(network.card)
        seen.append(normalisation)
        images = open_images(exported.places.data, "test", torch.device("cpu"), normalisation)
        expected = all_logits(read_network(network.places.weights, network.card), images).numpy()
        path = network.places.export / f"{network.name}_fp32.onnx"
        file = runtimes.load("onnxruntime", path, precision="fp32")
        found = runtimes.joined(file.run(part.images.numpy()) for part in images.batches(64)).logits
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert all(file.parity.max_abs < 1e-4 for file in network.exported.files if file.precision == "fp32")
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert json.loads(metadata["preprocessing"]) == preprocessing(network.card)
    assert seen[0] == OTHER != seen[1]


def test_a_teacher_that_is_not_exported_has_an_empty_manifest(tiny_run: Run, settings: ExportParams) -> None:
    network, seen = tiny_run.network(TEACHER), []
    make_export(network, settings.model_copy(update={"teacher": False}), lambda *step: seen.append(step))
    assert network.exported.files == []
    assert written_by(network) == {"export.json"}
    assert seen == [(0, 0, "")]


def test_the_record_names_the_calibration_images_and_their_hash(small: NetworkRun, settings: ExportParams) -> None:
    record = CalibrationRecord.read(small.places.export / "calibration.json")
    scores = small.run.energy.columns
    indices = select(scores["label"], scores["energy"], 32, "stratified", 0)
    assert record.indices == indices.tolist()
    assert record.sha256 == hashlib.sha256(indices.tobytes()).hexdigest()
    assert (record.data, record.energy) == (small.made_from.data, small.made_from.energy)
    bits = weight_bits(settings.int8)
    assert (record.selection, record.seed, record.int8) == (
        "stratified",
        0,
        settings.int8.model_dump() | {"weight_bits": bits},
    )


def test_a_file_says_of_what_run_it_is(small: NetworkRun, teacher: NetworkRun) -> None:
    data = small.run.data
    for network, distilled in ((small, {}), (teacher, None)):
        model = onnx.load(network.places.export / f"{network.name}_fp32.onnx")
        found = {entry.key: entry.value for entry in model.metadata_props}
        parameters = {"network": "resnet8", "seed": None, "distill": distilled, "heda": distilled}
        assert json.loads(found.pop("parameters")) == parameters
        assert json.loads(found.pop("class_names")) == list("0123456789")
        assert json.loads(found.pop("preprocessing")) == preprocessing(network.card)
        assert json.loads(found.pop("lineage")) == network.made_from.model_dump()
        assert found == {
            "energy_temperature": "4.0",
            "data": data.source,
            "data_licence": data.licence,
            "role": network.role,
            "precision": "fp32",
        }


def test_a_disk_without_room_is_refused_before_anything_is_written(
    small: NetworkRun, settings: ExportParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in small.places.export.iterdir()}
    monkeypatch.setattr("pipeline.store.space.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(
        SpaceError, match=r"^the exported files of small need .* MB, but .* has .* free; free space there$"
    ):
        make_export(small, settings, lambda *_: None)
    assert {path: path.read_bytes() for path in small.places.export.iterdir()} == before


def test_a_student_of_another_teacher_is_not_exported(tiny_run: Run, settings: ExportParams) -> None:
    write_untrained(Run(tiny_run.places), TEACHER, seed=1)
    network = tiny_run.students[0]
    with pytest.raises(LineageError, match="was made from teacher"):
        make_export(network, settings, lambda *_: None)
    assert not network.places.export.exists()
