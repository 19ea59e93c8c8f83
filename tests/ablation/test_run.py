"""Whole studies, small enough for a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import nn

from pipeline.ablation import schedule
from pipeline.ablation.results import document, energy_picture, write_results
from pipeline.ablation.run import BestWeights, execute, finished, read_result, result_path
from pipeline.ablation.schedule import run_study
from pipeline.ablation.study import Run, load_study
from pipeline.ablation.upstream import locate, pack, read_scores, teach, teacher_report
from pipeline.data.store import read_split
from pipeline.distillation.student import ScoredImages
from pipeline.errors import DataError, LineageError, ParamsError, TrainingError
from pipeline.store.tables import read_json, read_table, write_json, write_table
from pipeline.training.loop import EpochRecord
from tests.ablation.conftest import QUICK, tiny_study
from tests.conftest import ROOT

TIMED = {"seconds_per_epoch"}


@dataclass
class FakeTraining:
    """Stands for the training of a student: after epoch i it answers the i-th of ``answers`` to every image."""

    answers: tuple[int, ...] = (0,)
    val_top1: tuple[float, ...] = (0.5,)
    scored: ScoredImages | None = None
    validation: torch.Tensor | None = None

    def __call__(self, student, teacher, scored, validation, params, *, checkpoint, on_epoch):
        self.scored, self.validation = scored, validation.labels
        records = []
        for epoch, (answer, top1) in enumerate(zip(self.answers, self.val_top1, strict=True)):
            with torch.no_grad():
                student.fc.weight.zero_()
                student.fc.bias.copy_(torch.eye(10)[answer])
            records.append(EpochRecord(epoch, 1.0, top1, 0.1, 1.0))
            on_epoch(records[-1])
        return records


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Parameters of a study of a hundred digits, and the folder with its teacher and energies."""
    root = tmp_path_factory.mktemp("taught")
    study = tiny_study()
    study["params"]["data"]["max_images_per_class"] = 10
    study["params"]["teacher"]["training"] = QUICK | {"epochs": 1}
    with (root / "taught.yaml").open("w") as file:
        YAML().dump(study, file)
    params = load_study(root / "taught.yaml", ROOT / "params.yaml").arms["KD"]
    pack(params, root)
    teach(params, root)
    return params, root


@pytest.fixture
def run_with(taught, monkeypatch):
    """Do a run whose training is only pretended: (training, changes to heda, changes to energy) -> result."""
    base, root = taught

    def run(training, heda=None, energy=None, seed=0):
        blocks = {
            "heda": base.heda.model_copy(update=heda or {}),
            "energy": base.energy.model_copy(update=energy or {}),
        }
        chosen = Run("KD", seed, base.model_copy(update=blocks))
        monkeypatch.setattr("pipeline.ablation.run.distill", training)
        result_path(chosen, root).unlink(missing_ok=True)
        execute(chosen, root)
        return read_json(result_path(chosen, root))

    return run


def without_times(results):
    return [{key: value for key, value in result.items() if key not in TIMED} for _, result in results]


def test_a_study_is_done_once_and_its_results_are_kept(make_study, tmp_path):
    study, epochs = make_study(), []
    results = run_study(study, tmp_path, 1, on_epochs=epochs.append)
    assert sum(epochs) == 8
    assert [run for run, _ in results] == study.runs()
    first = results[0][1]
    assert 0 <= first["last"]["top1"] <= 1
    assert first["last"]["epoch"] == 1
    assert first["best_validation"]["val_top1"] == max(first["val_top1"])
    assert first["lineage"] == results[1][1]["lineage"], "one teacher for all"
    assert first["last"] != results[2][1]["last"], "the seed decides"

    content = document(study, [teacher_report(study.arms["KD"], tmp_path)], results)
    paths = write_results(tmp_path / "out", "tiny", content, energy_picture(study.arms["KD"], tmp_path))
    assert all(path.stat().st_size > 500 for path in paths)

    started = []
    again = run_study(study, tmp_path, 1, on_start=started.append)
    assert again == results
    assert all("teacher " not in what for what in started), "the teacher is not trained again"


