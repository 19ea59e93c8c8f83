"""A clone of this repository with a configuration that runs in a minute, and what a `dvc repro` in it gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from ruamel.yaml import YAML

from pipeline.config import load_params
from pipeline.portable.files import sha256_file
from pipeline.store.paths import ARTIFACTS, CHECKPOINTS, DEPLOY, PARAMS, REPORTS

ROOT = Path(__file__).parents[2]


def _stages() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name as DVC shows it, and entry of dvc.yaml, of each stage; those of students for each in params.yaml."""
    students = load_params(ROOT / PARAMS).students
    for stage, entry in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].items():
        if "matrix" not in entry:
            yield stage, entry
        for name in students if "matrix" in entry else ():
            yield f"{stage}@{name}", json.loads(json.dumps(entry).replace("${item.student}", name))


GRAPH = dict(_stages())
STAGES = tuple(GRAPH)
MEASURED = ("benchmark", "report")  # their outputs hold times, or are chosen by them
# the paper's method, and little of what is made and measured after the training
QUICK: Mapping[str, object] = {
    "heda.mix": "cutmix",
    "distill.temperatures.mode": "groups",
    "distill.temperatures.low_energy": 6.0,
    "distill.temperatures.high_energy": 2.0,
    "export.calibration.images": 32,
    "export.parity.images": 64,
    "export.parity.max_top1_drop": 1.0,
    "benchmark.runtimes": ["onnxruntime"],
    "benchmark.rounds": 2,
    "benchmark.warmup_count": 2,
    "benchmark.warmup_seconds": 0.01,
    "benchmark.min_seconds": 0.02,
    "benchmark.min_count": 40,
    "benchmark.images": 64,
    "benchmark.cold_rounds": 0,
    "benchmark.memory_pass": False,
    "budget.max_top1_drop": 1.0,
}
SMALL: Mapping[str, object] = {
    **QUICK,
    "device": "cpu",
    "data.image_size": 16,
    "data.augmentation.crop.padding": 2,
    "teacher.network": "resnet8",
    "teacher.minimum_top1": 0.05,
    "teacher.training.epochs": 8,
    "teacher.training.precision": "fp32",  # one that is chosen by timing may differ from run to run
    "soft_labels.views": 20,  # which no student uses: distill runs the teacher
    "distill.training.epochs": 8,
    "distill.training.precision": "fp32",
}


def set_params(path: Path, values: Mapping[str, object]) -> None:
    """Set values of a YAML file, each under a key with dots, and keep the rest with its comments."""
    yaml = YAML()
    content = yaml.load(path)
    for key, value in values.items():
        block = content
        *outer, last = key.split(".")
        for part in outer:
            block = block[part]
        block[last] = value
    yaml.dump(content, path)


def clone(folder: Path, values: Mapping[str, object]) -> Path:
    """The files that git would clone, in a repository of their own, with ``values`` in params.yaml."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file() and not name.startswith(("reports/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    set_params(folder / PARAMS, values)
    commit = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "clone"]
    for arguments in (["init", "--quiet"], ["add", "--all"], commit):
        subprocess.run(["git", *arguments], cwd=folder, check=True)  # noqa: S607  the user's git
    return folder


def environment(folder: Path) -> dict[str, str]:
    """For programs in the clone: its own code, this interpreter, one thread unless set otherwise, as nothing here is
    big enough for more, and another home, so that no other measurement of this machine holds the lock."""
    home, temporary = (folder.with_name(f"{folder.name}-{use}") for use in ("home", "tmp"))
    for each in (home, temporary):
        each.mkdir(exist_ok=True)
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PYTHONUNBUFFERED": "1",
        "MPLCONFIGDIR": matplotlib.get_configdir(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HOME": str(home),
        "TMPDIR": str(temporary),
    }


def hashes(folder: Path, stage: str) -> dict[str, str]:
    """SHA-256 of each file that a stage wrote, by its path in the clone."""
    outs = [*GRAPH[stage]["outs"], *GRAPH[stage].get("metrics", [])]
    paths = [folder / name for out in outs for name in (out if isinstance(out, dict) else [out])]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def names(folder: Path) -> set[str]:
    """All that lies in the folders that stages write to, to find what a killed one left behind.

    Without the contents of crash folders, which belong to a run, and of the folder to deploy, which the times decide.
    """
    found = [*(folder / CHECKPOINTS).glob("*"), *(folder / ARTIFACTS).rglob("*"), *(folder / REPORTS).rglob("*")]
    return {path.relative_to(folder).as_posix() for path in found if folder / DEPLOY not in path.parents}
