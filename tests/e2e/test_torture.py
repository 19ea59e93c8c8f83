"""A few of the kills of `make torture`, and the bytes of a run in another folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from bench.torture.kill import STAGES, VICTIMS, Moment, Pass, Undisturbed, moments, undisturbed
from bench.torture.repro import belongs

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("torture") / "undisturbed")


def test_killed_runs_recover_to_the_bytes_of_an_undisturbed_run_in_another_folder(expected, tmp_path, monkeypatch):
    monkeypatch.delenv("SHELL", raising=False)  # dvc then takes /bin/sh, which may stay between it and the stage
    # so early that the stage, which lives on, is still there when the next dvc comes
    planned = [Moment("train_teacher", "dvc", 0.1), Moment("export", "group", 0.5)]
    killed = []
    one = Pass(tmp_path / "killed", planned, expected, killed.append)
    one.run()
    assert not one.problems, "\n".join(one.problems)
    assert [(kill.stage, kill.victim, kill.recovered, kill.identical) for kill in killed] == [
        ("train_teacher", "dvc", True, True),
        ("export", "group", True, True),
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
    drawn = moments(27, 0)
    assert {(moment.stage, moment.victim) for moment in drawn} == {(s, v) for s in STAGES for v in VICTIMS}
    assert all(0 <= moment.share <= 1 for moment in drawn)
    assert drawn == moments(27, 0) != moments(27, 1)
