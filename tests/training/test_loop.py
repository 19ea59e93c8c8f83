from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compute.seeds import CLEAN, COMPANIONS, MIXING, PER_PROCESS, RANDOM_GROUPS, STRONG, SUBSET, stream_seed
from pipeline.data.loader import Batch, Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.errors import BusyError, TrainingError
from pipeline.training import checkpoint as checkpoints
from pipeline.training import loop
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.inference import predict
from pipeline.training.optimizer import learning_rate
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from tests.conftest import state_hash
from tests.training.helpers import CPU, STEPS, Killed, killed_after, network, run, settings


def test_training_learns_and_every_epoch_is_recorded_and_shown_before_the_next(params):
    seen = []
    session = Session(CPU, on_step=lambda: seen.append("step"), on_epoch=seen.append)
    records = run(params, network(1), settings(params, epochs=12), session=session)
    assert [record.epoch for record in records] == list(range(12))
    assert seen == [shown for record in records for shown in (*["step"] * STEPS, record)]
    assert records[-1].train_loss < 0.6 * records[0].train_loss


def test_the_seed_decides_the_weights(params):
    hashes = []
    for seed in (0, 0, 1):
        student = network(1)
        run(params, student, seed=seed)
        hashes.append(state_hash(student))
    assert hashes[0] == hashes[1] != hashes[2], "dropout draws from the seed"


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_a_run_that_was_stopped_goes_on_to_bit_identical_weights(params, tmp_path, stop_after):
    undisturbed = network(1)
    expected = run(params, undisturbed)

    with pytest.raises(Killed):
        run(params, network(1), checkpoint=Checkpoint(tmp_path), session=killed_after(stop_after))
    resumed = network(7)
    # weights of unfinished first epochs are not kept: such a run starts again
    if stop_after < STEPS:
        resumed = network(1)
    seen = []
    session = Session(CPU, on_step=lambda: seen.append(1), on_epoch=seen.append)
    assert run(params, resumed, checkpoint=Checkpoint(tmp_path), session=session) == expected
    assert seen == [shown for record in expected for shown in (*[1] * STEPS, record)], "finished epochs too"
    assert state_hash(resumed) == state_hash(undisturbed)


def test_a_loss_that_is_not_finite_names_step_rate_and_samples(params):
    def objective(student: nn.Module, batch: Batch, epoch: int) -> Tensor:
        loss = F.cross_entropy(student(batch.images), batch.labels)
        return loss * float("nan") if epoch == 1 and int(batch.index[0]) == 8 else loss

    with pytest.raises(TrainingError, match=r"epoch 1 step 1 \(learning rate 0\.0\d+, training samples 8, 9, 10"):
        run(params, network(1), objective=objective)


def test_weights_that_the_last_step_made_infinite_are_named(params):
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss: Tensor) -> Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return gradient * float("inf")

    def objective(student: nn.Module, batch: Batch, epoch: int) -> Tensor:
        loss = F.cross_entropy(student(batch.images), batch.labels)
        return Overflow.apply(loss) if epoch == 1 and int(batch.index[0]) == 8 * (STEPS - 1) else loss

    words = (
        r"^hot: the tensor 0\.weight was not finite at epoch 1 step 2 \(.*samples 16, 17.*; lower "
        r"students\.hot\.training\.learning_rate or lengthen students\.hot\.training\.warmup_epochs in params\.yaml$"
    )
    with pytest.raises(TrainingError, match=words):
        run(params, network(1), objective=objective)


def collapsed_after(epochs: int):
    """Predictions that are one class from an epoch on."""
    validated = iter(range(1000))

    def validate(network: nn.Module) -> Predictions:
        return Predictions(torch.tensor([2, 2 if next(validated) >= epochs else 1]), torch.tensor([0, 1]))

    return validate


@pytest.fixture
def impatient(monkeypatch):
    """The epochs of these tests are shorter than those of a training."""
    monkeypatch.setattr(loop, "_PATIENCE_STEPS", STEPS)


@pytest.mark.usefixtures("impatient")
def test_a_network_that_predicts_one_class_at_the_end_has_collapsed(params):
    words = r"^hot: .* one class for all .* \(now 2\) since epoch 3, seen after epoch 3 step 2 \(learning .* 16, 17"
    with pytest.raises(TrainingError, match=words):
        run(params, network(1), validate=collapsed_after(3))


