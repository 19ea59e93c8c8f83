"""Soft labels stored for the digits at 8 x 8 pixels, by teachers with weights as they are drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models
from pipeline.compute import parts
from pipeline.compute.distributed import World
from pipeline.config import FurtherTeacherParams, Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.views import numbered_views
from pipeline.distillation.student import make_student
from pipeline.energy.groups import energy_score
from pipeline.errors import CheckpointError, DataError, LineageError, SpaceError
from pipeline.lineage import Places, Run
from pipeline.soft_labels import passes
from pipeline.soft_labels.storing import check_soft_labels, make_soft_labels, planned_bytes, planned_views
from pipeline.soft_labels.table import SoftLabels
from pipeline.store.documents import SoftLabelCard
from pipeline.store.paths import CARD
from pipeline.training.session import Session
from pipeline.training.weights import WEIGHTS, read_network
from tests.compute.test_distributed import in_processes
from tests.conftest import STUDENT, write_student
from tests.distillation.helpers import CPU, settings


class Killed(BaseException):
    """Stands for the end of the process."""


def asking(params: Params, /, **changes: object) -> Params:
    """For soft labels of two views with all classes, and ``changes``; the student uses them."""
    labels = params.soft_labels.model_copy(update={"views": 2, "classes": 10} | changes)
    training = params.distill.training.model_copy(update={"epochs": 3, "batch_size": 256, "precision": "fp32"})
    plain = params.heda.model_copy(update={"mix": "none"})
    chosen = settings(params, training=training, view="stored")
    return chosen.model_copy(update={"soft_labels": labels, "heda": plain})


def session(root: Path, **options) -> Session:
    return Session(CPU, checkpoints=root / "checkpoints", **options)


def store(run: Run, params: Params, root: Path, **options) -> dict[str, bytes]:
    """The files that storing them writes."""
    make_soft_labels(run, params, session(root, **options))
    return {path.name: path.read_bytes() for path in sorted(run.places.soft_labels.iterdir())}


def answers(run: Run, index: torch.Tensor, epoch: int):
    _, found = SoftLabels.read(Run(run.places), CPU).of_epoch([index], epoch)
    return next(found)


@pytest.mark.parametrize("view", ["clean", "mixed"])
def test_the_stored_answers_are_those_of_the_teacher_to_the_views_that_a_training_draws(
    tiny_run, params, tmp_path, view
):
    chosen = asking(params, view=view)
    store(tiny_run, chosen, tmp_path)
    labels = SoftLabels.read(tiny_run, CPU)
    own = Normalisation.of(tiny_run.teacher)
    images = open_images(tiny_run.places.data, "train", CPU, own, params.data.augmentation)
    teacher = read_network(tiny_run.places.teacher, tiny_run.teacher).eval()
    index = torch.tensor([11, 3, 400])
    for epoch in (0, 1, 2):
        numbers, found = labels.of_epoch([index], epoch)
        assert numbers[0].tolist() == [epoch % 2] * 3
        [seen] = numbered_views(images, [(index, numbers[0])], labels.seed, mixed=labels.mixed)
        with torch.no_grad():
            logits = teacher(seen.images)
        stored = next(found)
        torch.testing.assert_close(stored.logits, logits.log_softmax(dim=1), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(stored.energy, energy_score(logits, 4.0), rtol=1e-4, atol=1e-4)


def test_classes_that_are_not_kept_share_the_rest_evenly(tiny_run, params, tmp_path):
    index = torch.arange(50)
    store(tiny_run, asking(params), tmp_path)
    whole = answers(tiny_run, index, 0).logits.exp()
    store(tiny_run, asking(params, classes=3), tmp_path)
    part = answers(tiny_run, index, 0).logits.exp()
    torch.testing.assert_close(part.sum(dim=1), torch.ones(50), rtol=0, atol=2e-3)
    kept = whole.argsort(dim=1, descending=True)[:, :3]
    torch.testing.assert_close(part.gather(1, kept), whole.gather(1, kept), rtol=0, atol=1e-3)
    others = whole.argsort(dim=1, descending=True)[:, 3:]
    rest = part.gather(1, others)
    torch.testing.assert_close(rest, rest.mean(dim=1, keepdim=True).expand_as(rest))
    size = sum(path.stat().st_size for path in tiny_run.places.soft_labels.glob("*.npy"))
    assert planned_bytes(asking(params, classes=3), tiny_run.data.counts.train, 10) == pytest.approx(size, rel=0.01)


def test_a_probability_beside_that_all_others_vanish_stays_finite(tiny_run, params, tmp_path, monkeypatch):
    teacher = read_network(tiny_run.places.teacher, tiny_run.teacher)
    with torch.no_grad():
        teacher.fc.weight.mul_(0)
        teacher.fc.bias[:] = torch.tensor([200.0] + 9 * [0.0])
    monkeypatch.setattr("pipeline.soft_labels.storing.read_network", lambda *_: teacher)
    store(tiny_run, asking(params, classes=1), tmp_path)
    found = answers(tiny_run, torch.arange(4), 0).logits
    assert torch.isfinite(found).all()
    assert (found.argmax(dim=1) == 0).all()


def test_images_of_the_subset_have_further_views(tiny_run, params, tmp_path):
    chosen = asking(params, views=1, extra_views=2)
    store(tiny_run, chosen, tmp_path)
    subset = torch.from_numpy(tiny_run.subset.columns["index"].copy())
    others = torch.tensor(sorted({*range(tiny_run.data.counts.train)} - {*subset.tolist()}))
    labels = SoftLabels.read(Run(tiny_run.places), CPU)
    for epoch, number in enumerate((0, 1, 2, 0)):
        assert labels.of_epoch([subset], epoch)[0][0].unique().tolist() == [number]
        assert labels.of_epoch([others], epoch)[0][0].unique().tolist() == [0]
    assert planned_views(chosen, tiny_run.data.counts.train) == tiny_run.data.counts.train + 2 * len(subset)


def test_several_teachers_are_averaged_each_in_its_own_normalisation(tiny_run, params, tmp_path):
    index = torch.arange(30)
    store(tiny_run, asking(params), tmp_path)
    alone = answers(tiny_run, index, 0)
    other = Normalisation([0.2] * 3, [0.7] * 3)
    write_student(tiny_run, "further", 1, other)
    further = FurtherTeacherParams(
        network="resnet8",
        checkpoint=str(tiny_run.network("further").places.weights / WEIGHTS),
        mean=list(other.mean),
        std=list(other.std),
    )
    made = asking(params, teachers=[further])
    store(tiny_run, made, tmp_path)
    both = answers(tiny_run, index, 0)
    images = open_images(tiny_run.places.data, "train", CPU, other, params.data.augmentation)
    labels = SoftLabels.read(Run(tiny_run.places), CPU)
    [seen] = numbered_views(images, [(index, torch.zeros_like(index))], labels.seed, mixed=labels.mixed)
    card = Run(tiny_run.places).network("further").card
    with torch.no_grad():
        second = read_network(tiny_run.network("further").places.weights, card).eval()(seen.images).softmax(dim=1)
    torch.testing.assert_close(both.logits.exp(), (alone.logits.exp() + second) / 2, rtol=0, atol=2e-3)
    assert torch.equal(both.energy, alone.energy), "energies are of the first"


def test_a_killed_run_goes_on_with_the_part_it_was_at_and_writes_the_same_bytes(
    tiny_run, params, tmp_path, monkeypatch
):
    chosen = asking(params)
    whole = store(tiny_run, chosen, tmp_path / "whole")
    monkeypatch.setattr(parts, "BATCHES_PER_PART", 1)
    assert store(tiny_run, chosen, tmp_path / "parts") == whole
    done = []

    def kill(count: int) -> None:
        done.append(count)
        if sum(done) > 600:
            raise Killed

    with pytest.raises(Killed):
        store(tiny_run, chosen, tmp_path, on_images=kill)
    kept = list((tmp_path / "checkpoints").glob("soft_labels-*/*.npz"))
    assert len(kept) == 2
    counts: list[int] = []
    assert store(tiny_run, chosen, tmp_path, on_images=counts.append) == whole
    assert counts[0] == 512, "the finished parts are not computed again"
    assert sum(counts) == planned_views(chosen, tiny_run.data.counts.train)


def test_a_teacher_in_another_runtime_answers_alike(tiny_run, params, tmp_path, monkeypatch):
    chosen = asking(params)
    store(tiny_run, chosen, tmp_path / "torch")
    index = torch.arange(50)
    expected = answers(tiny_run, index, 0)
    monkeypatch.setattr(passes, "_LONG", 0.0)
    monkeypatch.setattr(passes, "_GAIN", 1e9)
    store(tiny_run, chosen, tmp_path / "onnxruntime")
    found = answers(tiny_run, index, 0)
    torch.testing.assert_close(found.logits, expected.logits, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found.energy, expected.energy), "ONNX Runtime has computed it"


def _stored_together(world: World, places: Places, params: Params, root: Path) -> None:
    with patch.object(parts, "BATCHES_PER_PART", 1):
        make_soft_labels(Run(places), params, session(root, world=world))


@pytest.mark.e2e
def test_processes_that_share_the_views_write_the_bytes_of_one(tiny_run, params, tmp_path):
    chosen = asking(params)
    alone = store(tiny_run, chosen, tmp_path / "alone")
    shutil.rmtree(tiny_run.places.soft_labels)
    in_processes(2, tmp_path, _stored_together, tiny_run.places, chosen, tmp_path / "shared")
    assert {path.name: path.read_bytes() for path in tiny_run.places.soft_labels.iterdir()} == alone


def test_without_views_there_is_a_card_alone(tiny_run, params, tmp_path):
    assert list(store(tiny_run, params, tmp_path)) == [CARD]


def test_a_student_trains_on_them_without_its_teacher_and_says_so_in_its_lineage(
    tiny_run, params, tmp_path, monkeypatch
):
    chosen = asking(params)
    store(tiny_run, chosen, tmp_path)

    def read_unusable(*arguments):
        teacher = read_network(*arguments)
        teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher is asked"))
        return teacher

    monkeypatch.setattr("pipeline.distillation.student.weights.read_network", read_unusable)
    card = make_student(tiny_run, STUDENT, chosen, session(tmp_path))
    assert card.lineage.soft_labels == Run(tiny_run.places).soft_labels_sha256


@pytest.mark.parametrize(
    ("changes", "augmentation", "words"),
    [
        ({"classes": 4}, {}, r"was made with kept 10, but params\.yaml asks for 4; run `dvc repro store_soft_labels`$"),
        ({"view": "clean"}, {}, r"made with mixed True, but params\.yaml asks for False"),
        ({}, {"horizontal_flip": True}, r"made with augmentation .*, but params\.yaml asks for .*horizontal_flip"),
    ],
)
def test_soft_labels_of_other_views_are_refused_before_anything_is_trained(
    tiny_run, params, tmp_path, changes, augmentation, words
):
    store(tiny_run, asking(params), tmp_path)
    chosen = asking(params, **changes)
    views = chosen.data.augmentation.model_copy(update=augmentation)
    chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update={"augmentation": views})})
    with pytest.raises(LineageError, match=words):
        make_student(Run(tiny_run.places), STUDENT, chosen, session(tmp_path))


def test_soft_labels_of_another_teacher_or_data_set_are_refused_with_both_hashes(tiny_run, params, tmp_path):
    store(tiny_run, asking(params), tmp_path)
    path = tiny_run.places.soft_labels / CARD
    for name in ("data", "teacher"):
        content = SoftLabelCard.read(path).model_copy(update={name: "f" * 64})
        content.write(path)
        with pytest.raises(LineageError, match=rf"was made from {name} ffffffffffff, but the {name} in use is"):
            check_soft_labels(Run(tiny_run.places), asking(params))
        store(Run(tiny_run.places), asking(params), tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut off", "of another size", "of another type"])
def test_a_damaged_table_is_one_sentence(tiny_run, params, tmp_path, damage):
    store(tiny_run, asking(params), tmp_path)
    path = tiny_run.places.soft_labels / "label.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        labels = np.load(path)
        np.save(path, labels[:3] if damage == "of another size" else labels.astype(np.int64))
    with pytest.raises(DataError, match=r"label\.npy .*; run `dvc repro -f store_soft_labels`$"):
        SoftLabels.read(tiny_run, CPU)


@pytest.mark.parametrize(
    ("name", "value"), [("label", 10), ("label", -1), ("log_probability", np.nan), ("energy", np.inf)]
)
def test_answers_that_no_teacher_can_give_are_one_sentence(tiny_run, params, tmp_path, name, value):
    store(tiny_run, asking(params), tmp_path)
    path = tiny_run.places.soft_labels / f"{name}.npy"
    values = np.load(path)
    values[5] = value
    np.save(path, values)
    answers(tiny_run, torch.arange(5), 0)
    with pytest.raises(DataError, match="soft_labels has answers that no teacher can give; run `dvc repro -f store"):
        answers(tiny_run, torch.arange(10), 0)


def test_more_than_max_gb_is_refused_with_the_size(tiny_run, params, tmp_path):
    with pytest.raises(
        SpaceError, match=r"soft_labels would fill 0\.000\d+ GB .*, more than max_gb 1e-06; lower views"
    ):
        store(tiny_run, asking(params, max_gb=1e-6), tmp_path)


def test_a_disk_that_cannot_hold_them_is_one_sentence_before_anything_is_computed(
    tiny_run, params, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.soft_labels.storing.planned_bytes", lambda *_: 10**18)
    with pytest.raises(SpaceError, match=r"the soft labels that are stored in parts need 1,000,000,000,001\.0 MB"):
        store(tiny_run, asking(params, max_gb=1e10), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_further_teacher_of_other_classes_is_refused_before_anything_is_computed(tiny_run, params, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(models.build("resnet8", 7).state_dict(), path)
    further = FurtherTeacherParams(network="resnet8", checkpoint=str(path))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        store(tiny_run, asking(params, teachers=[further]), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("soft_labels-*/*.npz"))
