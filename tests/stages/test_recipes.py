"""Recipes: complete parameter files, each of which runs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import load_params
from pipeline.lineage import Run
from tests.conftest import ROOT
from tests.e2e.repository import set_params
from tests.stages.conftest import run_program_here

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALL = {
    "data.name": "imagefolder",
    "data.root": "photos",
    "data.image_size": 32,
    "data.imbalance_factor": 1.0,
    "device": "cpu",
    "teacher.initial_weights": None,
    "teacher.minimum_top1": 0.0,
    "distill.initial_weights": None,
    **{
        f"{block}.training.{key}": value
        for block in ("teacher", "distill")
        for key, value in {
            "epochs": 1,
            "batch_size": 16,
            "schedule": "cosine",
            "milestones": [],
            "warmup_epochs": 0,
        }.items()
    },
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(40):
            pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"train/{name}/{number}.jpg")
    return folder


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_at_small_size(recipe, photos, tmp_path):
    shutil.copy(recipe, tmp_path / "params.yaml")
    (tmp_path / "photos").symlink_to(photos)
    views = min(load_params(recipe).soft_labels.views, 1)
    set_params(tmp_path, SMALL | {"soft_labels.views": views})
    with contextlib.chdir(tmp_path):
        for stage in ("prepare", "train_teacher", "score_energy", "build_subset", "store_soft_labels"):
            run_program_here(stage)
        wanted = load_params()
        (name,) = wanted.students
        run_program_here("distill", name)
        student = Run().network(name).card
    assert student.network == wanted.distill.network
    assert (student.epochs, student.image.resize) == (1, wanted.data.resize)
    assert student.distill["training"]["optimizer"] == wanted.distill.training.optimizer


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_explains_its_knobs_as_params_yaml_does(recipe):
    def explained(path: Path) -> list[tuple[str, str]]:
        lines = [line for line in path.read_text().splitlines() if ":" in line and not line.startswith("#")]
        return [(line.split(":")[0], line.partition(" # ")[2].strip()) for line in lines]

    assert explained(recipe) == explained(ROOT / "params.yaml")


def test_putting_a_recipe_in_place_keeps_the_old_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    for name in ("photos_pretrained", "vit_student", "vit_student"):
        run_program_here("recipe", name)
    assert Path("params.yaml").read_bytes() == Path("recipes/vit_student.yaml").read_bytes()
    assert Path("params.yaml.1").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert Path("params.yaml.2").read_bytes() == Path("recipes/photos_pretrained.yaml").read_bytes()
    assert not Path("params.yaml.3").exists()
    assert "params.yaml is the recipe vit_student already" in capsys.readouterr().out


def test_an_unknown_recipe_is_named_and_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    Path("params.yaml").write_text("mine\n")
    said = run_program_here("recipe", "photos", expected=2)
    assert said == (
        "error: recipes has no recipe 'photos'; choose from cifar_from_scratch, long_tail, paper, "
        "photos_pretrained, vit_student\n"
    )
    assert Path("params.yaml").read_text() == "mine\n"