def test_a_network_that_was_hardly_trained_may_predict_one_class(params, caplog):
    run(params, network(1), settings(params, epochs=30), validate=collapsed_after(0))
    assert "one class for all validation images (now 2) since epoch 0" in caplog.text
    assert "raise students.hot.training.epochs in params.yaml" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_network_that_stays_collapsed_is_stopped_and_one_that_recovers_is_not(params):
    long = settings(params, epochs=60, warmup_epochs=2.0)
    with pytest.raises(TrainingError, match=r"since epoch 1, seen after epoch 8 step 2"):
        run(params, network(1), long, validate=collapsed_after(1))
    late = iter([*[0] * 7, *range(1, 100)])
    records = run(
        params,
        network(1),
        long,
        validate=lambda _: Predictions(torch.tensor([0, int(next(late) > 0)]), torch.tensor([0, 1])),
    )
    assert [record.constant for record in records] == [0] * 7 + [None] * 53


def test_cosine_rises_linearly_then_falls_to_zero(params):
    training = settings(params, epochs=11, learning_rate=0.4, warmup_epochs=1.0)
    assert learning_rate(training, 0.5) == pytest.approx(0.2)
    assert learning_rate(training, 1.0) == pytest.approx(0.4)
    assert learning_rate(training, 6.0) == pytest.approx(0.2)
    assert learning_rate(training, 10.999) == pytest.approx(0.0, abs=1e-4)
    assert learning_rate(training, 0.0) > 0


def test_steps_divide_by_ten_at_each_milestone(params):
    training = settings(
        params, epochs=240, learning_rate=0.05, schedule="step", milestones=[150, 180, 210], warmup_epochs=0.0
    )
    rates = [learning_rate(training, epoch) for epoch in (0, 149.9, 150, 180, 210, 239)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-4, 5e-5, 5e-5])


def test_bf16_training_stays_close_to_fp32(params):
    losses = {
        precision: run(params, network(1), settings(params, precision=precision))[-1].train_loss
        for precision in ("fp32", "bf16")
    }
    assert math.isclose(losses["fp32"], losses["bf16"], rel_tol=0.05)


@pytest.mark.parametrize(
    ("precision", "native", "warned"), [("bf16", False, True), ("bf16", True, False), ("auto", False, False)]
)
def test_emulated_bf16_is_told(params, caplog, monkeypatch, precision, native, warned):
    for module in ("pipeline.training.loop", "pipeline.training.fastest"):
        monkeypatch.setattr(f"{module}.has_bf16", lambda device: native)
    run(params, network(1), settings(params, precision=precision, epochs=1))
    assert ("which this processor emulates" in caplog.text) is warned


@pytest.mark.parametrize(("warmup", "warned"), [(1.0, True), (0.5, False)])
def test_a_learning_rate_that_never_reaches_its_peak_is_told(params, caplog, warmup, warned):
    run(params, network(1), settings(params, epochs=1, warmup_epochs=warmup))
    assert ("hot: students.hot.training.warmup_epochs is not below epochs" in caplog.text) is warned


@pytest.fixture
def session(tmp_path):
    return Session(CPU, checkpoints=tmp_path, keep=False)


def test_another_setting_has_another_checkpoint(session):
    folders = set()
    for rate in (1, 2, 1):
        with session.checkpoint("student", {"lr": rate}) as checkpoint:
            folders.add(checkpoint.folder)
    assert len(folders) == 2


def test_a_checkpoint_is_kept_on_failure_and_removed_on_success(session):
    with pytest.raises(Killed), session.checkpoint("student", {}) as checkpoint:
        raise Killed
    assert checkpoint.folder.exists()
    with session.checkpoint("student", {}) as checkpoint:
        pass
    assert not checkpoint.folder.exists()


def test_a_finished_run_of_a_stage_is_found_again_until_the_next_one_finishes(params, session):
    session = replace(session, keep=True)

    def finish(setting: int, student: nn.Module, **changes) -> tuple[Path, list]:
        with session.checkpoint("student", {"lr": setting}) as checkpoint:
            return checkpoint.folder, run(params, student, checkpoint=checkpoint, session=session, **changes)

    with pytest.raises(Killed), session.checkpoint("student", {"lr": 0}) as unfinished:
        raise Killed
    undisturbed, again = network(1), network(7)
    first, records = finish(1, undisturbed)
    assert finish(1, again, epoch_steps=None, objective=None) == (first, records), "nothing is trained again"
    assert state_hash(again) == state_hash(undisturbed)
    second, _ = finish(2, network(1))
    assert second.exists()
    assert not first.exists()
    assert unfinished.folder.exists(), "it may go on some day"


