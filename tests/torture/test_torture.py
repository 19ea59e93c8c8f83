"""One kill of each kind of `make torture`, and the bytes of a run in another folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.torture.clone import SMALL, STAGES
from tests.torture.kill import VICTIMS, Moment, Pass, moments, undisturbed
from tests.torture.repro import belongs

# as little as trains: what comes after the energies is left to `make torture`
TINY = SMALL | {"data.max_images_per_class": 20, "data.image_size": 8, "teacher.minimum_top1": 0.0}


@pytest.mark.e2e
def test_killed_runs_recover_to_the_bytes_of_an_undisturbed_run_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SHELL", raising=False)  # dvc then takes /bin/sh, which may stay between it and the stage
    expected = undisturbed(tmp_path / "undisturbed", TINY, "score_energy")
    # dvc so early that the stage, which lives on, is still there when the next dvc comes
    planned = [
        Moment("prepare", "group", 0.5),
        Moment("train_teacher", "dvc", 0.1),
        Moment("score_energy", "stage", 0.5),
    ]
    one = Pass(tmp_path / "killed", planned, expected, lambda kill: None)
    one.run()
    assert not one.problems, "\n".join(one.problems)
    assert [(kill.stage, kill.victim, kill.recovered, kill.identical) for kill in one.kills] == [
        (moment.stage, moment.victim, True, True) for moment in planned
    ]
    # another teacher is noticed: the comparison is of bytes
    card = tmp_path / "killed/artifacts/teacher/card.json"
    content = json.loads(card.read_text())
    card.unlink()
    card.write_text(json.dumps(content | {"seed": 1}))
    assert expected.differing(tmp_path / "killed", "train_teacher") == ["artifacts/teacher/card.json"]


def test_a_stage_belongs_to_the_shell_that_it_runs_in():
    waits = f"{sys.executable} -c 'import time; print(flush=True); time.sleep(60)'; :"
    shell = subprocess.Popen(["/bin/sh", "-c", waits], stdout=subprocess.PIPE, start_new_session=True)
    try:
        shell.stdout.readline()
        process = psutil.Process(shell.pid)
        (child,) = process.children()
        assert belongs(child.pid, process)
        assert belongs(process.pid, process)
        assert not belongs(process.pid, child)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()
    assert not belongs(child.pid, process)


def test_the_moments_hit_every_stage_with_every_victim_and_are_the_same_for_a_seed():
    count = len(STAGES) * len(VICTIMS)
    drawn = moments(count, 0)
    assert {(moment.stage, moment.victim) for moment in drawn} == {(s, v) for s in STAGES for v in VICTIMS}
    assert all(0 <= moment.share <= 1 for moment in drawn)
    assert drawn == moments(count, 0) != moments(count, 1)
