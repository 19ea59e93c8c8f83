"""What the tests of stages share: a small run of which nothing was trained, up to the exported files."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Params, load_params
from pipeline.data.store import read_card, read_split
from pipeline.store.paths import DATA, ENERGY, ENERGY_TEST, STUDENT, SUBSET, TEACHER
from pipeline.store.tables import sha256_file, write_table
from pipeline.training.card import checkpoint_card, network_card
from pipeline.training.weights import build_network, write_network
from tests.conftest import ROOT
from tests.e2e.test_repro import set_params

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

    folder = tmp_path_factory.mktemp("exported")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "targets/examples", folder / "targets/examples")
    (folder / "targets/results.json").write_text("{}\n")
    set_params(folder, SMALL)
    with contextlib.chdir(folder):
        params = load_params()
        prepare(params)
        write_chain(params)
        export(params)
    return folder


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


def write_chain(params: Params, seed: int = 0) -> dict[str, str]:
    """All from the teacher to the student, of the prepared data; returns the lineage of an export."""
    from stages.build_subset import build_subset

    data = read_card(DATA)
    made_from = {"data": data["fingerprint"], "teacher": write_untrained(TEACHER, "teacher", data, {}, seed)}
    write_scores(ENERGY, "train", made_from)
    made_from["energy"] = sha256_file(ENERGY)
    write_scores(ENERGY_TEST, "test", made_from)
    build_subset(params)
    taught = {key: made_from[key] for key in ("teacher", "energy")} | {"subset": sha256_file(SUBSET)}
    return made_from | {"student": write_untrained(STUDENT, "student", data, taught, seed)}


def write_untrained(folder: Path, role: str, data: dict, lineage: dict[str, str], seed: int) -> str:
    """Weights as they are drawn; returns their hash."""
    torch.manual_seed(seed + len(role))
    network = build_network("resnet8", len(data["class_names"]), f"{role}.network")
    settings = {"distill": {}, "heda": {}} if role == "student" else {}
    card = network_card(role, "resnet8", data, lineage) | checkpoint_card(0.1) | settings
    return write_network(folder, network, card)["weights_sha256"]


def write_scores(path: Path, split: str, made_from: dict[str, str]) -> None:
    """Energies by chance, the upper fifth high and the lower fifth low."""
    labels = np.asarray(read_split(DATA, split).labels)
    energy = np.random.default_rng(0).normal(-8, 1, len(labels)).astype(np.float32)
    low, high = np.quantile(energy, (0.2, 0.8))
    columns = {
        "index": np.arange(len(labels)),
        "label": labels,
        "energy": energy,
        "confidence": np.full(len(labels), 0.5, np.float32),
        "correct": np.zeros(len(labels), bool),
        "group": (1 + (energy > high) - (energy < low)).astype(np.int8),
    }
    thresholds = {"low_threshold": float(low), "high_threshold": float(high)}
    write_table(path, columns, {**made_from, **thresholds, "temperature": 4.0, "split": split})
