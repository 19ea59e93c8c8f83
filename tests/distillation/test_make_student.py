"""The student as an artifact of a run: its weights, its card, and what a stopped training leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.distillation.student import make_student
from pipeline.errors import ParamsError
from pipeline.lineage import Run
from pipeline.training.inference import predict
from pipeline.training.session import Session
from pipeline.training.weights import WEIGHTS, read_network
from tests.distillation.helpers import CPU, settings


@pytest.fixture
def quick(params) -> Params:
    training = params.distill.training.model_copy(update={"epochs": 2, "batch_size": 256, "precision": "fp32"})
    return settings(params, training=training)


def session(root: Path, **options) -> Session:
    return Session(CPU, checkpoints=root / "checkpoints", **options)


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.places.student.iterdir())}


def test_the_same_parameters_write_the_same_bytes_and_another_seed_others(tiny_run, quick, tmp_path):
    written = []
    for params in (quick, quick, quick.model_copy(update={"seed": 1})):
        torch.rand(7)  # what was drawn before has no part in it
        make_student(Run(tiny_run.places), params, session(tmp_path))
        written.append(files(tiny_run))
    assert written[0] == written[1]
    assert list(written[0]) == ["card.json", WEIGHTS]
    assert all(written[0][name] != written[2][name] for name in written[0])


def test_the_card_tells_how_and_from_what_the_student_was_made(tiny_run, quick, tmp_path):
    records = []
    card = make_student(tiny_run, quick, session(tmp_path, on_epoch=records.append))
    run = Run(tiny_run.places)
    assert run.student == card
    assert (card.role, card.source, card.seed, card.epochs) == ("student", "trained", quick.seed, 2)
    assert [record.epoch for record in records] == [0, 1]
    assert (card.val_top1, card.kept_epoch, card.precision) == (records[-1].val_top1, 1, "fp32")
    assert card.best_val_top1 == max(record.val_top1 for record in records) == records[card.best_val_epoch].val_top1
    assert card.distill == quick.distill.model_dump(mode="json")
    assert card.heda == quick.heda.model_dump(mode="json")
    assert card.lineage.model_dump(exclude_none=True) == {
        "data": run.data.fingerprint,
        "teacher": run.teacher.weights_sha256,
        "energy": run.energy_sha256,
        "subset": run.subset_sha256,
    }
    assert not list((tmp_path / "checkpoints").glob("student-*/*")), (
        "the crash checkpoint goes once the student is there"
    )


def test_the_card_tells_which_epoch_was_kept(tiny_run, quick, tmp_path):
    training = quick.distill.training.model_copy(update={"keep": "best", "epochs": 3})
    chosen = quick.model_copy(update={"distill": quick.distill.model_copy(update={"training": training})})
    records = []
    card = make_student(tiny_run, chosen, session(tmp_path, on_epoch=records.append))
    tops = [record.val_top1 for record in records]
    assert card.kept_epoch == card.best_val_epoch == tops.index(max(tops))
    assert card.val_top1 == card.best_val_top1 == max(tops)
    validation = open_images(tiny_run.places.data, "val", CPU, Normalisation.of(tiny_run.student))
    assert predict(read_network(tiny_run.places.student, card), validation).top1 == card.val_top1


def test_a_stopped_training_goes_on_to_the_same_bytes(tiny_run, quick, tmp_path):
    make_student(tiny_run, quick, session(tmp_path / "whole"))
    expected = files(tiny_run)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_student(Run(tiny_run.places), quick, session(tmp_path, on_epoch=stop))
    assert list((tmp_path / "checkpoints").glob("student-*/"))
    make_student(Run(tiny_run.places), quick, session(tmp_path))
    assert files(tiny_run) == expected


def test_without_mixing_the_other_parameters_of_heda_are_no_part_of_the_student(tiny_run, quick, tmp_path):
    plain = quick.model_copy(update={"heda": quick.heda.model_copy(update={"mix": "none"})})
    other = plain.model_copy(update={"heda": plain.heda.model_copy(update={"kd_weight": 7.0})})
    card = make_student(tiny_run, plain, session(tmp_path, keep=True))
    [stored] = (tmp_path / "checkpoints").glob("student-*/epoch.pt")
    assert make_student(Run(tiny_run.places), other, session(tmp_path, keep=True)) == card
    assert list((tmp_path / "checkpoints").glob("student-*/epoch.pt")) == [stored], "it was found again"
    assert card.heda == {"mix": "none"}


def test_initial_weights_are_where_the_student_starts_and_part_of_its_lineage(tiny_run, quick, tmp_path):
    given = tiny_run.places.teacher / WEIGHTS
    still = quick.distill.training.model_copy(update={"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0})
    distill = quick.distill.model_copy(update={"initial_weights": str(given), "training": still})
    card = make_student(tiny_run, quick.model_copy(update={"distill": distill}), session(tmp_path))
    student = read_network(tiny_run.places.student, card)
    teacher = read_network(tiny_run.places.teacher, tiny_run.teacher)
    torch.testing.assert_close(student.fc.weight, teacher.fc.weight)
    assert card.lineage.initial_weights == tiny_run.teacher.weights_sha256


def test_a_network_that_cannot_take_the_images_is_refused_before_anything_is_trained(tiny_run, quick, tmp_path):
    before = files(tiny_run)
    distill = quick.distill.model_copy(update={"network": "vgg8x"})
    with pytest.raises(ParamsError, match=r"distill\.network: There is no network vgg8x"):
        make_student(tiny_run, quick.model_copy(update={"distill": distill}), session(tmp_path))
    assert files(tiny_run) == before
