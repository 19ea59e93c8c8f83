"""Students as artifacts of a run: their weights, their cards, and what a stopped training leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.distillation.student import ScoredImages, check_networks, make_student, trained_student
from pipeline.energy.subset import make_subset
from pipeline.errors import BusyError, CheckpointError, ParamsError
from pipeline.lineage import Run
from pipeline.store.tables import write_table
from pipeline.training.inference import predict
from pipeline.training.session import Session
from pipeline.training.weights import WEIGHTS, read_network
from tests.conftest import STUDENT, loss_params
from tests.distillation.helpers import CPU, distilling, settings


@pytest.fixture
def quick(params) -> Params:
    training = params.distill.training.model_copy(update={"epochs": 2, "batch_size": 256, "precision": "fp32"})
    return settings(params, training=training)


def session(root: Path, **options) -> Session:
    return Session(CPU, checkpoints=root / "checkpoints", **options)


def files(run: Run) -> dict[str, bytes]:
    folder = run.network(STUDENT).places.weights
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_parameters_write_the_same_bytes_and_another_seed_others(tiny_run, quick, tmp_path):
    written = []
    for params in (quick, quick, quick.model_copy(update={"seed": 1})):
        torch.rand(7)  # what was drawn before has no part in it
        make_student(Run(tiny_run.places), STUDENT, params, session(tmp_path))
        written.append(files(tiny_run))
    assert written[0] == written[1]
    assert list(written[0]) == ["card.json", WEIGHTS]
    assert all(written[0][name] != written[2][name] for name in written[0])


def test_the_card_tells_how_and_from_what_the_student_was_made(tiny_run, quick, tmp_path):
    records = []
    card = make_student(tiny_run, STUDENT, quick, session(tmp_path, on_epoch=records.append))
    run = Run(tiny_run.places)
    assert run.network(STUDENT).card == card
    assert (card.role, card.source, card.seed, card.epochs) == ("student", "trained", quick.seed, 2)
    assert [record.epoch for record in records] == [0, 1]
    assert (card.val_top1, card.kept_epoch) == (records[-1].val_top1, 1)
    assert (card.precision, card.compiled) == ("fp32", False)
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
    records = []
    card = make_student(
        tiny_run, STUDENT, distilling(quick, training=training), session(tmp_path, on_epoch=records.append)
    )
    tops = [record.val_top1 for record in records]
    assert card.kept_epoch == card.best_val_epoch == tops.index(max(tops))
    assert card.val_top1 == card.best_val_top1 == max(tops)
    validation = open_images(tiny_run.places.data, "val", CPU, Normalisation.of(card))
    assert predict(read_network(tiny_run.network(STUDENT).places.weights, card), validation).top1 == card.val_top1


def test_a_stopped_training_goes_on_to_the_same_bytes(tiny_run, quick, tmp_path):
    make_student(tiny_run, STUDENT, quick, session(tmp_path / "whole"))
    expected = files(tiny_run)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_student(Run(tiny_run.places), STUDENT, quick, session(tmp_path, on_epoch=stop))
    assert list((tmp_path / "checkpoints").glob("student-*/"))
    make_student(Run(tiny_run.places), STUDENT, quick, session(tmp_path))
    assert files(tiny_run) == expected


def test_without_mixing_the_other_parameters_of_heda_are_no_part_of_the_student(tiny_run, quick, tmp_path):
    plain = quick.model_copy(update={"heda": quick.heda.model_copy(update={"mix": "none"})})
    other = plain.model_copy(update={"heda": plain.heda.model_copy(update={"kd_weight": 7.0})})
    card = make_student(tiny_run, STUDENT, plain, session(tmp_path, keep=True))
    [stored] = (tmp_path / "checkpoints").glob("student-*/epoch.pt")
    assert make_student(Run(tiny_run.places), STUDENT, other, session(tmp_path, keep=True)) == card
    assert list((tmp_path / "checkpoints").glob("student-*/epoch.pt")) == [stored], "it was found again"
    assert card.heda == {"mix": "none"}


def test_initial_weights_are_where_the_student_starts_and_part_of_its_lineage(tiny_run, quick, tmp_path):
    given = tiny_run.places.teacher / WEIGHTS
    still = quick.distill.training.model_copy(update={"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0})
    chosen = distilling(quick, initial_weights=str(given), training=still)
    card = make_student(tiny_run, STUDENT, chosen, session(tmp_path))
    student = read_network(tiny_run.network(STUDENT).places.weights, card)
    teacher = read_network(tiny_run.places.teacher, tiny_run.teacher)
    torch.testing.assert_close(student.fc.weight, teacher.fc.weight)
    assert card.lineage.initial_weights == tiny_run.teacher.weights_sha256


def continuous(params: Params, of: str) -> Params:
    temperatures = params.distill.temperatures.model_copy(update={"mode": "continuous", "of": of})
    return distilling(params, temperatures=temperatures)


def test_continuous_temperatures_follow_the_column_of_the_energy_table_that_is_asked_for(tiny_run, quick, tmp_path):
    columns, made = tiny_run.energy.columns, {}
    for of, stored in (("energy", -columns["energy"]), ("max_logit", columns["max_logit"])):
        params = continuous(quick, of)
        scored = ScoredImages.of(tiny_run, params, CPU, Normalisation.of(tiny_run.teacher))
        expected = torch.from_numpy(4 * stored / stored.mean()).clamp(2, 6)
        torch.testing.assert_close(scored.temperatures(params.distill, seed=0).stored, expected)
        assert len(expected.unique()) > 100
        make_student(tiny_run, STUDENT, params, session(tmp_path))
        made[of] = files(tiny_run)[WEIGHTS]
    make_student(tiny_run, STUDENT, quick, session(tmp_path))
    assert len({*made.values(), files(tiny_run)[WEIGHTS]}) == 3


def test_energies_that_temperatures_cannot_follow_are_told_before_anything_is_trained(tiny_run, quick, tmp_path):
    table = tiny_run.energy
    write_table(tiny_run.places.energy, [{**table.columns, "energy": -table.columns["energy"]}], table.lineage)
    run, before, epochs = Run(tiny_run.places), files(tiny_run), []
    make_subset(run, quick.heda, quick.seed)
    words = (
        r"^params\.yaml: distill\.temperatures\.of is energy, .* mean certainty of -[78]\.\d+ .*; set it to max_logit"
    )
    with pytest.raises(ParamsError, match=words):
        make_student(run, STUDENT, continuous(quick, "energy"), session(tmp_path, on_epoch=epochs.append))
    assert files(tiny_run) == before
    assert not epochs


def test_a_network_that_cannot_take_the_images_is_refused_before_anything_is_trained(tiny_run, quick, tmp_path):
    before = files(tiny_run)
    with pytest.raises(ParamsError, match=r"distill\.network: There is no network vgg8x"):
        make_student(tiny_run, STUDENT, distilling(quick, network="vgg8x"), session(tmp_path))
    assert files(tiny_run) == before


def with_small(params: Params, **changes) -> Params:
    """The parameters with a second student, ``small``, that differs by ``changes``."""
    small = params.distill.model_copy(update=changes)
    return params.model_copy(update={"students": params.students | {"small": small}})


def test_each_student_is_made_of_its_own_parameters_in_its_own_place(tiny_run, quick, tmp_path):
    before, said = files(tiny_run), []
    params = with_small(quick, network="resnet14", mean=[0.5] * 3, std=[0.25] * 3, loss=loss_params("dkd"))
    card = make_student(tiny_run, "small", params, session(tmp_path, tell=said.append))
    run = Run(tiny_run.places)
    assert run.network("small").card == card
    assert (card.role, card.network, card.mean) == ("student", "resnet14", [0.5] * 3)
    assert card.distill == params.students["small"].model_dump(mode="json")
    assert files(tiny_run) == before
    assert said[0] == "normalisation of small: mean (0.5, 0.5, 0.5), std (0.25, 0.25, 0.25)"
    assert {path.name for path in run.places.students.iterdir()} == {STUDENT, "small"}


def test_a_student_that_differs_by_its_name_alone_has_the_same_weights(tiny_run, quick, tmp_path):
    params = with_small(quick)
    cards = [make_student(tiny_run, name, params, session(tmp_path)) for name in (STUDENT, "small")]
    assert cards[0] == cards[1]


def test_students_are_made_at_the_same_time_and_each_only_once(tiny_run, quick, tmp_path):
    params, kept = with_small(quick), session(tmp_path, keep=True)
    with trained_student(tiny_run, STUDENT, params, kept):
        with trained_student(tiny_run, "small", params, kept) as small:
            assert small.checkpoint.folder.name.startswith("student-small-")
        with (
            pytest.raises(BusyError, match="is already training this student"),
            trained_student(tiny_run, STUDENT, params, kept),
        ):
            pass
    stored = sorted(path.parent.name[:-17] for path in kept.checkpoints.glob("*/finished"))
    assert stored == ["student-small", "student-student"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "vgg8x"}, r"students\.small\.network: There is no network vgg8x"),
        (
            {"initial_weights": "none.pth"},
            r"^params\.yaml: students\.small\.initial_weights: checkpoint none\.pth does not",
        ),
        (
            {"loss": loss_params("at", student_stages=["layer9"], teacher_stages=["layer9"])},
            r"^params\.yaml: students\.small\.loss: ResNet has no submodule \"layer9\"",
        ),
    ],
)
def test_every_student_is_built_before_anything_is_trained(tiny_run, quick, changes, words):
    data = tiny_run.data
    check_networks(with_small(quick, loss=loss_params("at")), len(data.class_names), data.image)
    with pytest.raises((ParamsError, CheckpointError), match=words):
        check_networks(with_small(quick, **changes), len(data.class_names), data.image)
