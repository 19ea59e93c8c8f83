"""Whole studies, small enough for a test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from submitit import LocalJob

from pipeline.ablation import jobs
from pipeline.ablation.jobs import Slurm
from pipeline.ablation.results import StudyResult, energy_picture, write_results
from pipeline.ablation.schedule import distinct_inputs, run_study
from pipeline.ablation.trial import TrialResult, make_data, make_inputs, result_path
from pipeline.errors import BusyError, ParamsError, TrainingError
from pipeline.store.lock import exclusive
from tests.ablation.conftest import QUICK, in_this_process, tiny_study, write_study
from tests.ablation.slurm import write_commands
from tests.conftest import ROOT

LONG = {"distill": {"training": QUICK | {"epochs": 20}}}  # long enough to be killed in between
JOBS = max(2, len(os.sched_getaffinity(0)))  # so that each has one thread, as a job of Slurm has here
LONG_ARMS = {"KD": LONG, "random": LONG | {"heda": {"mix": "cutmix", "subset": "random"}}}


def without_times(results) -> list[TrialResult]:
    return [result.model_copy(update={"seconds_per_epoch": 0.0}) for _, result in results]


def finished(study, root) -> list[bool]:
    return [result_path(trial, root).exists() for trial in study.trials()]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(LocalJob, "_results_timeout_s", 1)  # for the answer of a process that was killed


@pytest.fixture(scope="module")
def inputs_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    params = write_study(tmp_path_factory.mktemp("study")).arms["KD"]
    make_data(params, folder)
    make_inputs(params, folder)
    return folder


@pytest.fixture
def root(inputs_once, tmp_path) -> Path:
    """A folder with the data, teacher and energies of the tiny study, but no trials."""
    return shutil.copytree(inputs_once, tmp_path / "root")


@pytest.fixture(scope="module")
def undisturbed(inputs_once, tmp_path_factory) -> list[TrialResult]:
    """Of the long arms."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with in_this_process():
        study = write_study(folder, seeds=[0], arms=LONG_ARMS)
        return without_times(run_study(study, shutil.copytree(inputs_once, folder / "root"), JOBS))


def when(root: Path, log: str, act: Callable[[Path], None]) -> threading.Thread:
    """Call ``act`` once, with the first log of a trial in which the pattern is found."""

    def watch() -> None:
        while True:
            for path in root.glob("jobs/*/tiny/*_log.out"):
                with contextlib.suppress(FileNotFoundError):
                    if re.search(log, path.read_text(), re.MULTILINE):
                        return act(path)
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def task_of(log: Path) -> psutil.Process:
    """The process that trains, a child of the one by whose number submitit names the log."""
    [task] = psutil.Process(int(log.name.split("_")[0])).children()
    return task


@pytest.mark.e2e
def test_a_study_of_image_files_is_done_once_and_its_results_are_kept(make_study, tmp_path):
    generator = np.random.default_rng(0)
    for label in ("ant", "bee"):
        folder = tmp_path / "photos/train" / label
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    params = tiny_study()["params"]
    params["data"] |= {"name": "imagefolder", "root": str(tmp_path / "photos"), "storage": "files"}
    study, epochs, started = make_study(seeds=[0], params=params), [], []
    results = run_study(study, tmp_path, 2, on_start=started.append, on_epochs=epochs.append)
    assert sum(epochs) == 4
    assert started[-2:] == ["teacher, epoch 2", "students"]
    assert [trial for trial, _ in results] == study.trials()
    first = results[0][1]
    assert 0 <= first.last.top1 <= 1
    assert first.last.epoch == 1
    assert first.best_validation.val_top1 == max(first.val_top1)
    assert first.lineage == results[1][1].lineage, "one teacher for all"
    assert first.threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert not list(tmp_path.glob("jobs/local/*")), "nothing is left of finished runs"

    inputs = list(distinct_inputs(study, tmp_path).values())
    assert len(inputs) == 1
    result = StudyResult.of(study, tmp_path, inputs, results)
    [teacher] = result.teachers
    assert (teacher.network, teacher.epochs) == ("resnet8", 2)
    paths = write_results(tmp_path / "out", "tiny", result, energy_picture(inputs[0], tmp_path))
    assert all(path.stat().st_size > 500 for path in paths)

    started, epochs = [], []
    again = run_study(study, tmp_path, 1, on_start=started.append, on_epochs=epochs.append)
    assert again == results
    assert epochs == [4], "epochs that were done before are counted at once"
    assert all("teacher, " not in what for what in started), "the teacher is not trained again"


@pytest.mark.usefixtures("trials_here")
def test_a_failed_trial_is_named_with_its_log_and_the_others_are_kept(make_study, root):
    diverging = {"distill": {"training": QUICK | {"learning_rate": 1e30, "warmup_epochs": 0.0}}}
    study = make_study(seeds=[0], arms={"diverges": diverging, "KD": {}})
    with pytest.raises(
        TrainingError,
        match=r"1 of 2 runs failed.*arm 'diverges' seed 0: student: the loss was not finite.*; its log is ",
    ) as caught:
        run_study(study, root, 2)
    assert finished(study, root) == [False, True]
    log = Path(str(caught.value).rpartition("its log is ")[2])
    assert log.is_file()
    assert list(log.parent.iterdir()) == [log]
    with pytest.raises(TrainingError, match="1 of 1 runs failed"):
        run_study(study, root, 2)


