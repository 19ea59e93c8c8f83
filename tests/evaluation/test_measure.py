"""What is sent to a device: which images each network gets, and what its files are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import TEACHER, Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import preprocessing
from pipeline.errors import ParamsError
from pipeline.evaluation.measure import MeasurementRequest, bundle_content, make_plan, spread_over
from pipeline.evaluation.runnable import RunnableFile
from pipeline.lineage import NetworkRun, Run
from pipeline.remote import Address, write_bundle
from pipeline.store.documents import ExportedFile
from pipeline.training.inference import all_logits
from pipeline.training.weights import read_network
from tests.conftest import STUDENT, entry, write_student

OTHER = Normalisation((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
IMAGES = 12


@pytest.fixture
def networks(tiny_run: Run) -> list[NetworkRun]:
    """Two students of a normalisation of their own, and a student and the teacher in that of the training images."""
    for name in ("small", "smaller"):
        write_student(Run(tiny_run.places), name, normalisation=OTHER)
    return Run(tiny_run.places, ["small", STUDENT, "smaller"]).networks


def request_for(networks: list[NetworkRun], params: Params, tmp_path: Path, **changes: object) -> MeasurementRequest:
    files = []
    for network in networks:
        name = f"{network.name}_fp32.onnx"
        network.places.export.mkdir(parents=True, exist_ok=True)
        (network.places.export / name).write_text(name)
        listed = ExportedFile(**entry(name, "0" * 64, role=network.role, student=network.student, **changes))
        files.append(RunnableFile(network, listed, "onnxruntime"))
    return MeasurementRequest(
        files=files,
        settings=params.benchmark.model_copy(update={"images": IMAGES, "timing_images": 4}),
        key="params.yaml",
        address=Address(),
        **{name: tmp_path / name for name in ("folder", "result", "samples")},
        timeout_seconds=60.0,
        process_seconds=60.0,
    )


def test_networks_of_one_normalisation_share_their_images_and_each_is_compared_with_itself(networks, params, tmp_path):
    plan = make_plan(request_for(networks, params, tmp_path))
    assert {variant.name: (variant.inputs, variant.expected) for variant in plan.variants} == {
        "small_fp32.onnx-onnxruntime": ("small", "small"),
        "student_fp32.onnx-onnxruntime": (STUDENT, STUDENT),
        "smaller_fp32.onnx-onnxruntime": ("small", "smaller"),
        "teacher_fp32.onnx-onnxruntime": (STUDENT, TEACHER),
    }
    run = networks[0].run
    content = bundle_content(run, plan, networks, IMAGES)
    assert content.inputs.keys() == {"small", STUDENT}
    assert content.expected.keys() == {network.name for network in networks}
    index = spread_over(run.data.counts.test, IMAGES)
    for network in networks:
        images = open_images(run.places.data, "test", torch.device("cpu"), Normalisation.of(network.card))
        [variant] = [each for each in plan.variants if each.expected == network.name]
        pixels = images.centre(torch.from_numpy(index)).numpy()
        np.testing.assert_array_equal(content.inputs[variant.inputs], pixels)
        logits = all_logits(read_network(network.places.weights, network.card), images).numpy()[index]
        found = content.expected[network.name]
        np.testing.assert_allclose(found.logits, logits, atol=1e-5)
        np.testing.assert_array_equal(found.labels, images.labels.numpy()[index])
        np.testing.assert_array_equal(found.groups, run.energy_test.columns["group"][index])


def test_the_card_of_the_bundle_says_what_each_network_takes_and_is_made_from(networks, params, tmp_path):
    run = networks[0].run
    content = bundle_content(run, make_plan(request_for(networks, params, tmp_path)), networks, IMAGES)
    assert content.card["preprocessing"] == {network.name: preprocessing(network.card) for network in networks}
    assert content.card["lineage"]["networks"] == {network.name: network.card.weights_sha256 for network in networks}
    assert content.card["labels"] == run.data.class_names
    assert write_bundle(tmp_path / "first", content) == write_bundle(tmp_path / "second", content)


def test_files_of_a_fixed_batch_are_measured_with_it_alone(networks, params, tmp_path):
    with pytest.raises(ParamsError, match=r"^params\.yaml: export\.batch is 4, but benchmark\.batch_size is 1; make"):
        make_plan(request_for(networks, params, tmp_path, batch=4))
    fixed = make_plan(request_for(networks, params, tmp_path, batch=1))
    assert {(variant.batch, variant.fixed_batch) for variant in fixed.variants} == {(1, True)}
