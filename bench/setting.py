"""What all arms of the benchmark share: networks, sizes, device, and the pipeline's parameters for them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import models
from pipeline.config import DataParams, Params, read_yaml, validated
from pipeline.data.store import read_card

ROOT = Path(__file__).parent.parent
CROP_PADDING = 4  # pixels, as all public CIFAR recipes
TEMPERATURES = {"low_energy": 6.0, "mid": 4.0, "high_energy": 2.0}
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        teacher, student: names of networks.
        batch_size: clean images in a step.
        image_size: side, pixels.
        steps: timed steps of an arm in a round.
        warmup_steps: untimed steps before them, where an arm does not warm up by a whole epoch.
        device: where to compute.
        stores: folder of both stores, ``packed`` and ``files``.
    """

    teacher: str
    student: str
    batch_size: int
    image_size: int
    steps: int
    warmup_steps: int
    device: Literal["cpu", "cuda"]
    stores: str

    @property
    def image_count(self) -> int:
        """Clean images that an arm is timed on."""
        return self.steps * self.batch_size

    def store(self, storage: str = "packed") -> Path:
        return Path(self.stores) / storage

    def network(self, name: str) -> nn.Module:
        """A network on the device, contiguous; random weights, the same in each arm, are as fast as trained ones."""
        torch.manual_seed(0)
        return models.build(name, len(read_card(self.store())["class_names"])).to(self.device)

    def clock(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def params(self, fraction: float = 0.0, epochs: int = 1, *, compiled: bool = False, memo: bool = False) -> Params:
        """Plain KD with energy temperatures; with HE-DA at ``fraction`` if it is above 0; the rest as shipped."""
        heda = {"mix": "cutmix", "fraction": fraction} if fraction else {"mix": "none"}
        training = {
            "epochs": epochs,
            "batch_size": self.batch_size,
            "learning_rate": LEARNING_RATE,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "schedule": "cosine",
            "milestones": [],
            "warmup_epochs": 0,
            "precision": "auto",
            "compile": "on" if compiled else "off",
        }
        distill = {
            "network": self.student,
            "loss": {"name": "kd", "ce_weight": CE_WEIGHT, "kd_weight": KD_WEIGHT},
            "logit_standardization": False,
            "temperatures": TEMPERATURES,
            "assignment": "sample",
            "teacher_memo": memo,
            "training": training,
        }
        return validated(Params, changed(_shipped(), {"heda": heda, "distill": distill}), "bench")


def data_params(name: str, root: Path, image_size: int, storage: str) -> DataParams:
    """The pipeline's parameters for a data set, every image of it."""
    values = _shipped()["data"] | {
        "name": name,
        "root": str(root),
        "image_size": image_size,
        "storage": storage,
        "max_images_per_class": None,
        "imbalance_factor": 1.0,
        "mean": None,
        "std": None,
    }
    return validated(DataParams, values, "bench")


def _shipped() -> dict[str, Any]:
    return read_yaml(ROOT / "params.yaml")


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` in its blocks; keys that are not named stay as they are."""
    return values | {
        key: changed(values.get(key, {}), change) if isinstance(change, dict) else change
        for key, change in changes.items()
    }