@pytest.mark.usefixtures("trials_here")
def test_two_names_of_one_trial_share_its_result_and_the_seed_decides(make_study, root):
    epochs = []
    results = run_study(make_study(arms={"KD": {}, "again": {}}), root, 1, on_epochs=epochs.append)
    assert sum(epochs) == 8
    assert results[0][1] == results[1][1]
    assert results[0][1].last != results[2][1].last


@pytest.mark.usefixtures("trials_here")
def test_arms_with_groups_of_their_own_share_the_teacher(make_study, root):
    study = make_study(seeds=[0], arms={"KD": {}, "halves": {"energy": {"low_fraction": 0.5, "high_fraction": 0.5}}})
    results = run_study(study, root, 2)
    inputs = distinct_inputs(study, root)
    assert list(inputs) == ["KD", "halves"]
    assert len(list(root.glob("teacher-*/"))) == 1
    assert results[1][1].last.top1_mid_energy is None
    assert len(StudyResult.of(study, root, list(inputs.values()), results).teachers) == 1


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


@pytest.mark.usefixtures("trials_here")
def test_a_teacher_that_cannot_be_trained_is_named(make_study, tmp_path):
    params = tiny_study()["params"]
    params["teacher"]["minimum_top1"] = 1.0
    with pytest.raises(TrainingError, match=r"^the teacher of arm 'KD': .*minimum_top1"):
        run_study(make_study(params=params), tmp_path, 1)


def test_a_second_process_of_a_study_is_refused(make_study, root):
    with exclusive(root / "jobs/tiny.lock", "running it"), pytest.raises(BusyError, match="running the study tiny"):
        run_study(make_study(), root, 1)


def test_a_killed_trial_does_not_stop_the_others_and_goes_on_later(make_study, root, undisturbed):
    study, epochs = make_study(seeds=[0], arms={"KD": {}, "long": LONG}), []
    killer = when(root, "^epoch 3:", lambda log: task_of(log).kill())
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*arm 'long' seed 0: its process was ended from out"):
        run_study(study, root, JOBS, on_epochs=epochs.append)
    killer.join()
    assert finished(study, root) == [True, False]
    assert sum(epochs) >= 2 + 3
    kept = result_path(study.trials()[0], root).stat().st_mtime_ns
    with in_this_process():
        results = run_study(study, root, JOBS)
    assert result_path(study.trials()[0], root).stat().st_mtime_ns == kept
    assert without_times(results)[1:] == undisturbed[:1]


def test_trials_run_as_jobs_of_slurm_which_queues_them_again_to_the_same_result(
    make_study, root, undisturbed, tmp_path, monkeypatch
):
    commands = write_commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    requeued = []

    def stop(log: Path) -> None:
        [task] = (process for process in psutil.process_iter(["environ"]) if is_task(process, log.name))
        task.send_signal(signal.SIGUSR2)  # what submitit asks Slurm to send before a job's time is over
        requeued.append(log.name)

    stopper, epochs = when(root, "^epoch 3:", stop), []
    study, slurm = make_study(seeds=[0], arms={"KD": {}, "long": LONG}), Slurm("short", 30, 0, 1)
    results = run_study(study, root, 2, slurm, on_epochs=epochs.append)
    stopper.join()
    assert requeued == ["7_1_0_log.out"]
    assert sum(epochs) == 22, "epochs that were done before it was stopped are counted once"
    assert [result.last.epoch for _, result in results] == [1, 19]
    assert without_times(results)[1:] == undisturbed[:1]
    assert results[0][1].threads == 1
    asked = (commands / "asked.sh").read_text()
    for option in ("partition=short", "time=30", "cpus-per-task=1", "array=0-1%2", "signal=USR2@90"):
        assert f"#SBATCH --{option}\n" in asked
    assert "gpus" not in asked
    assert not list(root.glob("jobs/slurm/*"))


def is_task(process: psutil.Process, log: str) -> bool:
    environment = process.info["environ"] or {}
    job, index = (environment.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return log == f"{job}_{index}_0_log.out" and "submitit.core._submit" in process.cmdline()


def test_without_slurm_one_sentence_says_so(make_study, root, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TrainingError, match=r"srun and sbatch.* are not on this machine; run this on one"):
        run_study(make_study(), root, 1, Slurm(None, 60, 1, 4))


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["killed", "stopped by Ctrl-C"])
def test_a_study_that_ends_early_leaves_no_process_and_goes_on_to_the_same_results(make_study, root, undisturbed, how):
    study = make_study(seeds=[0], arms=LONG_ARMS)
    program = (
        "import sys; from pathlib import Path; from pipeline.ablation.schedule import run_study;"
        "from pipeline.ablation.study import load_study;"
        "run_study(load_study(Path(sys.argv[1]), Path('params.yaml')), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    command = [sys.executable, "-c", program, str(root.with_name("tiny.yaml")), str(root), str(JOBS)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    when(root, "^epoch 3:", lambda log: None).join(120)
    if how == "killed":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    _, said = process.communicate()
    assert said.count("KeyboardInterrupt") == (0 if how == "killed" else 1), "the others do not tell of it"
    deadline = time.monotonic() + 60
    while members := list(_session_members(process.pid)):
        assert how == "killed", "it waits for the others"
        assert time.monotonic() < deadline, f"left behind: {members}"
        time.sleep(0.2)
    assert finished(study, root) == [False, False]
    assert list(root.glob("checkpoints/*/student-*/epoch.pt"))
    with in_this_process():
        assert without_times(run_study(study, root, JOBS)) == undisturbed


def _session_members(session: int) -> Iterator[str]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                yield " ".join(process.cmdline())
