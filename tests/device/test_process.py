"""The environment of a worker."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.device.benchmark.process import run_worker

SPIN_COUNT = "GOMP_SPINCOUNT"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Starts a worker that only records its environment; returns that."""

    def start(kind: str) -> dict[str, str]:
        seen: dict[str, str] = {}

        def run(command, **options):
            seen.update(options["env"])
            (tmp_path / "result.json").write_text("{}")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        run_worker({"pass": kind, "output": str(tmp_path / "result.json")}, limit_seconds=1, name="worker")
        return seen

    return start


@pytest.mark.parametrize("kind", ["accuracy", "memory"])
def test_threads_of_a_pass_that_times_nothing_do_not_spin_for_long(environment, monkeypatch, kind):
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    assert int(environment(kind)[SPIN_COUNT]) < 10_000


@pytest.mark.parametrize("kind", ["round", "cold", "throughput", "sustained", "power"])
def test_what_is_timed_runs_as_it_is_delivered(environment, monkeypatch, kind):
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    assert SPIN_COUNT not in environment(kind)


def test_what_the_user_has_set_stays(environment, monkeypatch):
    monkeypatch.setenv(SPIN_COUNT, "123456")
    assert environment("accuracy")[SPIN_COUNT] == "123456"
