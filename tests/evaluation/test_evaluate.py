"""Files evaluated in a runtime that answers with the network's own weights, so that all numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import runtimes
from pipeline.config import TEACHER
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.energy.groups import energy_score
from pipeline.evaluation.evaluate import evaluate_files
from pipeline.evaluation.runnable import RunnableFile
from pipeline.lineage import Run
from pipeline.portable.accuracy import Outputs
from pipeline.portable.files import sha256_file
from pipeline.store.answers import Answers, SplitAnswers
from pipeline.store.documents import ExportedFile
from pipeline.store.json_files import write_json
from pipeline.store.paths import MANIFEST
from pipeline.training.inference import all_logits
from pipeline.training.weights import read_network
from tests.conftest import STUDENT, entry

FILE = "student_fp32.onnx"


class OfNetwork:
    """A runtime that computes a network in torch."""

    def __init__(self, network: torch.nn.Module, error: float) -> None:
        self.network, self.error, self.batches = network, error, []

    def run(self, inputs: np.ndarray) -> Outputs:
        self.batches.append(len(inputs))
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(inputs))
            logits[:, 0] += self.error
        return Outputs(logits.numpy(), energy_score(logits, 4.0).numpy())

    def executed(self) -> runtimes.Executed:
        return runtimes.Executed("fp32", "torch of the test", "1", 1, {})


@pytest.fixture
def student(tiny_run):
    return tiny_run.network(STUDENT)


@pytest.fixture
def evaluated(student, params, monkeypatch):
    """Evaluates one file: (error of its first logit, changes to its entry) -> evaluation, sizes of the batches."""

    def evaluate(error: float = 0.0, **changes: object):
        loaded = OfNetwork(read_network(student.places.weights, student.card), error)
        monkeypatch.setattr(runtimes, "load", lambda name, path, precision: loaded)
        file = RunnableFile(student, ExportedFile(**entry(FILE, "0" * 64, **changes)), "onnxruntime")
        done: list[int] = []
        found = evaluate_files(student, [file], params.evaluate, done.append)
        assert done == [1]
        return found, loaded.batches

    return evaluate


def expected_answers(network, split: str, error: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct, energy and uncertainty of a network for a split, in float64."""
    images = open_images(network.run.places.data, split, torch.device("cpu"), Normalisation.of(network.card))
    logits = all_logits(read_network(network.places.weights, network.card), images).double().clone()
    logits[:, 0] += error
    return (
        (logits.argmax(1) == images.labels).numpy(),
        energy_score(logits, 4.0).numpy(),
        (1 - logits.softmax(1).amax(1)).numpy(),
    )


def assert_answers(found: SplitAnswers, expected: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found.correct, expected[0])
    np.testing.assert_allclose(found.energy, expected[1], atol=1e-4)
    np.testing.assert_allclose(found.uncertainty, expected[2], atol=1e-5)
    assert (found.energy.dtype, found.uncertainty.dtype) == (np.float32, np.float32)


def test_the_network_itself_is_at_parity_with_itself(evaluated, student, tiny_run, params):
    found, batches = evaluated()
    images, groups = tiny_run.data.counts.test, tiny_run.energy_test.columns["group"]
    assert sum(batches) == images + tiny_run.data.counts.val
    assert max(batches) == params.evaluate.batch_size
    (row,) = found.rows
    assert (row.name, row.runtime, row.provider) == (FILE, "onnxruntime", "torch of the test")
    assert (row.precision_executed, row.precision_mismatch, row.shots) == ("fp32", None, None)
    accuracy = row.accuracy
    assert (accuracy.images, accuracy.delta_top1, accuracy.parity_top1_agreement) == (images, 0.0, 1.0)
    assert max(accuracy.parity_max_abs, accuracy.energy_max_abs) < 1e-4
    assert accuracy.top1 == row.routing.energy.curve[-1]
    assert row.routing.wanted_top1 == params.evaluate.on_device_top1
    assert found.lineage == student.made_from
    assert (found.test_images, found.shot_classes) == (images, None)
    assert list(found.group_sizes.values()) == np.bincount(groups, minlength=3).tolist()


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_the_answers_are_those_of_the_runtime_and_of_the_torch_network_to_each_image(evaluated, student, error):
    found, _ = evaluated(error)
    answers = Answers.read(student.places.answers)
    assert list(answers.files) == [(FILE, "onnxruntime")]
    [of_file] = answers.files.values()
    for split in ("val", "test"):
        assert_answers(getattr(of_file, split), expected_answers(student, split, error))
        assert_answers(getattr(answers.network, split), expected_answers(student, split))
    assert found.answers_sha256 == sha256_file(student.places.answers)
    assert of_file.test.correct.mean() == pytest.approx(found.rows[0].accuracy.top1)
    assert np.array_equal(of_file.test.correct, answers.network.test.correct) is (error == 0.0)


def test_what_was_evaluated_is_read_back_as_a_whole(evaluated, student, tiny_run):
    found, _ = evaluated()
    manifest = {"format": 3, "lineage": student.made_from.model_dump(), "opset": 18, "files": [entry(FILE, "0" * 64)]}
    student.places.export.mkdir(parents=True)
    write_json(student.places.export / MANIFEST, manifest)
    again = Run(tiny_run.places).network(STUDENT)
    assert again.evaluation == found
    assert list(again.answers.files) == [(FILE, "onnxruntime")]


def test_a_teacher_without_a_file_has_the_answers_of_its_torch_network(tiny_run, params):
    teacher = tiny_run.network(TEACHER)
    found = evaluate_files(teacher, [], params.evaluate, lambda _: None)
    assert (found.rows, found.lineage.network) == ([], teacher.card.weights_sha256)
    answers = Answers.read(teacher.places.answers)
    assert answers.files == {}
    for split in ("val", "test"):
        assert_answers(getattr(answers.network, split), expected_answers(teacher, split))


def test_another_precision_and_a_fixed_batch_are_told(evaluated):
    found, batches = evaluated(precision="int8", batch=7)
    assert set(batches) == {7}
    assert "fp32" in found.rows[0].precision_mismatch
    assert found.rows[0].accuracy.delta_top1 == 0


def test_a_long_tail_has_its_accuracy_by_shots(evaluated, tiny_run):
    counts = [500, 400, 300, 200, 101, 100, 50, 20, 19, 5]
    tiny_run.data = tiny_run.data.model_copy(update={"train_class_counts": counts})
    found, _ = evaluated()
    assert found.shot_classes == {"many": 5, "medium": 3, "few": 2}
    shots = found.rows[0].shots
    by_shots = np.array([shots.top1_many_shot, shots.top1_medium_shot, shots.top1_few_shot])
    assert found.rows[0].balanced_accuracy == pytest.approx(by_shots @ [0.5, 0.3, 0.2])


def test_a_file_whose_answers_cannot_be_scored_is_named_and_leaves_no_answers(evaluated, student):
    with pytest.raises(
        runtimes.RuntimesError, match=r"student_fp32\.onnx in onnxruntime: .* not finite .*; export it again"
    ):
        evaluated(error=float("nan"))
    assert not student.places.answers.exists()
    assert not student.places.evaluation.exists()
