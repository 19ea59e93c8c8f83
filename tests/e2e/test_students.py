"""Several students of one teacher, as a user adds, changes, compares and removes them with DVC."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.lineage import Places
from tests.conftest import STUDENT
from tests.e2e.conftest import LARGE, STUDENTS, of
from tests.e2e.repository import (
    changed_stages,
    command,
    git,
    run_here,
    set_params,
    snapshot,
    stages_in,
)

pytestmark = pytest.mark.e2e
OTHER = {"temperatures": {"high_energy": 3.0}}
MINUTES = 10  # for experiments of the queue, which run in the background


def folders(name: str) -> list[Path]:
    """Those that hold all of a student."""
    places = Places().network(name)
    return [places.weights.parent, places.evaluation.parent]


def files_of(folder: Path, name: str) -> dict[str, bytes]:
    tops = tuple(f"{each}/" for each in folders(name))
    return {path: content for path, content in snapshot(folder).items() if path.startswith(tops)}


def test_git_and_dvc_put_no_file_of_their_own_beside_outputs(finished):
    assert not [
        path for top in ("artifacts", "reports/students", "reports/teacher") for path in finished.glob(f"{top}/**/.*")
    ]
    assert changed_stages(finished) == set()
    assert git(finished, "status", "--porcelain") == ""


def test_what_a_student_left_that_is_not_listed_makes_nothing_run_once_check_has_removed_it(finished):
    left = finished / folders("left")[0] / "export/export.json"
    left.parent.mkdir(parents=True)
    left.touch()
    assert changed_stages(finished) == {"benchmark", "report"}
    assert "artifacts/students/left is removed, because params.yaml has no such student" in run_here(finished, "check")
    assert changed_stages(finished) == set()


def test_a_tag_registers_the_folder_to_deploy(finished, tmp_path):
    git(finished, "tag", "--annotate", "deploy@v1.0.0", "--message", "first")
    command(finished, "dvc", "artifacts", "get", ".", "deploy", "--rev", "v1.0.0", "--out", str(tmp_path / "deploy"))
    got = {path.name: path.read_bytes() for path in (tmp_path / "deploy").iterdir()}
    assert got == {path.name: path.read_bytes() for path in (finished / "artifacts/deploy").iterdir()}
    command(tmp_path / "deploy", "sha256sum", "--check", "SHA256SUMS")


def test_a_student_that_fails_stops_no_changed_one(finished_once, own_home, tmp_path):
    mine = shutil.copytree(finished_once, tmp_path / "mine", symlinks=True)
    before = {name: files_of(mine, name) for name in STUDENTS}
    changed = STUDENTS | {LARGE: STUDENTS[LARGE] | OTHER}
    set_params(mine, {"students": {"wild": {"training": {"learning_rate": 1e9}}} | changed})
    failed = command(mine, "dvc", "repro", "--keep-going", check=False)
    assert failed.returncode != 0
    assert stages_in(failed.stdout) == [*of("wild")[:1], *of(LARGE)]
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "error: wild: the loss was not finite at epoch 0" in errors[0]
    assert "lower students.wild.training.learning_rate" in errors[0]
    assert changed_stages(mine) == {*of("wild"), "benchmark", "report"}
    assert files_of(mine, LARGE) != before[LARGE]
    assert files_of(mine, STUDENT) == before[STUDENT]

    exports = {"export_teacher", *(f"export@{name}" for name in changed)}
    set_params(mine, {"students": changed, "export.teacher": False})
    assert changed_stages(mine) == {*exports, "benchmark", "report"}
    assert {*stages_in(command(mine, "dvc", "repro").stdout)} == {*exports, "evaluate_teacher", "benchmark", "report"}
    timed = json.loads((mine / "reports/benchmark.json").read_text())["rows"]
    assert {row["role"] for row in timed} == {"student"}


@pytest.fixture(scope="module")
def mine(finished, tmp_path_factory) -> Path:
    """The finished run, pushed to a folder, and two experiments of the queue, each begun in another way."""
    command(finished, "dvc", "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("store")))
    git(finished, "commit", "--quiet", "--all", "--message", "remote")
    command(finished, "dvc", "push")
    log = tmp_path_factory.mktemp("log") / "queue.txt"  # no pipe, which would stay open until the idle worker ends
    for name, choice, begin in (("first", "most_accurate", "queue start"), ("second", "fastest", "exp run --run-all")):
        change = f"budget.choose={choice}"
        command(finished, "dvc", "exp", "run", "--queue", "--name", name, "--set-param", change)
        command(finished, "sh", "-c", f"dvc {begin} >> {log} 2>&1")
        deadline = time.monotonic() + 60 * MINUTES
        while (found := queue(finished)).get(name) not in ("Success", "Failed"):
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        assert found[name] == "Success", command(finished, "dvc", "queue", "logs", name, check=False).stdout
    with contextlib.chdir(finished), Repo() as repository:
        repository.experiments.celery_queue.shutdown()
    return finished


def queue(folder: Path) -> dict[str, str]:
    """State of each experiment of the queue."""
    with contextlib.chdir(folder), Repo() as repository:
        return {task["name"]: task["status"] for task in repository.experiments.celery_queue.status()}


def test_queued_experiments_run_outside_of_the_workspace(mine):
    listed = command(mine, "dvc", "exp", "list", "--name-only").stdout.split()
    assert {"first", "second"} <= {*listed}
    assert git(mine, "status", "--porcelain") == ""


def test_experiments_are_compared_and_a_removed_student_leaves_nothing_and_comes_back_from_the_cache(mine, tmp_path):
    before = files_of(mine, LARGE)
    colleague, stranger = tmp_path / "colleague", tmp_path / "stranger"
    git(tmp_path, "clone", "--quiet", str(mine), str(colleague))
    command(colleague, "dvc", "pull")

    extra = f"+students.extra={{temperatures: {{high_energy: {OTHER['temperatures']['high_energy']}}}}}"
    assert experiment(mine, "added", extra, "export@extra") == of("extra")[:2]
    assert {stage for stage in changed_stages(mine) if "@" in stage} == {*of("extra")[2:]}
    git(mine, "checkout", "--quiet", "--", ".")
    command(mine, "dvc", "checkout")
    assert changed_stages(mine) == set()
    assert experiment(mine, "removed", f"~students.{LARGE}") == ["benchmark", "report"]
    assert not any((mine / folder).exists() for folder in folders(LARGE))
    assert [*json.loads((mine / "reports/metrics.json").read_text())["students"]] == [STUDENT]
    assert changed_stages(mine) == set()

    table = command(mine, "dvc", "exp", "show", "--csv").stdout
    rows = {row["Experiment"] or row["rev"]: row for row in csv.DictReader(io.StringIO(table))}
    assert {"added", "first", "second", "removed"} <= rows.keys()
    assert rows["second"]["budget.choose"] == "fastest"
    for name in STUDENTS:
        assert float(rows["second"][f"students.{name}.top1"]) >= 0
        assert float(rows["second"][f"students.{name}.latency_p50_ms"]) > 0
    assert rows["removed"][f"students.{LARGE}.top1"] == ""
    differences = json.loads(command(mine, "dvc", "metrics", "diff", "HEAD", "removed", "--json").stdout)
    assert differences["reports/metrics.json"][f"students.{LARGE}.top1"]["new"] is None
    plots = json.loads(command(mine, "dvc", "plots", "diff", "HEAD", "removed", "--json").stdout)["data"]
    drawn = {(point["student"], point["rev"]) for point in plots["learning curves"][0]["content"]["data"]["values"]}
    both = {(name, rev) for name in ("teacher", STUDENT) for rev in ("HEAD", "removed")}
    assert drawn == both | {(LARGE, "HEAD")}

    git(mine, "commit", "--quiet", "--all", "--message", "one student")
    command(mine, "dvc", "push")
    git(tmp_path, "clone", "--quiet", str(mine), str(stranger))
    command(stranger, "dvc", "pull")
    git(colleague, "pull", "--quiet")
    command(colleague, "dvc", "pull")
    for folder in (stranger, colleague):
        assert changed_stages(folder) == set()
        assert snapshot(folder) == snapshot(mine)

    set_params(mine, {"students": STUDENTS})
    output = command(mine, "dvc", "repro", *of(LARGE)).stdout
    assert all(f"Stage '{stage}' is cached - skipping run" in output for stage in of(LARGE))
    assert files_of(mine, LARGE) == before


def experiment(folder: Path, name: str, change: str, *targets: str) -> list[str]:
    """The stages that an experiment with a changed parameter ran, in the workspace."""
    return stages_in(command(folder, "dvc", "exp", "run", "--name", name, "--set-param", change, *targets).stdout)