@pytest.mark.parametrize("other", ["small-2", "smaller", "s", "small-0123456789abcdef", None])
def test_a_finished_run_of_one_student_leaves_what_another_kept(session, other):
    session = replace(session, keep=True)

    def finish(name: str | None, rate: int) -> Path:
        with session.checkpoint("student", {"lr": rate}, name) as checkpoint:
            return checkpoint.folder

    kept, earlier = finish(other, 1), finish("small", 1)
    later = finish("small", 2)
    assert (kept.exists(), earlier.exists(), later.exists()) == (True, False, True)
    assert finish(other, 2).exists()
    assert (kept.exists(), later.exists()) == (False, True)


def test_two_students_are_trained_at_the_same_time(session):
    with session.checkpoint("student", {}, "small") as small, session.checkpoint("student", {}, "large") as large:
        assert small.folder != large.folder


def test_a_slow_disk_is_not_written_to_each_epoch_but_after_the_first_and_the_last(params, tmp_path):
    class Slow(Checkpoint):
        stored = ()

        def save(self, state: TrainingState, records: list) -> None:
            super().save(state, records)
            self.stored += (len(records),)
            self._spent += 3600

    checkpoint = Slow(tmp_path)
    epochs = len(run(params, network(1), checkpoint=checkpoint))
    assert epochs > 2
    assert checkpoint.stored == (1, epochs)


def test_epochs_that_are_long_beside_their_storing_are_all_stored(params, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 1000))  # seconds; storing takes two looks at it, and so an epoch's length
    monkeypatch.setattr(checkpoints, "_SHARE", 1.0)
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: next(clock))
    stored = []
    monkeypatch.setattr(checkpoints, "_write", lambda path, content: stored.append(1))
    epochs = len(run(params, network(1), checkpoint=Checkpoint(tmp_path)))
    assert len(stored) == epochs


def test_two_trainers_of_one_run_are_refused(session):
    with (
        session.checkpoint("student", {}),
        pytest.raises(BusyError, match=f"process {os.getpid()} is already training this student"),
        session.checkpoint("student", {}),
    ):
        pass


def test_a_damaged_checkpoint_is_named(params, tmp_path):
    (tmp_path / "epoch.pt").write_bytes(b"\x10")
    with pytest.raises(TrainingError, match=r"epoch\.pt is damaged .*delete it"):
        run(params, network(1), checkpoint=Checkpoint(tmp_path))


def test_no_two_runs_epochs_or_streams_share_a_seed():
    seeds = [stream_seed(seed, stream, epoch) for seed in range(5) for epoch in range(50) for stream in range(3)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds), "also for a CPU's generator, which sees 32 bits"
    assert stream_seed(2**32 - 1, 5, 9999) < 2**63


def test_the_streams_of_a_seed_give_different_numbers():
    drawn = [
        tuple(torch.randperm(20, generator=torch.Generator().manual_seed(stream_seed(0, stream, epoch))).tolist())
        for stream in (CLEAN, COMPANIONS, MIXING, STRONG, RANDOM_GROUPS, SUBSET, PER_PROCESS)
        for epoch in range(3)
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("bf16", True)])
def test_fp32_means_fp32_in_training_where_it_is_asked_for_and_always_in_inference(params, precision, tf32):
    student, seen = network(1), set()
    student.register_forward_pre_hook(lambda network, _: seen.add((network.training, torch.backends.cudnn.allow_tf32)))
    images = Images(
        ResidentPixels(np.zeros((6, 4, 4, 3), np.uint8), CPU, 0),
        torch.arange(6) % 3,
        Normalisation([0.5] * 3, [0.5] * 3),
    )
    chosen = settings(params, precision=precision, epochs=1, warmup_epochs=0)
    run(params, student, chosen, validate=lambda network: predict(network, images))
    assert seen == {(True, tf32), (False, False)}