def test_a_failed_run_is_named_and_the_others_are_kept(make_study, tmp_path):
    diverging = {"distill": {"training": QUICK | {"learning_rate": 1e30, "warmup_epochs": 0.0}}}
    study = make_study(seeds=[0], arms={"diverges": diverging, "KD": {}})
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*arm 'diverges' seed 0: the loss was not finite"):
        run_study(study, tmp_path, 1)
    assert [finished(run, tmp_path) for run in study.runs()] == [False, True]


def test_arms_that_differ_have_results_of_their_own(make_study, tmp_path):
    study = make_study()
    assert len({result_path(run, tmp_path) for run in study.runs()}) == 4
    renamed = make_study(arms={"KD": {}, "another name": {"heda": {"mix": "cutmix", "subset": "random"}}})
    assert [result_path(run, tmp_path) for run in renamed.runs()] == [
        result_path(run, tmp_path) for run in study.runs()
    ]


def test_best_weights_are_those_of_the_first_best_epoch_also_after_a_restart(tmp_path):
    network, path = nn.Linear(1, 1), tmp_path / "best.safetensors"
    best = BestWeights(path, network)
    records = [EpochRecord(epoch, 0.0, top1, 0.1, 1.0) for epoch, top1 in enumerate([0.5, 0.8, 0.8, 0.6])]
    for record in records[:3]:
        nn.init.constant_(network.weight, record.epoch)
        best.offer(record)
    resumed_network = nn.Linear(1, 1)
    resumed = BestWeights(path, resumed_network)
    nn.init.constant_(resumed_network.weight, 2.0)
    for record in records[:3]:
        resumed.offer(record)
    nn.init.constant_(resumed_network.weight, 3.0)
    resumed.offer(records[3])
    assert resumed.load() == 1
    assert resumed_network.weight.item() == 1.0


def test_a_study_validates_on_the_validation_split_and_is_measured_on_the_test_split(taught, run_with):
    params, root = taught
    labels = {name: read_split(locate(params, root).data, name).labels for name in ("train", "val", "test")}
    training = FakeTraining(answers=(3,))
    result = run_with(training)
    np.testing.assert_array_equal(training.validation, labels["val"])
    np.testing.assert_array_equal(training.scored.images.labels, labels["train"])
    assert result["last"]["top1"] == np.mean(labels["test"] == 3)
    assert result["last"]["top1"] != np.mean(labels["val"] == 3)


def test_the_last_and_the_best_epoch_are_measured_each_with_its_own_weights(taught, run_with):
    params, root = taught
    labels = read_split(locate(params, root).data, "test").labels
    shares = np.bincount(labels) / len(labels)
    most, least = int(shares.argmax()), int(shares.argmin())
    assert shares[most] != shares[least]
    result = run_with(FakeTraining(answers=(5, most, least), val_top1=(0.1, 0.9, 0.2)))
    last, best = ([result[name][key] for key in ("epoch", "val_top1", "top1")] for name in ("last", "best_validation"))
    assert last == [2, 0.2, shares[least]]
    assert best == [1, 0.9, shares[most]]


@pytest.mark.parametrize(("kind", "fraction"), [("high_energy", 0.4), ("high_energy", 0.25), ("low_energy", 0.3)])
def test_the_study_mixes_the_subset_and_share_of_its_arm(taught, run_with, kind, fraction):
    energy = read_scores(*taught, "train")["energy"]
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
    train, test = (read_scores(*taught, name)["energy"] for name in ("train", "test"))
    training = FakeTraining(answers=(3,))
    result = run_with(training, energy={"low_fraction": low, "high_fraction": high})
    ranks, count = np.argsort(np.argsort(train, kind="stable")), len(train)
    expected = np.where(ranks < int(count * low), 0, np.where(ranks >= count - int(count * high), 2, 1))
    np.testing.assert_array_equal(training.scored.groups.codes, expected)
    in_low = test < np.sort(train)[int(count * low)]
    labels = read_split(locate(*taught).data, "test").labels
    assert result["last"]["top1_low_energy"] == np.mean(labels[in_low] == 3)


def test_two_names_of_one_run_share_its_result(make_study, tmp_path):
    epochs = []
    results = run_study(make_study(seeds=[0], arms={"KD": {}, "again": {}}), tmp_path, 1, on_epochs=epochs.append)
    assert sum(epochs) == 4
    assert results[0][1] == results[1][1]


