"""The stage graph against the code: what a stage runs, reads and writes is what dvc.yaml says."""

from __future__ import annotations

import ast
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
)
# portable holds the scorer of accuracy, which decides numbers of these
SCORED = ("evaluate", "benchmark", "measure")
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
    *("distillation", "export", "remote", "targets", "evaluation", "report", "ablation"),
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


def code_of(stage: str) -> set[str]:
    """The files that decide a stage's numbers: all that its program imports, directly or not, but through those that
    decide none."""
    no_number = INFRASTRUCTURE if stage in SCORED else (*INFRASTRUCTURE, "pipeline/portable/")
    queue, seen = [ROOT / "stages" / f"{stage}.py"], set()
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
    used = code_of(stage)
    missing = {file for file in used if not any(file == dep or file.startswith(dep + "/") for dep in listed)}
    unused = {dep for dep in listed if not any(file == dep or file.startswith(dep + "/") for file in used)}
    assert not missing, f"add to deps of {stage}"
    assert not unused, f"remove from deps of {stage}"
    assert all(dep == "models" or dep.count("/") == 1 for dep in listed), "packages, not files"


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_is_the_program_of_its_name(stage):
    assert GRAPH[stage]["cmd"] == f"python -m stages.{stage}"
    assert (ROOT / "stages" / f"{stage}.py").exists()


def test_the_stages_of_a_device_run_at_the_root_and_are_the_programs_of_their_names():
    for stage, entry in DEVICE_GRAPH.items():
        commands = [entry["cmd"]] if isinstance(entry["cmd"], str) else entry["cmd"]
        assert commands[0] == f"python -m stages.{stage} DEVICE"
        assert (ROOT / "stages" / f"{stage}.py").exists()
        assert (ROOT / "targets/DEVICE" / entry["wdir"]).resolve() == ROOT


def test_every_setting_of_a_device_that_changes_what_is_measured_or_shown_is_a_parameter_of_its_stages():
    listed = {
        entry
        for stage in DEVICE_GRAPH.values()
        for file in stage["params"]
        for entry in file["targets/DEVICE/device.yaml"]
    }
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


def test_latencies_are_never_cached_and_trained_weights_always():
    cached = {
        path: isinstance(out, str)
        for stage in GRAPH.values()
        for out in outputs(stage)
        for path in ([out] if isinstance(out, str) else out)
    }
    assert not cached["reports/benchmark.json"]
    assert cached["artifacts/teacher"]
    assert cached["artifacts/student"]


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
