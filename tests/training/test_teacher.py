"""The teacher of the pipeline."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import CheckpointError, TrainingError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.training.session import Session
from pipeline.training.teacher import make_teacher
from pipeline.training.weights import WEIGHTS, read_network
from tests.conftest import STUDENT, state_hash


@pytest.fixture
def session(tmp_path):
    return Session(torch.device("cpu"), checkpoints=tmp_path / "checkpoints")


@pytest.fixture
def settings(params):
    """Parameters of a teacher that is trained for one epoch: (changes) -> params."""

    def changed(**changes):
        training = params.teacher.training.model_copy(update={"epochs": 1, "batch_size": 256, "precision": "fp32"})
        chosen = {"network": "resnet8", "minimum_top1": 0.0, "training": training} | changes
        return params.model_copy(update={"teacher": params.teacher.model_copy(update=chosen)})

    return changed


def test_a_teacher_that_is_refused_or_cannot_be_written_keeps_its_checkpoint_and_one_that_is_written_does_not(
    tiny_run, settings, session, monkeypatch
):
    before = tiny_run.teacher

    def full(*_):
        raise OSError("no space left")

    with pytest.raises(
        TrainingError, match=r"trained teacher \(1 epochs, .* reaches validation top-1 .*; change teacher"
    ):
        make_teacher(tiny_run, settings(minimum_top1=1.0), session)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("pipeline.training.teacher.write_network", full)
        make_teacher(tiny_run, settings(), session)
    assert list(session.checkpoints.glob("teacher-*/epoch.pt"))
    assert Run(tiny_run.places).teacher == before
    monkeypatch.setattr("pipeline.training.loop.CrossEntropy.__call__", None)  # no step is trained again
    card = make_teacher(tiny_run, settings(), session)
    assert Run(tiny_run.places).teacher == card
    assert (card.role, card.source, card.epochs, card.kept_epoch, card.best_val_epoch) == (
        "teacher",
        "trained",
        1,
        0,
        0,
    )
    assert (card.precision, card.compiled) == ("fp32", False)
    assert card.lineage.model_dump(exclude_none=True) == {"data": tiny_run.data.fingerprint}
    assert not list(session.checkpoints.glob("teacher-*/"))


def test_a_given_checkpoint_is_taken_as_it_is_and_named_by_its_hash(tiny_run, settings, session):
    student = tiny_run.network(STUDENT)
    path, given = student.places.weights / WEIGHTS, read_network(student.places.weights, student.card)
    card = make_teacher(tiny_run, settings(checkpoint=str(path)), session)
    assert (card.source, card.seed, card.epochs, card.best_val_top1) == ("checkpoint", None, None, None)
    assert card.precision is card.compiled is card.kept_epoch is None
    assert card.lineage.checkpoint == sha256_file(path)
    assert state_hash(read_network(tiny_run.places.teacher, card)) == state_hash(given)


@pytest.mark.parametrize(
    ("minimum", "words"),
    [
        (0.01, "is at chance level, so it teaches nothing"),
        (1.0, r"reaches validation top-1 0\.\d+, below teacher.minimum_top1 1"),
    ],
)
def test_a_checkpoint_that_knows_too_little_is_refused_and_the_earlier_teacher_stays(
    tiny_run, settings, session, minimum, words
):
    path, before = tiny_run.network(STUDENT).places.weights / WEIGHTS, tiny_run.teacher
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} {words}.*; check that it was trained on these"):
        make_teacher(tiny_run, settings(checkpoint=str(path), minimum_top1=minimum), session)
    assert Run(tiny_run.places).teacher == before
