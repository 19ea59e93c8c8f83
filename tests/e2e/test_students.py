"""Several students of one teacher, as a user adds, changes, compares and removes them with DVC."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import pytest

from pipeline.lineage import Places
from tests.e2e.test_repro import command, own_home, set_params, snapshot, stages_run  # noqa: F401  (own_home: fixture)
from tests.e2e.test_sharing import UP_TO_DATE, check, git
from tests.torture.clone import QUICK
from tests.torture.clone import clone as clone_repository

pytestmark = pytest.mark.e2e
STUDENTS = {"small": {}, "large": {"network": "resnet14"}}
OTHER = {"temperatures": {"high_energy": 3.0}}
SMALL = {
    **QUICK,
    "device": "cpu",
    "data.image_size": 8,
    "data.augmentation.crop.padding": 1,
    "data.max_images_per_class": 20,
    "teacher.network": "resnet8",
    "teacher.minimum_top1": 0.0,  # of one epoch
    "teacher.training.epochs": 1,
    "teacher.training.precision": "fp32",  # one that is chosen by timing may differ from run to run
    "distill.training.epochs": 1,
    "distill.training.precision": "fp32",
    "students": STUDENTS,
    "export.precisions": ["fp32"],
    "export.openvino": False,
    "evaluate.runtimes": ["onnxruntime"],
    "benchmark.throughput": [],
}
MINUTES = 10  # for experiments of the queue, which run in the background


def of(name: str) -> list[str]:
    """The stages of a student."""
    return [f"{stage}@{name}" for stage in ("distill", "export", "evaluate")]


def folders(name: str) -> list[Path]:
    """Those that hold all of a student."""
    places = Places().network(name)
    return [places.weights.parent, places.evaluation.parent]


def files_of(folder: Path, name: str) -> dict[str, bytes]:
    tops = tuple(f"{each}/" for each in folders(name))
    return {path: content for path, content in snapshot(folder).items() if path.startswith(tops)}


def status(folder: Path) -> str:
    return command(folder, "dvc", "status").stdout.strip()


def restore(folder: Path) -> None:
    """Go back to what is committed."""
    git(folder, "checkout", "--quiet", "--", ".")
    command(folder, "dvc", "checkout")
    assert status(folder) == UP_TO_DATE


@pytest.fixture(scope="module")
def whole(tmp_path_factory, own_home) -> Path:  # noqa: F811
    """A finished run of two students, committed and pushed to a folder."""
    folder = tmp_path_factory.mktemp("mine") / "repository"
    clone_repository(folder, SMALL)
    for key in ("name", "email"):
        git(folder, "config", f"user.{key}", "t")  # dvc commits experiments
    ran = stages_run(folder)
    teacher = ["prepare", "train_teacher", "score_energy", "build_subset", "export_teacher", "evaluate_teacher"]
    assert sorted(ran) == sorted([*teacher, *of("small"), *of("large"), "benchmark", "report"])
    command(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("store")))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "two students")
    command(folder, "dvc", "push")
    return folder


@pytest.fixture
def mine(whole) -> Path:
    """As committed."""
    restore(whole)
    return whole


def test_git_and_dvc_put_no_file_of_their_own_beside_outputs(mine):
    assert not [
        path for top in ("artifacts", "reports/students", "reports/teacher") for path in mine.glob(f"{top}/**/.*")
    ]
    assert git(mine, "status", "--porcelain") == ""
    assert "Data and pipelines are up to date." in command(mine, "dvc", "repro").stdout


def test_a_changed_entry_runs_the_stages_of_its_student_and_what_measures_all(mine):
    before = snapshot(mine)
    set_params(mine, {"students": STUDENTS | {"large": STUDENTS["large"] | OTHER}})
    assert (
        re.findall(r"Running stage '(\S+)'", command(mine, "dvc", "repro", "distill@large").stdout) == of("large")[:1]
    )
    assert stages_run(mine) == [*of("large")[1:], "benchmark", "report"]
    assert files_of(mine, "large") != {path: before[path] for path in before if "/large/" in path}
    assert files_of(mine, "small") == {path: before[path] for path in before if "/small/" in path}


def test_a_removed_student_leaves_nothing_and_comes_back_from_the_cache(mine, tmp_path):
    base, before = git(mine, "rev-parse", "HEAD").strip(), files_of(mine, "large")
    colleague, stranger = tmp_path / "colleague", tmp_path / "stranger"
    git(tmp_path, "clone", "--quiet", str(mine), str(colleague))
    command(colleague, "dvc", "pull")

    set_params(mine, {"students": {"small": {}}})
    assert stages_run(mine) == ["benchmark", "report"]
    assert not any((mine / folder).exists() for folder in folders("large"))
    assert [*json.loads((mine / "reports/metrics.json").read_text())["students"]] == ["small"]
    assert status(mine) == UP_TO_DATE
    git(mine, "commit", "--quiet", "--all", "--message", "one student")
    command(mine, "dvc", "push")

    git(tmp_path, "clone", "--quiet", str(mine), str(stranger))
    command(stranger, "dvc", "pull")
    git(colleague, "pull", "--quiet")
    command(colleague, "dvc", "pull")
    for folder in (stranger, colleague):
        assert status(folder) == UP_TO_DATE
        assert snapshot(folder) == snapshot(mine)

    set_params(mine, {"students": STUDENTS})
    output = command(mine, "dvc", "repro", *of("large")).stdout
    assert all(f"Stage '{stage}' is cached - skipping run" in output for stage in of("large"))
    assert files_of(mine, "large") == before
    git(mine, "reset", "--quiet", "--hard", base)


def test_what_a_student_left_that_is_not_listed_makes_nothing_run_once_check_has_removed_it(mine):
    left = mine / folders("left")[0] / "network/weights.safetensors"
    left.parent.mkdir(parents=True)
    left.touch()
    assert status(mine) != UP_TO_DATE
    assert "artifacts/students/left is removed, because params.yaml has no such student" in check(mine, expected=0)
    assert status(mine) == UP_TO_DATE


def test_a_student_that_fails_stops_no_other(mine):
    wild = {"training": {"learning_rate": 1e9}}
    set_params(mine, {"students": {"wild": wild, "small": OTHER, "large": STUDENTS["large"]}})
    failed = command(mine, "dvc", "repro", "--keep-going", check=False)
    assert failed.returncode != 0
    assert re.findall(r"Running stage '(\S+)'", failed.stdout) == [*of("wild")[:1], *of("small")]
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "error: the loss was not finite at epoch 0" in errors[0]
    assert changed(mine) == of("wild")


def changed(folder: Path) -> list[str]:
    """The stages of students that `dvc status` names."""
    return re.findall(r"^(\S+@\S+):$", status(folder), re.MULTILINE)


def test_experiments_add_and_remove_students_and_are_compared(mine):
    extra = f"+students.extra={{temperatures: {{high_energy: {OTHER['temperatures']['high_energy']}}}}}"
    added = command(mine, "dvc", "exp", "run", "--name", "added", "--set-param", extra, "evaluate@extra").stdout
    assert re.findall(r"Running stage '(\S+)'", added) == of("extra")
    assert changed(mine) == []
    restore(mine)
    removed = command(mine, "dvc", "exp", "run", "--name", "removed", "--set-param", "~students.large").stdout
    assert re.findall(r"Running stage '(\S+)'", removed) == ["benchmark", "report"]
    assert not any((mine / folder).exists() for folder in folders("large"))
    restore(mine)
    chosen = command(mine, "dvc", "exp", "run", "--name", "chosen", "--set-param", "budget.choose=fastest").stdout
    assert re.findall(r"Running stage '(\S+)'", chosen) == ["report"]
    restore(mine)

    table = command(mine, "dvc", "exp", "show", "--csv").stdout
    rows = {row["Experiment"] or row["rev"]: row for row in csv.DictReader(io.StringIO(table))}
    assert rows["chosen"]["budget.choose"] == "fastest"
    for name in STUDENTS:
        assert float(rows["chosen"][f"students.{name}.top1"]) >= 0
        assert float(rows["chosen"][f"students.{name}.latency_p50_ms"]) > 0
    assert rows["removed"]["students.large.top1"] == ""
    differences = json.loads(command(mine, "dvc", "metrics", "diff", "HEAD", "removed", "--json").stdout)
    assert differences["reports/metrics.json"]["students.large.top1"]["new"] is None
    plots = json.loads(command(mine, "dvc", "plots", "diff", "HEAD", "removed", "--json").stdout)["data"]
    drawn = {(point["student"], point["rev"]) for point in plots["learning curves"][0]["content"]["data"]["values"]}
    assert drawn == {(name, rev) for name in ("teacher", "small") for rev in ("HEAD", "removed")} | {("large", "HEAD")}


def test_queued_experiments_run_outside_of_the_workspace(mine):
    for name, choice in (("first", "most_accurate"), ("second", "fastest")):
        change = f"budget.choose={choice}"
        command(mine, "dvc", "exp", "run", "--queue", "--name", name, "--set-param", change)
        command(mine, "dvc", *(("queue", "start") if name == "first" else ("exp", "run", "--run-all")))
        deadline = time.monotonic() + 60 * MINUTES
        while (found := queue(mine)).get(name) not in ("Success", "Failed"):
            assert time.monotonic() < deadline, found
            time.sleep(1)
        assert found[name] == "Success", command(mine, "dvc", "queue", "logs", name, check=False).stdout
    listed = command(mine, "dvc", "exp", "list", "--name-only").stdout.split()
    assert {"first", "second"} <= {*listed}
    assert git(mine, "status", "--porcelain") == ""


def queue(folder: Path) -> dict[str, str]:
    """State of each experiment of the queue."""
    lines = command(folder, "dvc", "queue", "status").stdout.splitlines()
    return {words[1]: words[-1] for words in map(str.split, lines) if len(words) > 3}


def test_a_tag_registers_the_folder_to_deploy(mine, tmp_path):
    git(mine, "tag", "--annotate", "deploy@v1.0.0", "--message", "first")
    command(mine, "dvc", "artifacts", "get", ".", "deploy", "--rev", "v1.0.0", "--out", str(tmp_path / "deploy"))
    got = {path.name: path.read_bytes() for path in (tmp_path / "deploy").iterdir()}
    assert got == {path.name: path.read_bytes() for path in (mine / "artifacts/deploy").iterdir()}
    command(tmp_path / "deploy", "sha256sum", "--check", "SHA256SUMS")
