"""Learning curves of DVCLive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.config import TEACHER
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.training.card import EpochRecord
from stages.curves import check_repository, training_session
from tests.report.conftest import data_card

NO_COMMIT = r"need a Git repository with a commit .*`git add --all && git commit`"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)  # noqa: S607
    Path(".dvc").mkdir()


def test_a_repository_without_a_commit_is_known_before_anything_is_computed(repository):
    with pytest.raises(DataError, match=NO_COMMIT):
        check_repository()
    git = ["git", "-c", "user.name=name", "-c", "user.email=mail", "commit", "--quiet", "--allow-empty", "-m", "first"]
    subprocess.run(git, check=True)
    check_repository()
    assert sorted(path.name for path in Path().iterdir()) == [".dvc", ".git"]


def test_a_repository_without_a_commit_is_one_sentence(repository):
    run = Run()
    run.data = data_card()
    with (
        pytest.raises(DataError, match=NO_COMMIT),
        training_session(run.network(TEACHER), torch.device("cpu"), epochs=1, batch_size=64) as session,
    ):
        session.on_epoch(EpochRecord(0, 1.0, 0.5, 0.1, 1.0))
    assert not run.network(TEACHER).places.curves.exists()
