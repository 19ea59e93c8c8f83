"""The stage graph against the code: what a stage runs, reads and writes is what dvc.yaml says."""

from __future__ import annotations

import ast
import shlex
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

GRAPH = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# of a device called DEVICE, relative to the root as well
DEVICE_GRAPH = YAML(typ="safe").load(ROOT / "targets/examples/stages.yaml")["stages"]
ALL_STAGES = GRAPH | DEVICE_GRAPH
PACKAGES = ("pipeline", "models", "stages")
TRAVELS = ("portable", "runtimes", "device")
# what decides no number: a change there must not train anything anew
INFRASTRUCTURE = (
    *("pipeline/__init__.py", "pipeline/errors.py", "pipeline/config.py", "pipeline/lineage.py", "pipeline/targets.py"),
    *("pipeline/store/", "stages/__init__.py", "stages/common.py", "stages/curves.py", "stages/launcher.py"),
    *("stages/environment_error.py", "stages/missing_images.py", "stages/output.py", "stages/progress.py"),
    "stages/students.py",
)
# portable holds the scorer of accuracy, which decides numbers of these
SCORED = ("evaluate", "benchmark", "measure")
STUDENT = "${item.student}"  # what DVC replaces by the name of each student
OF_STUDENTS = ("distill", "export", "evaluate")
OF_TEACHER = {"export_teacher": "export", "evaluate_teacher": "evaluate"}  # stage -> its program
# the rooms of the library from the ground up: each imports from those before it only
FLOORS = [
    *(
        "errors",
        "portable",
        "config",
        "store",
        "lineage",
        "compute",
        "runtimes",
        "device",
        "data",
        "training",
        "energy",
    ),
    *("soft_labels", "distillation", "export", "remote", "targets", "evaluation", "report", "ablation"),
]


