"""Files evaluated in a runtime that answers with the student's own weights, so that all numbers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import runtimes
from pipeline.energy.groups import energy_score
from pipeline.evaluation.evaluate import evaluate_files
from pipeline.evaluation.runnable import RunnableFile
from pipeline.portable.accuracy import Outputs
from pipeline.store.documents import ExportedFile
from pipeline.training.weights import read_network
from tests.report.conftest import export_manifest


class OfStudent:
    """A runtime that computes the student in torch."""

    def __init__(self, network: torch.nn.Module, error: float) -> None:
        self.network, self.error, self.batches = network, error, []

    def run(self, inputs: np.ndarray) -> Outputs:
        self.batches.append(len(inputs))
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(inputs)) + self.error
        return Outputs(logits.numpy(), energy_score(logits, 4.0).numpy())

    def executed(self) -> runtimes.Executed:
        return runtimes.Executed("fp32", "torch of the test", "1", 1, {})


@pytest.fixture
def evaluated(tiny_run, params, monkeypatch):
    """Evaluates one file: (error of its logits, changes to its entry) -> evaluation, sizes of the batches."""

    def evaluate(error: float = 0.0, **changes: object):
        loaded = OfStudent(read_network(tiny_run.places.student, tiny_run.student), error)
        monkeypatch.setattr(runtimes, "load", lambda name, path, precision: loaded)
        listed: ExportedFile = export_manifest().files[0].model_copy(update=changes)
        file = RunnableFile(listed, Path("student_fp32.onnx"), "onnxruntime")
        done: list[int] = []
        found = evaluate_files(tiny_run, [file], params.evaluate, done.append)
        assert done == [1]
        return found, loaded.batches

    return evaluate


def test_the_student_itself_is_at_parity_with_itself(evaluated, tiny_run, params):
    found, batches = evaluated()
    images, groups = tiny_run.data.counts.test, tiny_run.energy_test.columns["group"]
    assert sum(batches) == images + tiny_run.data.counts.val
    assert max(batches) == params.evaluate.batch_size
    (row,) = found.rows
    assert (row.name, row.runtime, row.provider) == ("student_fp32.onnx", "onnxruntime", "torch of the test")
    assert (row.precision_executed, row.precision_mismatch, row.shots) == ("fp32", None, None)
    accuracy = row.accuracy
    assert (accuracy.images, accuracy.delta_top1, accuracy.parity_top1_agreement) == (images, 0.0, 1.0)
    assert max(accuracy.parity_max_abs, accuracy.energy_max_abs) < 1e-4
    assert accuracy.top1 == row.routing.energy.curve[-1]
    assert row.routing.wanted_top1 == params.evaluate.on_device_top1
    assert found.lineage == tiny_run.made_from
    assert (found.test_images, found.shot_classes) == (images, None)
    assert list(found.group_sizes.values()) == np.bincount(groups, minlength=3).tolist()


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


def test_a_file_whose_answers_cannot_be_scored_is_named(evaluated):
    with pytest.raises(
        runtimes.RuntimesError, match=r"^student_fp32\.onnx in onnxruntime: .* not finite .*; export it again"
    ):
        evaluated(error=float("nan"))
