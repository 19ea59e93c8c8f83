"""What the tests share: reference figures and small packed stores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from pipeline.config import Loss, Params, load_params
from pipeline.store.tables import sha256_model, write_json

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


# what a whole card of a network holds, beside what write_network adds
CARD = {
    "role": "student",
    "network": "resnet8",
    "num_classes": 5,
    "class_names": list("abcde"),
    "image_size": 32,
    "source": "checkpoint",
    "seed": None,
    "epochs": None,
    "val_top1": 0.5,
    "distill": {},
    "heda": {},
    "lineage": dict.fromkeys(("data", "teacher", "energy", "subset"), "0" * 64),
}


def write_manifest(path: Path, *names: str, **changes: object) -> None:
    """A manifest of files that lie beside it, named by their formats' endings.

    Args:
        changes: to the entry of each file.
    """
    formats = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
    files = [
        {
            "name": name,
            "role": "student",
            "format": formats[Path(name).suffix],
            "precision": "fp32",
            "sha256": sha256_model(path.parent / name),
            "size_bytes": 1000,
            "batch": None,
            **changes,
        }
        for name in names
    ]
    lineage = dict.fromkeys(("data", "teacher", "energy", "student"), "0" * 64)
    write_json(path, {"schema": 1, "lineage": lineage, "opset": 18, "files": files})


@pytest.fixture(scope="session")
def golden() -> dict[str, NDArray]:
    """Figures of the public reference implementations; tests/golden/README.md says which."""
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:
        return dict(file)


def loss_params(name: str, **changes: object) -> Loss:
    """The parameters of a base loss as params.yaml lists them, some of them changed."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    blocks = [YAML(typ="safe").load(block) for block in re.findall(r"^  # (\{name: .*\})$", text, re.MULTILINE)]
    listed = {block["name"]: block for block in [*blocks, {"name": "kd", "ce_weight": 0.1, "kd_weight": 0.9}]}
    listed |= {other: listed["fitnet"] | {"name": other, "feature_weight": 1.0} for other in ("at", "reviewkd")}
    return TypeAdapter(Loss).validate_python(listed[name] | changes)


@pytest.fixture(scope="session")
def params() -> Params:
    """The parameters as shipped."""
    return load_params(ROOT / "params.yaml")
