"""The files that the stage export writes of a finished run in NVIDIA's own parser and builder."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import TEACHER
from pipeline.lineage import Places
from tests.conftest import STUDENT
from tests.e2e.repository import run_here, set_params
from tests.runtimes.test_tensorrt_rtx import PLANS, objects, packages, python, quantised

__all__ = ["packages"]
pytestmark = pytest.mark.e2e


def test_every_file_for_tensorrt_is_planned_in_its_precision(
    finished_once: Path, packages: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(finished_once, tmp_path / "mine", symlinks=True)
    set_params(mine, {"export.precisions": ["fp32", "fp16", "int8"], "export.tensorrt": True})
    listed = []
    for name in (STUDENT, TEACHER):
        run_here(mine, "export", name)
        folder = mine / Places().network(name).export
        listed += [
            (folder / file["name"], file["precision"])
            for file in json.loads((folder / "export.json").read_text())["files"]
            if file["format"] == ("tensorrt" if file["precision"] == "int8" else "onnx")
        ]
    assert sorted(precision for _, precision in listed) == ["fp16", "fp32", "fp32", "int8"]
    plans = objects(python(packages, "-c", PLANS, *(word for each in listed for word in each)))
    for (path, precision), found in zip(listed, plans, strict=True):
        assert found["layers_not_judged"] == []
        layers = Counter(found["compute_layers"].values())
        assert layers[precision] == (quantised(path) if precision == "int8" else layers.total())
