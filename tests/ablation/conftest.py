from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.ablation.study import Study, load_study
from tests.conftest import ROOT

QUICK = {"epochs": 2, "batch_size": 64, "precision": "fp32"}


def tiny_study() -> dict[str, Any]:
    """Two arms of two epochs on 400 digits at 8 x 8 pixels."""
    return {
        "title": "a study",
        "note": "for tests",
        "reference": "KD",
        "seeds": [0, 1],
        "params": {
            "device": "cpu",
            "data": {"image_size": 8, "augmentation": {"crop": {"padding": 1}}, "max_images_per_class": 40},
            "teacher": {"network": "resnet8", "minimum_top1": 0.0, "training": dict(QUICK)},
            "distill": {
                "temperatures": {"low_energy": 4.0, "mid": 4.0, "high_energy": 4.0},
                "training": dict(QUICK),
            },
            "heda": {"mix": "none"},
        },
        "arms": {"KD": {}, "random subset": {"heda": {"mix": "cutmix", "subset": "random"}}},
    }


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    """A study file with some keys replaced, loaded over the parameters as shipped."""

    def make(**changes: Any) -> Study:
        path = tmp_path / "tiny.yaml"
        with path.open("w") as file:
            YAML().dump(tiny_study() | changes, file)
        return load_study(path, ROOT / "params.yaml")

    return make
