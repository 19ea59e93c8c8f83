"""Whole studies, small enough for a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipeline.ablation import schedule
from pipeline.ablation.results import StudyResult, energy_picture, write_results
from pipeline.ablation.schedule import distinct_inputs, run_study
from pipeline.ablation.trial import TrialResult, result_path
from pipeline.errors import ParamsError, TrainingError
from tests.ablation.conftest import QUICK, tiny_study
from tests.conftest import ROOT


def without_times(results) -> list[TrialResult]:
    return [result.model_copy(update={"seconds_per_epoch": 0.0}) for _, result in results]


def finished(study, root) -> list[bool]:
    return [result_path(trial, root).exists() for trial in study.trials()]


def test_a_study_is_done_once_and_its_results_are_kept(make_study, tmp_path):
    study, epochs = make_study(), []
    results = run_study(study, tmp_path, 1, on_epochs=epochs.append)
    assert sum(epochs) == 8
    assert [trial for trial, _ in results] == study.trials()
    first = results[0][1]
    assert 0 <= first.last.top1 <= 1
    assert first.last.epoch == 1
    assert first.best_validation.val_top1 == max(first.val_top1)
    assert first.lineage == results[1][1].lineage, "one teacher for all"
    assert first.last != results[2][1].last, "the seed decides"

    inputs = distinct_inputs(study, tmp_path)
    assert len(inputs) == 1
    result = StudyResult.of(study, tmp_path, inputs, results)
    [teacher] = result.teachers
    assert (teacher.network, teacher.epochs) == ("resnet8", 2)
    paths = write_results(tmp_path / "out", "tiny", result, energy_picture(inputs[0], tmp_path))
    assert all(path.stat().st_size > 500 for path in paths)

    started, epochs = [], []
    again = run_study(study, tmp_path, 1, on_start=started.append, on_epochs=epochs.append)
    assert again == results
    assert epochs == [8], "epochs that were done before are counted at once"
    assert all("teacher " not in what for what in started), "the teacher is not trained again"


def test_a_failed_trial_is_named_and_the_others_are_kept(make_study, tmp_path):
    diverging = {"distill": {"training": QUICK | {"learning_rate": 1e30, "warmup_epochs": 0.0}}}
    study = make_study(seeds=[0], arms={"diverges": diverging, "KD": {}})
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*arm 'diverges' seed 0: the loss was not finite"):
        run_study(study, tmp_path, 1)
    assert finished(study, tmp_path) == [False, True]


def test_two_names_of_one_trial_share_its_result(make_study, tmp_path):
    epochs = []
    results = run_study(make_study(seeds=[0], arms={"KD": {}, "again": {}}), tmp_path, 1, on_epochs=epochs.append)
    assert sum(epochs) == 4
    assert results[0][1] == results[1][1]


def test_arms_with_groups_of_their_own_share_the_teacher(make_study, tmp_path):
    study = make_study(seeds=[0], arms={"KD": {}, "halves": {"energy": {"low_fraction": 0.5, "high_fraction": 0.5}}})
    results = run_study(study, tmp_path, 1)
    inputs = distinct_inputs(study, tmp_path)
    assert len(inputs) == 2
    assert len(list(tmp_path.glob("teacher-*/"))) == 1
    assert results[1][1].last.top1_mid_energy is None
    assert len(StudyResult.of(study, tmp_path, inputs, results).teachers) == 1


def test_an_arm_that_cannot_run_is_named_before_a_teacher_is_trained(make_study, tmp_path):
    study = make_study(arms={"KD": {}, "misspelt": {"distill": {"network": "resnet9x"}}})
    with pytest.raises(ParamsError, match=r"arm 'misspelt': .*distill\.network: There is no network resnet9x"):
        run_study(study, tmp_path, 1)
    stages = {"name": "at", "feature_weight": 1.0, "warmup_epochs": 0.0, "student_stages": ["layer9"]}
    loss = {"ce_weight": 1.0, "kd_weight": 0.0, "teacher_stages": None, **stages}
    study = make_study(arms={"KD": {}, "stages": {"distill": {"loss": loss}}})
    with pytest.raises(ParamsError, match=r"arm 'stages': .*the student has 1 stages \(layer9\) and the teacher 3"):
        run_study(study, tmp_path, 1)
    assert not list(tmp_path.glob("teacher-*"))


def test_one_trial_out_of_memory_does_not_stop_the_others(make_study, tmp_path, monkeypatch):
    real = schedule.execute

    def execute(trial, root, on_epoch):
        if trial.arm == "KD":
            raise torch.OutOfMemoryError
        real(trial, root, on_epoch)

    monkeypatch.setattr(schedule, "execute", execute)
    study = make_study(seeds=[0])
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*arm 'KD' seed 0: the device has not enough memory"):
        run_study(study, tmp_path, 1)
    assert finished(study, tmp_path) == [False, True]


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
    params = tiny_study()["params"]
    params["distill"]["training"]["epochs"] = 20
    params["data"]["max_images_per_class"] = 50
    study, root = make_study(seeds=[0], params=params), tmp_path / "killed"
    with threads_of_a_worker(jobs=2):
        undisturbed = run_study(study, tmp_path / "undisturbed", 1)
    shutil.copytree(tmp_path / "undisturbed", root, ignore=shutil.ignore_patterns("runs", "checkpoints"))
    program = (
        "import sys; from pathlib import Path; from pipeline.ablation.schedule import run_study;"
        "from pipeline.ablation.study import load_study;"
        "run_study(load_study(Path(sys.argv[1]), Path('params.yaml')), Path(sys.argv[2]), 2)"
    )
    guarded = f"if __name__ == '__main__':\n    {program}"
    command = [sys.executable, "-c", guarded, str(tmp_path / "tiny.yaml"), str(root)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(root.glob("checkpoints/*/student-*/epoch.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # the workers belong to the session of the killed process
    while members := _session_members(process.pid):
        assert time.monotonic() < deadline, f"left behind: {members}"
        time.sleep(0.2)
    assert finished(study, root) != [True, True], "it was killed before its end"
    with threads_of_a_worker(jobs=2):
        assert without_times(run_study(study, root, 1)) == without_times(undisturbed)


@contextlib.contextmanager
def threads_of_a_worker(jobs: int) -> Iterator[None]:
    """Without the two processes themselves, whose imports take longer than the study."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _session_members(session: int) -> list[str]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(" ".join(process.cmdline()))
    return members
