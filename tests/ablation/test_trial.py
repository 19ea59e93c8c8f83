"""One trial of a study, with a training that is only pretended where it does not matter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

from pipeline.ablation.study import Trial, load_study
from pipeline.ablation.trial import (
    TrialResult,
    execute,
    has_inputs,
    make_data,
    make_inputs,
    places_of,
    read_result,
    result_path,
    take_inputs,
)
from pipeline.config import Params
from pipeline.data.store import read_split
from pipeline.distillation.student import ScoredImages
from pipeline.errors import DataError, LineageError
from pipeline.lineage import Run
from pipeline.store.json_files import read_json, write_json
from pipeline.store.tables import write_table
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import TrainingState
from pipeline.training.session import Session
from tests.ablation.conftest import QUICK, tiny_study
from tests.conftest import ROOT, loss_params


@dataclass
class FakeTraining:
    """Stands for the training of a student: after epoch i it answers the i-th of ``answers`` to every image."""

    answers: tuple[int, ...] = (0,)
    val_top1: tuple[float, ...] = (0.5,)
    scored: ScoredImages | None = None
    validation: torch.Tensor | None = None
    records: list[EpochRecord] = field(default_factory=list)

    def __call__(self, student, teacher, scored, validation, params, session, checkpoint, name, block):
        self.scored, self.validation = scored, validation.labels
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for epoch, (answer, top1) in enumerate(zip(self.answers, self.val_top1, strict=True)):
            with torch.no_grad():
                student.fc.weight.zero_()
                student.fc.bias.copy_(torch.eye(10)[answer])
            self.records.append(EpochRecord(epoch, 1.0, top1, 0.1, 1.0))
            last = epoch == len(self.answers) - 1
            checkpoint.offer(TrainingState(student, optimizer), self.records, last=last, best=student)
            yield self.records[-1]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Params, Path]:
    """Parameters of a study of a hundred digits, and the folder with its teacher and energies."""
    root = tmp_path_factory.mktemp("taught")
    study = tiny_study()
    study["params"]["data"]["max_images_per_class"] = 10
    study["params"]["teacher"]["training"] = QUICK | {"epochs": 1}
    with (root / "taught.yaml").open("w") as file:
        YAML().dump(study, file)
    params = load_study(root / "taught.yaml", ROOT / "params.yaml").arms["KD"]
    make_data(params, root)
    make_inputs(params, root)
    return params, root


@pytest.fixture
def run_with(taught, monkeypatch) -> Callable[..., TrialResult]:
    """Do a trial whose training is only pretended: (training, changes to heda, changes to energy) -> result."""
    base, root = taught

    def run(training, heda=None, energy=None, seed=0):
        blocks = {
            "heda": base.heda.model_copy(update=heda or {}),
            "energy": base.energy.model_copy(update=energy or {}),
        }
        chosen = Trial("KD", seed, base.model_copy(update=blocks))
        make_inputs(chosen.params, root)
        monkeypatch.setattr("pipeline.distillation.student.train_student", training)
        result_path(chosen, root).unlink(missing_ok=True)
        execute(chosen, root)
        return read_result(chosen, root)

    return run


def labels_of(taught, split: str):
    params, root = taught
    return read_split(places_of(params, root).data, split).labels


def energies_of(taught) -> dict[str, Any]:
    run = Run(places_of(*taught))
    return {"train": run.energy.columns["energy"], "test": run.energy_test.columns["energy"]}


def test_a_study_validates_on_the_validation_split_and_is_measured_on_the_test_split(taught, run_with):
    training = FakeTraining(answers=(3,))
    result = run_with(training)
    np.testing.assert_array_equal(training.validation, labels_of(taught, "val"))
    np.testing.assert_array_equal(training.scored.images.labels, labels_of(taught, "train"))
    assert result.last.top1 == np.mean(labels_of(taught, "test") == 3)
    assert result.last.top1 != np.mean(labels_of(taught, "val") == 3)


def test_the_last_and_the_best_epoch_are_measured_each_with_its_own_weights(taught, run_with):
    labels = labels_of(taught, "test")
    shares = np.bincount(labels) / len(labels)
    most, least = int(shares.argmax()), int(shares.argmin())
    assert shares[most] != shares[least]
    result = run_with(FakeTraining(answers=(5, most, least), val_top1=(0.1, 0.9, 0.2)))
    last, best = ((part.epoch, part.val_top1, part.top1) for part in (result.last, result.best_validation))
    assert last == (2, 0.2, shares[least])
    assert best == (1, 0.9, shares[most])
    assert result.val_top1 == [0.1, 0.9, 0.2]


def test_best_weights_are_those_of_the_first_best_epoch_also_after_a_restart(tmp_path):
    session = Session(torch.device("cpu"), checkpoints=tmp_path)
    records = [EpochRecord(epoch, 0.0, top1, 0.1, 1.0) for epoch, top1 in enumerate([0.5, 0.8, 0.8, 0.6])]

    def train(network, checkpoint, until):
        state = TrainingState(network, torch.optim.SGD(network.parameters(), lr=0.1))
        for epoch in range(len(checkpoint.restore(state)), until):
            nn.init.constant_(network.weight, epoch)
            checkpoint.offer(state, records[: epoch + 1], last=False, best=network)

    network = nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt), session.checkpoint("student", {}) as checkpoint:
        train(network, checkpoint, until=3)
        raise KeyboardInterrupt
    network = nn.Linear(1, 1)
    with session.checkpoint("student", {}) as checkpoint:
        train(network, checkpoint, until=4)
        assert network.weight.item() == 3.0
        assert checkpoint.load_best(network) == 1
        assert network.weight.item() == 1.0


def test_the_best_epoch_of_a_student_that_was_trained_with_connectors_is_measured(taught):
    params, root = taught
    training = params.distill.training.model_copy(update={"epochs": 3})
    distill = params.distill.model_copy(update={"loss": loss_params("fitnet"), "training": training})
    trial = Trial("fitnet", 0, params.model_copy(update={"distill": distill}))
    execute(trial, root)
    result = read_result(trial, root)
    best = result.best_validation
    assert best.val_top1 == max(result.val_top1) == result.val_top1[best.epoch]
    assert (best == result.last) == (best.epoch == 2)


def test_an_arm_that_keeps_the_best_epoch_is_measured_at_both_too(taught):
    params, root = taught
    results = []
    for keep in ("last", "best"):
        training = params.distill.training.model_copy(update={"epochs": 3, "keep": keep})
        distill = params.distill.model_copy(update={"training": training})
        trial = Trial("KD", 0, params.model_copy(update={"distill": distill}))
        execute(trial, root)
        results.append(read_result(trial, root).model_copy(update={"seconds_per_epoch": 0.0}))
    assert results[0] == results[1]
    assert results[0].precision == "fp32"


@pytest.mark.parametrize(("kind", "fraction"), [("high_energy", 0.4), ("high_energy", 0.25), ("low_energy", 0.3)])
def test_the_study_mixes_the_subset_and_share_of_its_arm(taught, run_with, kind, fraction):
    energy = energies_of(taught)["train"]
    training, count = FakeTraining(), int(len(energy) * fraction)
    run_with(training, heda={"subset": kind, "fraction": fraction})
    order = np.argsort(energy, kind="stable")
    expected = order[-count:] if kind == "high_energy" else order[:count]
    assert training.scored.subset.tolist() == sorted(expected.tolist())


def test_the_random_subset_of_a_study_follows_the_seed_of_the_student(run_with):
    subsets = []
    for seed in (0, 0, 1):
        training = FakeTraining()
        run_with(training, heda={"subset": "random"}, seed=seed)
        subsets.append(training.scored.subset.tolist())
    assert subsets[0] == subsets[1] != subsets[2]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.35), (0.35, 0.0)])
def test_the_energy_groups_of_a_study_have_the_shares_of_its_arm(taught, run_with, low, high):
    train, test = energies_of(taught).values()
    training = FakeTraining(answers=(3,))
    result = run_with(training, energy={"low_fraction": low, "high_fraction": high})
    ranks, count = np.argsort(np.argsort(train, kind="stable")), len(train)
    expected = np.where(ranks < int(count * low), 0, np.where(ranks >= count - int(count * high), 2, 1))
    np.testing.assert_array_equal(training.scored.groups.codes, expected)
    in_low = test < np.sort(train)[int(count * low)]
    assert result.last.top1_low_energy == np.mean(labels_of(taught, "test")[in_low] == 3)


def test_arms_that_differ_have_results_of_their_own(make_study, tmp_path):
    study = make_study()
    assert len({result_path(trial, tmp_path) for trial in study.trials()}) == 4
    renamed = make_study(arms={"KD": {}, "another name": {"heda": {"mix": "cutmix", "subset": "random"}}})
    assert [result_path(trial, tmp_path) for trial in renamed.trials()] == [
        result_path(trial, tmp_path) for trial in study.trials()
    ]


def test_a_study_can_take_the_teacher_of_a_run_and_keeps_it(tiny_run, params, tmp_path):
    teacher, root = tiny_run.teacher.weights_sha256, tmp_path / "root"
    assert not has_inputs(params, root)
    take_inputs(params, root, tiny_run)
    assert has_inputs(params, root)
    shutil.rmtree(tiny_run.places.teacher)
    take_inputs(params, root, tiny_run)
    taken = Run(places_of(params, root))
    assert taken.teacher.weights_sha256 == teacher
    np.testing.assert_array_equal(taken.energy.columns["energy"], tiny_run.energy.columns["energy"])
    assert taken.energy_test.columns


def test_a_given_checkpoint_counts_by_its_content(make_study, tmp_path):
    given = tmp_path / "given.safetensors"
    arms = {
        "KD": {},
        "teacher": {"teacher": {"checkpoint": str(given)}},
        "student": {"distill": {"initial_weights": str(given)}},
    }
    study, paths = make_study(arms=arms, seeds=[0]), []
    for content in (None, b"a", b"b"):
        if content is not None:
            given.write_bytes(content)
        paths.append([result_path(trial, tmp_path) for trial in study.trials()])
    assert len({path for arm in paths for path in arm}) == 1 + 2 * 3


def test_a_result_of_another_teacher_is_refused_with_both_hashes(taught, run_with):
    params, root = taught
    result, path = run_with(FakeTraining()), result_path(Trial("KD", 0, params), root)
    written = read_json(path)
    assert TrialResult.read(path) == result
    teacher = result.lineage["teacher"][:12]
    write_json(path, written | {"lineage": result.lineage | {"teacher": "f" * 64}})
    with pytest.raises(
        LineageError, match=f"made from teacher f{{12}}, but the teacher in use is {teacher}; remove it"
    ):
        read_result(Trial("KD", 0, params), root)
    del written["last"]["top1"]
    write_json(path, written)
    with pytest.raises(
        DataError, match=r"is not what it should be \(last.top1 is missing.*; remove it and run the study"
    ):
        read_result(Trial("KD", 0, params), root)


@pytest.mark.parametrize(("lost", "words"), [("correct", "no column correct"), (None, "does not list the images 0 to")])
def test_scores_that_are_damaged_are_refused(taught, lost, words):
    params, root = taught
    path = places_of(params, root).energy
    whole, table = path.read_bytes(), Run(places_of(params, root)).energy
    columns = {name: values if lost else values[:1] for name, values in table.columns.items() if name != lost}
    write_table(path, [columns], table.lineage)
    try:
        with pytest.raises(DataError, match=words):
            execute(Trial("KD", 5, params), root)
    finally:
        path.write_bytes(whole)
