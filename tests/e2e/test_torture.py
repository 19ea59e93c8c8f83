"""A few of the kills of `make torture`, and the bytes of a run in another folder."""

from __future__ import annotations

import json

import pytest

from bench.torture.kill import STAGES, VICTIMS, Moment, Pass, Undisturbed, moments, undisturbed

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("torture") / "undisturbed")


def test_killed_runs_recover_to_the_bytes_of_an_undisturbed_run_in_another_folder(expected, tmp_path):
    planned = [Moment("train_teacher", "dvc", 0.5), Moment("export", "group", 0.5)]
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


def test_the_moments_hit_every_stage_with_every_victim_and_are_the_same_for_a_seed():
    drawn = moments(27, 0)
    assert {(moment.stage, moment.victim) for moment in drawn} == {(s, v) for s in STAGES for v in VICTIMS}
    assert all(0 <= moment.share <= 1 for moment in drawn)
    assert drawn == moments(27, 0) != moments(27, 1)
