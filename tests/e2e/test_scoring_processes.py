"""The stage score_energy in several processes against one: the same bytes, one voice, and an end for all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.store import read_card
from pipeline.store.paths import CHECKPOINTS, DATA, ENERGY, TEACHER
from pipeline.training.card import card_facts, checkpoint_facts
from pipeline.training.weights import build_network, write_network
from tests.conftest import ROOT
from tests.e2e.repository import run_here, set_params, snapshot

pytestmark = pytest.mark.e2e
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# the stage with parts of one batch, a record of the batches, and something that happens at one training image
PROGRAM = """
import os, signal, sys, torch
from pipeline.compute import parts
from pipeline.energy import scoring
from stages.launcher import run_together
from stages.score_energy import score_energy

happens, at = sys.argv[1], int(sys.argv[2])
logits_in_batches = scoring.logits_in_batches

def watched(teacher, images, rows):
    for batch, logits in logits_in_batches(teacher, images, rows):
        there = (batch.index == at) & (len(images) > 1000)
        if happens == "kill" and there.any():
            os.kill(os.getpid(), signal.SIGKILL)
        with open("batches.txt", "a") as file:
            file.write(f"{len(images)} {int(batch.index[0])}\\n")
        yield batch, torch.where(there[:, None] & (happens == "overflow"), float("nan"), logits)

scoring.logits_in_batches = watched
parts.BATCHES_PER_PART = 1
run_together(score_energy, "stages.score_energy")
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def prepare(folder: Path, **data: object) -> Path:
    """A store and an untrained teacher."""
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, {"device": "cpu", **{f"data.{key}": value for key, value in data.items()}})
    (folder / "program.py").write_text(PROGRAM)
    run_here(folder, "prepare")
    card = read_card(folder / DATA)
    torch.manual_seed(0)
    network = build_network("resnet8", len(card.class_names), "teacher.network")
    write_network(folder / TEACHER, network, card_facts("teacher", "resnet8", card, {}) | checkpoint_facts(0.1))
    return folder


def rescored(folder: Path) -> list[str]:
    """Split size and first image of each batch since the last call, in order."""
    path = folder / "batches.txt"
    lines = sorted(path.read_text().splitlines(), key=lambda line: [int(word) for word in line.split()])
    path.unlink()
    return lines


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory) -> Path:
    """The scores by one process of 1,294 and 359 images: 6 and 2 parts, the last ones smaller."""
    folder = shutil.copytree(digits, tmp_path_factory.mktemp("alone") / "run")
    result = python(folder, "program.py", "nothing", "0")
    assert result.returncode == 0, result.stderr
    assert len(rescored(folder)) == 8
    return folder


@pytest.fixture
def workspace(digits, tmp_path) -> Path:
    return shutil.copytree(digits, tmp_path / "run")


def test_two_processes_share_the_parts_and_give_the_bytes_of_one(workspace, alone):
    result = python(workspace, *TORCHRUN, "program.py", "nothing", "0")
    assert result.returncode == 0, result.stderr
    assert snapshot(workspace) == snapshot(alone)
    assert len(rescored(workspace)) == 8
    assert result.stdout.count("energy of 1,294 training images") == 1
    assert result.stderr.count("score_energy 100% in") == 1
    assert len(list((workspace / CHECKPOINTS).glob("energy-*/finished"))) == 1


def test_two_processes_killed_and_gone_on_as_one_do_no_finished_part_again(workspace, alone):
    killed = python(workspace, *TORCHRUN, "program.py", "kill", "800")  # in the second process's second part
    assert killed.returncode != 0
    assert not (workspace / ENERGY).exists()
    assert "1294 256" in rescored(workspace)
    kept = {int(path.name.split("-")[0]) for path in (workspace / CHECKPOINTS).rglob("*.npz")}
    assert {0, 256} <= kept
    assert 768 not in kept
    result = python(workspace, "program.py", "nothing", "0")
    assert result.returncode == 0, result.stderr
    again = rescored(workspace)
    assert again == [f"359 {start}" for start in (0, 256)] + [
        f"1294 {start}" for start in range(0, 1294, 256) if start not in kept
    ]
    assert snapshot(workspace) == snapshot(alone)


def test_an_energy_that_is_not_finite_in_the_second_process_ends_both_with_one_sentence(workspace):
    before = snapshot(workspace)
    result = python(workspace, *TORCHRUN, "program.py", "overflow", "300")
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "not finite, the first at index 300; its weights are damaged" in errors[0]
    assert snapshot(workspace) == before
    assert not result.stdout


@pytest.mark.usefixtures("one_thread")
def test_more_processes_than_parts_of_decoded_files(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        for i in range(40):
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photos/train/{name}/{i}.jpg")
    prepare(tmp_path, name="imagefolder", root="photos", storage="files")
    run_here(tmp_path, "score_energy")
    made = snapshot(tmp_path)
    shutil.rmtree(tmp_path / "reports")
    (tmp_path / ENERGY).unlink()
    result = python(tmp_path, *TORCHRUN, "-m", "stages.score_energy")
    assert result.returncode == 0, result.stderr
    assert snapshot(tmp_path) == made