def test_an_arm_that_cannot_run_is_named_before_a_teacher_is_trained(make_study, tmp_path):
    study = make_study(arms={"KD": {}, "misspelt": {"distill": {"network": "resnet9x"}}})
    with pytest.raises(ParamsError, match=r"arm 'misspelt': .*distill\.network: There is no network resnet9x"):
        run_study(study, tmp_path, 1)
    assert not list(tmp_path.glob("teacher-*"))


def test_one_run_out_of_memory_does_not_stop_the_others(make_study, tmp_path, monkeypatch):
    real = schedule.execute

    def execute(run, root, on_epoch):
        if run.arm == "KD":
            raise torch.OutOfMemoryError
        real(run, root, on_epoch)

    monkeypatch.setattr(schedule, "execute", execute)
    study = make_study(seeds=[0])
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*arm 'KD' seed 0: the device has not enough memory"):
        run_study(study, tmp_path, 1)
    assert [finished(run, tmp_path) for run in study.runs()] == [False, True]


@pytest.mark.e2e
def test_images_that_stay_files_are_decoded_beside_several_jobs(make_study, tmp_path):
    generator = np.random.default_rng(0)
    for label in ("ant", "bee"):
        folder = tmp_path / "photos/train" / label
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    params = tiny_study()["params"]
    params["data"] |= {"name": "imagefolder", "root": str(tmp_path / "photos"), "storage": "files"}
    results = run_study(make_study(seeds=[0], params=params), tmp_path / "root", 2)
    assert len(results) == 2


@pytest.mark.e2e
def test_a_killed_study_leaves_no_process_and_goes_on_to_the_same_results(make_study, tmp_path):
    study = make_study(seeds=[0], params={**_params(make_study), "device": "cpu"})
    undisturbed = run_study(study, tmp_path / "undisturbed", 2)

    root = tmp_path / "killed"
    program = (
        "import sys; from pathlib import Path; from pipeline.ablation.schedule import run_study;"
        "from pipeline.ablation.study import load_study;"
        "run_study(load_study(Path(sys.argv[1]), Path('params.yaml')), Path(sys.argv[2]), 2)"
    )
    command = [
        sys.executable,
        "-c",
        f"if __name__ == '__main__':\n    {program}",
        str(tmp_path / "tiny.yaml"),
        str(root),
    ]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(root.glob("checkpoints/student-*/epoch.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # the workers belong to the session of the killed process
    while members := _session_members(process.pid):
        assert time.monotonic() < deadline, f"left behind: {members}"
        time.sleep(0.2)
    assert without_times(run_study(study, root, 2)) == without_times(undisturbed)


def _params(make_study):
    from tests.ablation.conftest import tiny_study

    params = tiny_study()["params"]
    params["distill"]["training"]["epochs"] = 6
    return params


def _session_members(session: int) -> list[str]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(" ".join(process.cmdline()))
    return members


def test_a_result_of_another_teacher_is_refused_with_both_hashes(taught, run_with):
    params, root = taught
    result, run = run_with(FakeTraining()), Run("KD", 0, params)
    assert read_result(run, root) == result
    teacher = result["lineage"]["teacher"][:12]
    write_json(result_path(run, root), result | {"lineage": result["lineage"] | {"teacher": "f" * 64}})
    with pytest.raises(
        LineageError, match=f"made from teacher f{{12}}, but the teacher in use is {teacher}; remove it"
    ):
        read_result(run, root)
    del result["last"]["top1"]
    write_json(result_path(run, root), result)
    with pytest.raises(DataError, match=r"is not what it should be \(last.top1 is missing"):
        read_result(run, root)


@pytest.mark.parametrize(("lost", "words"), [("correct", "no column correct"), (None, "has 1 images, not")])
def test_scores_that_are_damaged_are_refused(taught, lost, words):
    params, root = taught
    path = locate(params, root).energy / "train.parquet"
    whole = path.read_bytes()
    columns, lineage = read_table(path)
    short = {name: values if lost else values[:1] for name, values in columns.items() if name != lost}
    write_table(path, short, lineage)
    try:
        with pytest.raises(DataError, match=words):
            read_scores(params, root, "train")
    finally:
        path.write_bytes(whole)
