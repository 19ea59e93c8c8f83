"""The files of a finished run in NVIDIA's own parser and builder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import STUDENTS
from tests.runtimes.test_tensorrt_rtx import PLANS, objects, packages, python, quantised

__all__ = ["packages"]
pytestmark = pytest.mark.e2e


def test_every_file_for_tensorrt_is_planned_in_its_precision(finished_once: Path, packages: Path) -> None:
    folders = [*(finished_once / "artifacts/students" / name / "export" for name in STUDENTS)]
    folders.append(finished_once / "artifacts/teacher_export")
    listed = [
        (folder / file["name"], file["precision"])
        for folder in folders
        for file in json.loads((folder / "export.json").read_text())["files"]
        if file["format"] == ("tensorrt" if file["precision"] == "int8" else "onnx")
    ]
    assert Counter(precision for _, precision in listed) == {"fp32": 3, "int8": 2}
    plans = objects(python(packages, "-c", PLANS, *(word for each in listed for word in each)))
    for (path, precision), found in zip(listed, plans, strict=True):
        assert found["layers_not_judged"] == []
        layers = Counter(found["compute_layers"].values())
        assert layers[precision] == (quantised(path) if precision == "int8" else layers.total())
