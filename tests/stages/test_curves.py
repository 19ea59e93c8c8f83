"""Learning curves of DVCLive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.training import EpochRecord
from stages.curves import learning_curves


def test_a_repository_without_a_commit_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)  # noqa: S607
    Path(".dvc").mkdir()
    with (
        pytest.raises(DataError, match=r"need a Git repository with a commit .*`git add --all && git commit`"),
        learning_curves(Path("curves"), "teacher", 1, 1) as curves,
    ):
        curves.epoch(EpochRecord(0, 1.0, 0.5, 0.1, 1.0))
    assert not Path("curves").exists()