def modules_imported_by(path: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                base = ROOT / name.replace(".", "/")
                found |= {file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()}
    return found


def code_of(program: str) -> set[str]:
    """The files that decide the numbers of a stage with this program: all that it imports, directly or not, but through
    those that decide none."""
    no_number = INFRASTRUCTURE if program in SCORED else (*INFRASTRUCTURE, "pipeline/portable/")
    queue, seen = [ROOT / "stages" / f"{program}.py"], set()
    while queue:
        path = queue.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in seen and not name.startswith(no_number):
            seen.add(name)
            queue += modules_imported_by(path)
    return seen


@pytest.mark.parametrize("stage", [stage for stage in ALL_STAGES if stage != "show"])
def test_a_stage_depends_on_the_packages_that_decide_its_numbers_and_no_other(stage):
    listed = {dep for dep in ALL_STAGES[stage]["deps"] if dep.split("/")[0] in PACKAGES}
    used = code_of(OF_TEACHER.get(stage, stage))
    missing = {file for file in used if not any(file == dep or file.startswith(dep + "/") for dep in listed)}
    unused = {dep for dep in listed if not any(file == dep or file.startswith(dep + "/") for file in used)}
    assert not missing, f"add to deps of {stage}"
    assert not unused, f"remove from deps of {stage}"
    assert all(dep == "models" or dep.count("/") == 1 for dep in listed), "packages, not files"


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_is_the_program_of_its_name_for_each_student_or_the_teacher(stage):
    program = OF_TEACHER.get(stage, stage)
    network = {**dict.fromkeys(OF_STUDENTS, f" '{STUDENT}'"), **dict.fromkeys(OF_TEACHER, " teacher")}.get(stage, "")
    assert GRAPH[stage]["cmd"] == f"python -m stages.{program}{network}"
    assert (ROOT / "stages" / f"{program}.py").exists()
    assert GRAPH[stage].get("matrix") == ({"student": "${students}"} if stage in OF_STUDENTS else None)


@pytest.mark.parametrize("stage", OF_STUDENTS)
def test_a_name_reaches_the_stage_as_one_word(stage):
    """So that the stage refuses it in one sentence, and the shell runs nothing in it."""
    for name in ("a b", "$(touch owned)", "a;b"):
        assert shlex.split(GRAPH[stage]["cmd"].replace(STUDENT, name))[3:] == [name]


def test_the_stages_of_the_teacher_depend_on_its_files_as_those_of_a_student_do_on_its_own():
    for stage, program in OF_TEACHER.items():
        ours, theirs = ({*GRAPH[name]["deps"]} for name in (program, stage))
        assert {dep for dep in ours if STUDENT not in dep} - {"artifacts/teacher/card.json"} == {
            dep for dep in theirs if not dep.startswith("artifacts/teacher")
        }
        assert "artifacts/teacher" in theirs
        assert GRAPH[stage]["params"] == GRAPH[program]["params"]


def test_a_student_depends_on_its_own_files_and_entry_alone():
    """A change of one entry must not train another student."""
    for stage in OF_STUDENTS:
        params, deps = GRAPH[stage].get("params", []), GRAPH[stage]["deps"]
        assert {entry for entry in params if "students" in entry} <= {f"students.{STUDENT}"}
        assert not {dep for dep in deps if "students" in dep and STUDENT not in dep}
        assert all(STUDENT in path for path in paths_of(GRAPH[stage]))


def test_git_and_dvc_leave_no_file_of_their_own_in_folders_that_stages_depend_on():
    """DVC writes a .gitignore beside an output that git does not ignore yet; in a folder that a stage depends on, it
    would be part of the state of that stage, which had changed as soon as it was written."""
    outs = {path.replace(STUDENT, "small") for stage in GRAPH.values() for path in paths_of(stage)}
    folders = {dep.replace(STUDENT, "small") for stage in ALL_STAGES.values() for dep in stage["deps"]} - outs
    inside = {path for path in outs if any(path.startswith(f"{folder}/") for folder in folders)}
    assert {"artifacts/students/small/network", "reports/students/small/evaluation.json"} <= inside
    command = ["git", "check-ignore", "--no-index", *sorted(inside)]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert set(ignored) == inside


def test_what_is_measured_of_all_networks_depends_on_the_folder_of_all_students_and_on_their_list():
    for stage in (GRAPH["benchmark"], GRAPH["report"], DEVICE_GRAPH["measure"]):
        assert "artifacts/students" in stage["deps"]
        assert "artifacts/teacher_export" in stage["deps"]
        assert "students" in stage["params"]


def test_the_stages_of_a_device_run_at_the_root_and_are_the_programs_of_their_names():
    for stage, entry in DEVICE_GRAPH.items():
        commands = [entry["cmd"]] if isinstance(entry["cmd"], str) else entry["cmd"]
        assert commands[0] == f"python -m stages.{stage} DEVICE"
        assert (ROOT / "stages" / f"{stage}.py").exists()
        assert (ROOT / "targets/DEVICE" / entry["wdir"]).resolve() == ROOT


def test_every_setting_of_a_device_that_changes_what_is_measured_or_shown_is_a_parameter_of_its_stages():
    files = [file for stage in DEVICE_GRAPH.values() for file in stage["params"] if isinstance(file, dict)]
    listed = {entry for file in files for entry in file["targets/DEVICE/device.yaml"]}
    settings = YAML(typ="safe").load(ROOT / "targets/examples/jetson.yaml")
    assert listed == settings.keys() - {"timeout_minutes"}


def test_no_clone_needs_a_device():
    """No pipeline of a device has an output that the report reads, and DVC finds none before a device is added."""
    assert "targets/results.json" in GRAPH["report"]["deps"]
    outs = {path for stage in DEVICE_GRAPH.values() for out in stage.get("outs", []) for path in out}
    assert outs.isdisjoint(GRAPH["report"]["deps"])
    assert not list((ROOT / "targets/examples").rglob("dvc.yaml"))


def test_every_parameter_belongs_to_a_stage_that_lists_it():
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    listed = {entry for stage in GRAPH.values() for entry in stage.get("params", [])}
    for block, value in params.items():
        for key in value if isinstance(value, dict) else [None]:
            name = block if key is None else f"{block}.{key}"
            # where to compute, not what
            assert name in listed or block in listed or block in ("device", "launcher"), name


def outputs(stage: dict) -> list:
    return [*stage.get("outs", []), *stage.get("metrics", [])]


def paths_of(stage: dict) -> list[str]:
    """The paths of its outputs."""
    return [path for out in outputs(stage) for path in ([out] if isinstance(out, str) else out)]


def test_latencies_are_never_cached_and_trained_weights_always():
    cached = {
        path: isinstance(out, str)
        for stage in GRAPH.values()
        for out in outputs(stage)
        for path in ([out] if isinstance(out, str) else out)
    }
    assert not cached["reports/benchmark.json"]
    assert cached["artifacts/teacher"]
    assert cached[f"artifacts/students/{STUDENT}/network"]


def room(path: Path) -> str:
    """The package of the library that a file is in, or its own name for a file directly in pipeline/."""
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def test_the_library_imports_downwards_only():
    for path in (ROOT / "models").rglob("*.py"):
        assert {file.relative_to(ROOT).parts[0] for file in modules_imported_by(path)} <= {"models"}, path
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        imported = modules_imported_by(path) - {ROOT / "pipeline/__init__.py"}
        assert not {file for file in imported if file.relative_to(ROOT).parts[0] == "stages"}, path
        rooms = {room(file) for file in imported if file.relative_to(ROOT).parts[0] == "pipeline"} - {room(path)}
        assert all(FLOORS.index(other) < FLOORS.index(room(path)) for other in rooms), f"{path} imports {rooms}"


@pytest.mark.parametrize("package", TRAVELS)
def test_what_travels_to_devices_needs_nothing_else_of_ours(package):
    for path in (ROOT / "pipeline" / package).rglob("*.py"):
        others = {file.relative_to(ROOT / "pipeline").parts[0] for file in modules_imported_by(path)}
        assert others <= {*TRAVELS, "__init__.py"}, path
