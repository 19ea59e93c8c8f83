"""Fixtures for the tests of stages: a small run of which nothing was trained, up to the exported files."""

from __future__ import annotations

import contextlib
import io
import runpy
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest

from pipeline.config import TEACHER, load_params
from pipeline.lineage import Run
from tests.conftest import ROOT, STUDENT, made_once, write_chain
from tests.torture.clone import set_params

SMALL = {
    "data.image_size": 8,
    "export.precisions": ["fp32"],
    "export.openvino": False,
    "export.calibration.images": 32,
    "export.parity.images": 16,
    "evaluate.runtimes": ["onnxruntime"],
    "benchmark.runtimes": ["onnxruntime"],
}


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory) -> Path:
    from stages.export import export
    from stages.prepare import prepare

    def make(folder: Path) -> None:
        shutil.copy(ROOT / "params.yaml", folder)
        shutil.copytree(ROOT / "targets/examples", folder / "targets/examples")
        (folder / "targets/results.json").write_text("{}\n")
        set_params(folder / "params.yaml", SMALL)
        with contextlib.chdir(folder):
            params = load_params()
            prepare(params)
            write_chain(Run(), params)
            for network in (STUDENT, TEACHER):
                export(params, network)

    return made_once(tmp_path_factory, "exported", make)


@pytest.fixture
def exported(exported_once, tmp_path, monkeypatch) -> Path:
    """A copy to work in: digits of 8 pixels, an untrained student and teacher as ONNX, and the examples of targets/.

    The home folder is another one, so that no other measurement holds the lock of this machine.
    """
    folder = shutil.copytree(exported_once, tmp_path / "run")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    return folder


def run_program_here(stage: str, *arguments: str, expected: int = 0) -> str:
    """Standard error of a stage's program, run inside this process, which saves the imports."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), mock.patch.object(sys, "argv", [stage, *arguments]):
        try:
            runpy.run_module(f"stages.{stage}", run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    assert code == expected, said.getvalue()
    return said.getvalue()
